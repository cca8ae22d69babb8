// The bindings of the update: weights, batches and gradients come as tuples of arrays.

#include <array>
#include <optional>

#include "arguments.h"
#include "encode.h"
#include "update.h"

namespace saefast {
namespace {

Param parse_param(const py::tuple& arrays, const std::string& name, const Sizes& sizes) {
    return {output<float>(arrays[0], name, sizes), output<float>(arrays[1], name + ".exp_avg", sizes),
            output<float>(arrays[2], name + ".exp_avg_sq", sizes)};
}

// (value, exp_avg, exp_avg_sq)
py::tuple three(const py::handle& param, const std::string& name) {
    if (py::isinstance<py::tuple>(param) && py::len(param) == 3) return py::reinterpret_borrow<py::tuple>(param);
    throw py::value_error(name + ": expected (value, exp_avg, exp_avg_sq)");
}

// (W_enc, b_enc, W_dec, b_dec), each (value, exp_avg, exp_avg_sq). Rows of W_dec have the length of b_dec.
Weights parse_weights(const py::tuple& params) {
    if (params.size() != 4) throw py::value_error("weights: expected four parameters");
    const py::tuple enc = three(params[0], "W_enc"), b_enc = three(params[1], "b_enc");
    const py::tuple dec = three(params[2], "W_dec"), b_dec = three(params[3], "b_dec");
    const py::array W_enc = as_array(enc[0], "W_enc");
    if (W_enc.ndim() != 2) throw py::value_error("W_enc: expected 2 dimensions, got " + text(W_enc.attr("shape")));
    const py::ssize_t F = W_enc.shape(0), D_in = W_enc.shape(1);
    const py::ssize_t D_out = as_array(b_dec[0], "b_dec").size();
    return {parse_param(enc, "W_enc", {F, D_in}), parse_param(b_enc, "b_enc", {F}),
            parse_param(dec, "W_dec", {F, D_out}), parse_param(b_dec, "b_dec", {D_out}),
            static_cast<std::size_t>(F), static_cast<std::size_t>(D_in), static_cast<std::size_t>(D_out)};
}

using NumbersArray = std::array<double, N_NUMBERS>;

Numbers parse_numbers(const NumbersArray& array, const Weights& weights) {
    const Numbers numbers = named_numbers(array);
    if (numbers.tied != 0 && weights.D_in != weights.D_out) {
        throw py::value_error("numbers.tied: expected 0, for rows of W_enc have " + std::to_string(weights.D_in) +
                              " columns and those of W_dec " + std::to_string(weights.D_out) + ", got 1");
    }
    return numbers;
}

// (grad_pre, bias, push, push_row, pull), or None
Given parse_given(const std::optional<py::tuple>& arrays, const Weights& weights, py::ssize_t N) {
    if (!arrays) return {};
    if (arrays->size() != 5) throw py::value_error("given: expected five arrays");
    const auto F = static_cast<py::ssize_t>(weights.F), D_out = static_cast<py::ssize_t>(weights.D_out);
    const py::ssize_t L = checked<float>((*arrays)[4], "given.pull", 2).shape(1);
    if (L < 1 || D_out % L) {
        throw py::value_error("given.pull: expected a number of columns that divides " + std::to_string(D_out) +
                              ", got " + std::to_string(L));
    }
    return {input<float>((*arrays)[0], "given.grad_pre", {N}),
            input<float>((*arrays)[1], "given.bias", {F}),
            input<float>((*arrays)[2], "given.push", {F}),
            input<float>((*arrays)[3], "given.push_row", {static_cast<py::ssize_t>(weights.D_in)}),
            input<float>((*arrays)[4], "given.pull", {F, L}),
            static_cast<std::size_t>(L)};
}

// (centred, error, acts, offsets, pairs, tokens)
Batch parse_batch(const py::tuple& arrays, const std::optional<py::tuple>& given_arrays, const Weights& weights,
                  double grad_scale) {
    if (arrays.size() != 6) throw py::value_error("batch: expected six arrays");
    const auto F = static_cast<py::ssize_t>(weights.F), D_in = static_cast<py::ssize_t>(weights.D_in);
    const auto D_out = static_cast<py::ssize_t>(weights.D_out);
    const py::ssize_t B = checked<float>(arrays[0], "centred", 2).shape(0);
    const py::ssize_t N = as_array(arrays[2], "acts").size();
    const Given given = parse_given(given_arrays, weights, N);
    py::ssize_t rows = B;  // of error, a multiple of B for a code in parts
    if (given.grad_pre && B > 0) {
        rows = checked<float>(arrays[1], "error", 2).shape(0);
        if (rows < B || rows % B) {
            throw py::value_error("error: expected a multiple of " + std::to_string(B) + " rows, got " +
                                  std::to_string(rows));
        }
    }
    const Batch batch{input<float>(arrays[0], "centred", {B, D_in}), input<float>(arrays[1], "error", {rows, D_out}),
                      input<float>(arrays[2], "acts", {N}),          input<int32_t>(arrays[3], "offsets", {F + 1}),
                      input<int32_t>(arrays[4], "pairs", {N}),       input<int32_t>(arrays[5], "tokens", {N}),
                      static_cast<std::size_t>(B),                   static_cast<float>(grad_scale),
                      given};
    check_indexable("error: the number of rows", rows);
    check_offsets("offsets", batch.offsets, F + 1, N);
    check_indices("pairs", batch.pairs, batch.offsets[F], N);
    check_indices("tokens", batch.tokens, batch.offsets[F], rows);
    return batch;
}

// (slots, W_enc, b_enc, W_dec, b_dec), or None
Aux parse_aux(const std::optional<py::tuple>& arrays, const Weights& weights) {
    if (!arrays) return {};
    if (arrays->size() != 5) throw py::value_error("aux: expected five arrays");
    const auto F = static_cast<py::ssize_t>(weights.F), D_in = static_cast<py::ssize_t>(weights.D_in);
    const auto D_out = static_cast<py::ssize_t>(weights.D_out);
    const py::ssize_t C = as_array((*arrays)[2], "aux.b_enc").size();
    const Aux aux{input<int32_t>((*arrays)[0], "aux.slots", {F}), input<float>((*arrays)[1], "aux.W_enc", {C, D_in}),
                  input<float>((*arrays)[2], "aux.b_enc", {C}), input<float>((*arrays)[3], "aux.W_dec", {C, D_out}),
                  input<float>((*arrays)[4], "aux.b_dec", {D_out})};
    for (py::ssize_t f = 0; f < F; ++f) check_range("aux.slots", aux.slots[f], -1, C - 1);
    return aux;
}

Grads parse_grads(const py::tuple& arrays, const Weights& weights) {
    if (arrays.size() != 4) throw py::value_error("grads: expected four arrays");
    const auto F = static_cast<py::ssize_t>(weights.F), D_in = static_cast<py::ssize_t>(weights.D_in);
    const auto D_out = static_cast<py::ssize_t>(weights.D_out);
    return {output<float>(arrays[0], "grads.W_enc", {F, D_in}), output<float>(arrays[1], "grads.b_enc", {F}),
            output<float>(arrays[2], "grads.W_dec", {F, D_out}), output<float>(arrays[3], "grads.b_dec", {D_out})};
}

// The rounded weights of an encoder, which nobody else may use in the meantime.
class RoundedBy {
public:
    explicit RoundedBy(ScreenedEncoder* encoder) : encoder_(encoder) {
        if (encoder) turn_.emplace(encoder);
    }
    ScreenWeights* get() const { return encoder_ ? &encoder_->weights() : nullptr; }

private:
    ScreenedEncoder* encoder_;
    std::optional<Turn> turn_;
};

double py_update(const py::tuple& params, const py::tuple& arrays, double grad_scale,
                 const std::optional<py::tuple>& aux_arrays, const std::optional<py::tuple>& given,
                 const NumbersArray& number_array, int threads, const std::string& isa_name,
                 ScreenedEncoder* encoder) {
    const RoundedBy rounded(encoder);
    const Weights weights = parse_weights(params);
    const Batch batch = parse_batch(arrays, given, weights, grad_scale);
    const Aux aux = parse_aux(aux_arrays, weights);
    const Numbers numbers = parse_numbers(number_array, weights);
    const Isa isa = parse_isa(isa_name);
    check_threads(threads);
    py::gil_scoped_release release;
    return update(weights, batch, aux, numbers, threads, isa, rounded.get());
}

double py_row_grads(const py::tuple& params, const py::tuple& arrays, double grad_scale,
                    const std::optional<py::tuple>& aux_arrays, const std::optional<py::tuple>& given,
                    const NumbersArray& number_array, const py::tuple& out, int threads,
                    const std::string& isa_name) {
    const Weights weights = parse_weights(params);
    const Batch batch = parse_batch(arrays, given, weights, grad_scale);
    const Aux aux = parse_aux(aux_arrays, weights);
    const Numbers numbers = parse_numbers(number_array, weights);
    const Grads grads = parse_grads(out, weights);
    const Isa isa = parse_isa(isa_name);
    check_threads(threads);
    py::gil_scoped_release release;
    return row_grads(weights, batch, aux, numbers, threads, isa, grads);
}

void py_adam_rows(const py::tuple& params, const py::tuple& arrays, double factor,
                  const NumbersArray& number_array, int threads, const std::string& isa_name,
                  ScreenedEncoder* encoder) {
    const RoundedBy rounded(encoder);
    const Weights weights = parse_weights(params);
    const Grads grads = parse_grads(arrays, weights);
    const Numbers numbers = parse_numbers(number_array, weights);
    const Isa isa = parse_isa(isa_name);
    check_threads(threads);
    py::gil_scoped_release release;
    adam_rows(weights, grads, static_cast<float>(factor), numbers, threads, isa, rounded.get());
}

}  // namespace

void bind_update(py::module_& m) {
    using py::arg;
    m.def("update", &py_update, arg("weights"), arg("batch"), arg("grad_scale"), arg("aux").none(true),
          arg("given").none(true), arg("numbers"), arg("threads"), arg("isa") = "auto", arg("encoder") = py::none(),
          "One optimizer step in place, see saefast.native.update_; returns the squared norm of the gradient. A"
          " ScreenedEncoder whose last call was with this W_enc gets its rows rounded.");
    m.def("row_grads", &py_row_grads, arg("weights"), arg("batch"), arg("grad_scale"), arg("aux").none(true),
          arg("given").none(true), arg("numbers"), arg("grads"), arg("threads"), arg("isa") = "auto",
          "The gradients alone, written to `grads`; returns their squared norm.");
    m.def("adam_rows", &py_adam_rows, arg("weights"), arg("grads"), arg("factor"), arg("numbers"), arg("threads"),
          arg("isa") = "auto", arg("encoder") = py::none(),
          "The update alone, with `factor` times `grads`; `encoder` as for `update`.");
}

}  // namespace saefast
