// The bindings of the CPU engine: numpy arrays in, results into numpy arrays that the caller allocated. Shapes, dtypes,
// layouts and the range of every index are checked here; the interpreter's lock is released for the work.

#include "../bindings.h"

#include <array>
#include <optional>

#include "arguments.h"
#include "centre.h"
#include "decode.h"
#include "group.h"
#include "update.h"

namespace saefast {
namespace {

// A code in either layout; B and the number of its entries come out of it.
Code parse_code(const py::array& acts, const py::array& indices, const std::optional<py::array>& row_offsets,
                py::ssize_t B, py::ssize_t F) {
    Code code{};
    if (row_offsets) {
        const py::ssize_t N = acts.size();
        code = {input<float>(acts, "acts", {N}), input<int32_t>(indices, "indices", {N}),
                input<int32_t>(*row_offsets, "row_offsets", {B + 1}), 0};
        check_offsets("row_offsets", code.starts, B + 1, N);
        check_indices("indices", code.indices, code.starts[B], F);
    } else {
        const py::ssize_t K = acts.ndim() == 2 ? acts.shape(1) : 0;
        code = {input<float>(acts, "acts", {B, K}), input<int32_t>(indices, "indices", {B, K}), nullptr,
                static_cast<std::size_t>(K)};
        check_indices("indices", code.indices, B * K, F);
    }
    check_indexable("acts: the number of entries", acts.size());
    return code;
}

double py_centre(const py::array& x, const py::array& b_dec, py::array centred, int threads,
                 const std::string& isa_name) {
    const auto rows = checked<float>(x, "x", 2);
    const py::ssize_t B = rows.shape(0), D = rows.shape(1);
    const float* in = rows.data();
    const float* bias = input<float>(b_dec, "b_dec", {D});
    float* out = output<float>(centred, "centred", {B, D});
    const Isa isa = parse_isa(isa_name);
    check_threads(threads);
    py::gil_scoped_release release;
    return centre(in, bias, B, D, threads, isa, out);
}

void py_decode_error(const py::array& acts, const py::array& indices, const std::optional<py::array>& row_offsets,
                     const py::array& W_dec, const py::array& b_dec, const py::array& x, py::array error,
                     py::array squares, int threads, const std::string& isa_name) {
    const auto rows = checked<float>(x, "x", 2), weights = checked<float>(W_dec, "W_dec", 2);
    const py::ssize_t B = rows.shape(0), D = rows.shape(1), F = weights.shape(0);
    input<float>(W_dec, "W_dec", {F, D});
    const Code code = parse_code(acts, indices, row_offsets, B, F);
    const float *in = rows.data(), *table = weights.data(), *bias = input<float>(b_dec, "b_dec", {D});
    float *out = output<float>(error, "error", {B, D}), *sums = output<float>(squares, "squares", {B});
    const Isa isa = parse_isa(isa_name);
    check_threads(threads);
    py::gil_scoped_release release;
    decode_error(code, table, bias, in, B, D, threads, isa, out, sums);
}

void py_group(const py::array& acts, const py::array& indices, const std::optional<py::array>& row_offsets,
              py::array offsets, py::array pairs, py::array tokens) {
    const py::ssize_t F = offsets.size() - 1, N = acts.size();
    check_range("offsets: the number of latents", F, 0, std::numeric_limits<int32_t>::max());
    const py::ssize_t B = row_offsets ? row_offsets->size() - 1 : acts.ndim() == 2 ? acts.shape(0) : 0;
    check_range("row_offsets: the number of rows", B, 0, std::numeric_limits<int32_t>::max());
    const Code code = parse_code(acts, indices, row_offsets, B, F);
    int32_t* starts = output<int32_t>(offsets, "offsets", {F + 1});
    int32_t *places = output<int32_t>(pairs, "pairs", {N}), *rows = output<int32_t>(tokens, "tokens", {N});
    py::gil_scoped_release release;
    group_by_latent(code, B, F, N, starts, places, rows);
}

Param parse_param(const py::tuple& arrays, const std::string& name, const Sizes& sizes) {
    if (arrays.size() != 3) throw py::value_error(name + ": expected (value, exp_avg, exp_avg_sq)");
    return {output<float>(arrays[0], name, sizes), output<float>(arrays[1], name + ".exp_avg", sizes),
            output<float>(arrays[2], name + ".exp_avg_sq", sizes)};
}

// (W_enc, b_enc, W_dec, b_dec), each (value, exp_avg, exp_avg_sq).
Weights parse_weights(const py::tuple& params) {
    if (params.size() != 4) throw py::value_error("weights: expected four parameters");
    const auto W_enc = py::cast<py::array>(py::cast<py::tuple>(params[0])[0]);
    if (W_enc.ndim() != 2) throw py::value_error("W_enc: expected 2 dimensions, got " + text(W_enc.attr("shape")));
    const py::ssize_t F = W_enc.shape(0), D = W_enc.shape(1);
    return {parse_param(params[0], "W_enc", {F, D}), parse_param(params[1], "b_enc", {F}),
            parse_param(params[2], "W_dec", {F, D}), parse_param(params[3], "b_dec", {D}),
            static_cast<std::size_t>(F), static_cast<std::size_t>(D)};
}

Numbers parse_numbers(const std::array<double, 12>& n) {
    std::array<float, 12> f;
    std::transform(n.begin(), n.end(), f.begin(), [](double value) { return static_cast<float>(value); });
    return {f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7], f[8], f[9], f[10], f[11]};
}

// (centred, error, acts, offsets, pairs, tokens)
Batch parse_batch(const py::tuple& arrays, const Weights& weights, double grad_scale) {
    if (arrays.size() != 6) throw py::value_error("batch: expected six arrays");
    const auto F = static_cast<py::ssize_t>(weights.F), D = static_cast<py::ssize_t>(weights.D);
    const auto centred = checked<float>(arrays[0], "centred", 2);
    const py::ssize_t B = centred.shape(0), N = py::cast<py::array>(arrays[2]).size();
    const Batch batch{input<float>(arrays[0], "centred", {B, D}), input<float>(arrays[1], "error", {B, D}),
                      input<float>(arrays[2], "acts", {N}),       input<int32_t>(arrays[3], "offsets", {F + 1}),
                      input<int32_t>(arrays[4], "pairs", {N}),    input<int32_t>(arrays[5], "tokens", {N}),
                      static_cast<std::size_t>(B),                static_cast<float>(grad_scale)};
    check_offsets("offsets", batch.offsets, F + 1, N);
    check_indices("pairs", batch.pairs, batch.offsets[F], N);
    check_indices("tokens", batch.tokens, batch.offsets[F], B);
    return batch;
}

// (slots, W_enc, b_enc, W_dec, b_dec), or None
Aux parse_aux(const std::optional<py::tuple>& arrays, const Weights& weights) {
    if (!arrays) return {};
    if (arrays->size() != 5) throw py::value_error("aux: expected five arrays");
    const auto F = static_cast<py::ssize_t>(weights.F), D = static_cast<py::ssize_t>(weights.D);
    const py::ssize_t C = py::cast<py::array>((*arrays)[2]).size();
    const Aux aux{input<int32_t>((*arrays)[0], "aux.slots", {F}), input<float>((*arrays)[1], "aux.W_enc", {C, D}),
                  input<float>((*arrays)[2], "aux.b_enc", {C}), input<float>((*arrays)[3], "aux.W_dec", {C, D}),
                  input<float>((*arrays)[4], "aux.b_dec", {D})};
    for (py::ssize_t f = 0; f < F; ++f) check_range("aux.slots", aux.slots[f], -1, C - 1);
    return aux;
}

Grads parse_grads(const py::tuple& arrays, const Weights& weights) {
    if (arrays.size() != 4) throw py::value_error("grads: expected four arrays");
    const auto F = static_cast<py::ssize_t>(weights.F), D = static_cast<py::ssize_t>(weights.D);
    return {output<float>(arrays[0], "grads.W_enc", {F, D}), output<float>(arrays[1], "grads.b_enc", {F}),
            output<float>(arrays[2], "grads.W_dec", {F, D}), output<float>(arrays[3], "grads.b_dec", {D})};
}

double py_update(const py::tuple& params, const py::tuple& arrays, double grad_scale,
                 const std::optional<py::tuple>& aux_arrays, const std::array<double, 12>& numbers, int threads,
                 const std::string& isa_name) {
    const Weights weights = parse_weights(params);
    const Batch batch = parse_batch(arrays, weights, grad_scale);
    const Aux aux = parse_aux(aux_arrays, weights);
    const Isa isa = parse_isa(isa_name);
    check_threads(threads);
    py::gil_scoped_release release;
    return update(weights, batch, aux, parse_numbers(numbers), threads, isa);
}

double py_row_grads(const py::tuple& params, const py::tuple& arrays, double grad_scale,
                    const std::optional<py::tuple>& aux_arrays, const std::array<double, 12>& numbers,
                    const py::tuple& out, int threads, const std::string& isa_name) {
    const Weights weights = parse_weights(params);
    const Batch batch = parse_batch(arrays, weights, grad_scale);
    const Aux aux = parse_aux(aux_arrays, weights);
    const Grads grads = parse_grads(out, weights);
    const Isa isa = parse_isa(isa_name);
    check_threads(threads);
    py::gil_scoped_release release;
    return row_grads(weights, batch, aux, parse_numbers(numbers), threads, isa, grads);
}

void py_adam_rows(const py::tuple& params, const py::tuple& arrays, double factor,
                  const std::array<double, 12>& numbers, int threads, const std::string& isa_name) {
    const Weights weights = parse_weights(params);
    const Grads grads = parse_grads(arrays, weights);
    const Isa isa = parse_isa(isa_name);
    check_threads(threads);
    py::gil_scoped_release release;
    adam_rows(weights, grads, static_cast<float>(factor), parse_numbers(numbers), threads, isa);
}

}  // namespace

void bind_select(py::module_& m);

void bind_cpu(py::module_& m) {
    using py::arg;
    bind_select(m);
    m.def("isas", &isa_names, "The instruction sets that this machine runs, the fastest first.");
    m.def("centre", &py_centre, arg("x"), arg("b_dec"), arg("centred"), arg("threads"), arg("isa") = "auto",
          "x [B, D], b_dec [D] -> centred [B, D] = x - b_dec; returns the sum of ||x - mean||^2.");
    m.def("decode_error", &py_decode_error, arg("acts"), arg("indices"), arg("row_offsets").none(true),
          arg("W_dec"), arg("b_dec"), arg("x"), arg("error"), arg("squares"), arg("threads"),
          arg("isa") = "auto", "Spec: saefast.reference.decode_error; error [B, D] and squares [B] are written.");
    m.def("group_by_latent", &py_group, arg("acts"), arg("indices"), arg("row_offsets").none(true),
          arg("offsets"), arg("pairs"), arg("tokens"),
          "Spec: saefast.reference.group_by_latent; offsets [F + 1], pairs [N], tokens [N] are written.");
    m.def("update", &py_update, arg("weights"), arg("batch"), arg("grad_scale"), arg("aux").none(true),
          arg("numbers"), arg("threads"), arg("isa") = "auto",
          "One optimizer step in place, see saefast.native.update_; returns the squared norm of the gradient.");
    m.def("row_grads", &py_row_grads, arg("weights"), arg("batch"), arg("grad_scale"), arg("aux").none(true),
          arg("numbers"), arg("grads"), arg("threads"), arg("isa") = "auto",
          "The gradients alone, written to `grads`; returns their squared norm.");
    m.def("adam_rows", &py_adam_rows, arg("weights"), arg("grads"), arg("factor"), arg("numbers"), arg("threads"),
          arg("isa") = "auto", "The update alone, with `factor` times `grads`.");
}

}  // namespace saefast
