// The bindings of the CPU engine: numpy arrays in, results into numpy arrays that the caller allocated. Shapes, dtypes,
// layouts and the range of every index are checked here; the interpreter's lock is released for the work.

#include "../bindings.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>

#include "../checks.h"
#include "centre.h"
#include "decode.h"
#include "encode.h"
#include "group.h"
#include "select.h"
#include "topk.h"
#include "update.h"

namespace saefast {
namespace {

using std::int32_t;
using Sizes = std::vector<py::ssize_t>;

const char* name_of(Isa isa) {
    return isa == Isa::vnni ? "vnni" : isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "plain";
}

py::list isa_names() {
    py::list names;
    for (const Isa isa : supported_isas()) names.append(name_of(isa));
    return names;
}

Isa parse_isa(const std::string& name) {
    const auto isas = supported_isas();
    if (name == "auto") return isas.front();
    for (const Isa isa : isas) {
        if (name == name_of(isa)) return isa;
    }
    throw py::value_error("isa: expected 'auto' or one of " + text(isa_names()) + ", got '" + name + "'");
}

void check_range(const std::string& name, py::ssize_t value, py::ssize_t low, py::ssize_t high,
                 const std::string& note = "") {
    if (value >= low && value <= high) return;
    throw py::value_error(name + ": expected " + std::to_string(low) + " to " + std::to_string(high) + note +
                          ", got " + std::to_string(value));
}

void check_threads(int threads) {
    if (threads < 1) throw py::value_error("threads: expected at least 1, got " + std::to_string(threads));
}

void check_indexable(const std::string& name, py::ssize_t n) {
    if (n <= std::numeric_limits<int32_t>::max()) return;
    throw py::value_error(name + ": expected fewer than 2^31, got " + std::to_string(n));
}

// `array` as a contiguous T array of exactly these sizes.
template <typename T>
py::array_t<T> sized(const py::array& array, const std::string& name, const Sizes& sizes) {
    auto out = checked<T>(array, name, static_cast<py::ssize_t>(sizes.size()));
    if (!std::equal(sizes.begin(), sizes.end(), out.shape())) {
        throw py::value_error(name + ": expected shape " + text(py::tuple(py::cast(sizes))) + ", got " +
                              text(array.attr("shape")));
    }
    return out;
}

template <typename T>
const T* input(const py::array& array, const std::string& name, const Sizes& sizes) {
    return sized<T>(array, name, sizes).data();
}

template <typename T>
T* output(py::array array, const std::string& name, const Sizes& sizes) {
    return sized<T>(array, name, sizes).mutable_data();  // raises if it may not be written
}

void check_indices(const std::string& name, const int32_t* values, py::ssize_t n, py::ssize_t limit) {
    for (py::ssize_t i = 0; i < n; ++i) {
        if (values[i] < 0 || values[i] >= limit) {
            throw py::value_error(name + ": expected 0 to " + std::to_string(limit - 1) + ", got " +
                                  std::to_string(values[i]) + " at " + std::to_string(i));
        }
    }
}

// Offsets that begin at 0, never fall and end at `limit` or below.
void check_offsets(const std::string& name, const int32_t* values, py::ssize_t n, py::ssize_t limit) {
    for (py::ssize_t i = 0; i < n; ++i) {
        const bool ok = i == 0 ? values[0] == 0 : values[i] >= values[i - 1] && values[i] <= limit;
        if (ok) continue;
        throw py::value_error(name + ": expected numbers that rise from 0 to at most " + std::to_string(limit) +
                              ", got " + std::to_string(values[i]) + " at " + std::to_string(i));
    }
}

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

py::tuple py_topk(const py::array& pre_acts, py::ssize_t k, int threads, const std::string& isa_name) {
    const auto z = checked<float>(pre_acts, "pre_acts", 2);
    const py::ssize_t B = z.shape(0), F = z.shape(1);
    const Isa isa = parse_isa(isa_name);
    check_indexable("pre_acts: the number of columns", F);
    check_range("k", k, 1, F, " (the columns of pre_acts)");
    check_threads(threads);
    py::array_t<float> top_acts({B, k});
    py::array_t<int32_t> top_indices({B, k});
    const float* in = z.data();
    float* acts = top_acts.mutable_data();
    int32_t* indices = top_indices.mutable_data();
    std::ptrdiff_t nan_row;
    {
        py::gil_scoped_release release;
        nan_row = topk(in, B, F, k, threads, isa, acts, indices);
    }
    if (nan_row >= 0) {
        throw py::value_error("pre_acts: expected no NaN, got one in row " + std::to_string(nan_row));
    }
    return py::make_tuple(top_acts, top_indices);
}

std::ptrdiff_t feed_topk(TopkBlock& block, const py::array& pre_acts) {
    const auto z = checked<float>(pre_acts, "pre_acts", 2);
    check_range("pre_acts: the number of rows", z.shape(0), block.rows(), block.rows());
    check_indexable("pre_acts: the number of columns", z.shape(1) + static_cast<py::ssize_t>(block.columns()));
    const float* in = z.data();
    const auto columns = static_cast<std::size_t>(z.shape(1));
    py::gil_scoped_release release;
    return block.feed(in, columns);
}

void finish_topk(TopkBlock& block, py::array top_acts, py::array top_indices) {
    const auto rows = static_cast<py::ssize_t>(block.rows()), k = static_cast<py::ssize_t>(block.k());
    check_range("k", k, 1, static_cast<py::ssize_t>(block.columns()), " (the columns fed)");
    float* acts = output<float>(top_acts, "top_acts", {rows, k});
    int32_t* indices = output<int32_t>(top_indices, "top_indices", {rows, k});
    py::gil_scoped_release release;
    block.finish(acts, indices);
}

std::ptrdiff_t feed_batch(BatchTopk& batch, const py::array& pre_acts, py::ssize_t row, py::ssize_t column) {
    const auto z = checked<float>(pre_acts, "pre_acts", 2);
    const auto F = static_cast<py::ssize_t>(batch.F());
    check_range("row", row, 0, std::numeric_limits<int32_t>::max() - z.shape(0));
    check_range("column", column, 0, F - z.shape(1));
    const float* in = z.data();
    const py::ssize_t rows = z.shape(0), columns = z.shape(1);
    py::gil_scoped_release release;
    return batch.feed(in, rows, columns, row, column);
}

void finish_batch(BatchTopk& batch, py::array acts, py::array indices, py::array row_offsets) {
    const auto keep = static_cast<py::ssize_t>(batch.keep()), B = row_offsets.size() - 1;
    check_range("the number of candidates", static_cast<py::ssize_t>(batch.size()), keep,
                std::numeric_limits<py::ssize_t>::max());
    float* out = output<float>(acts, "acts", {keep});
    int32_t* columns = output<int32_t>(indices, "indices", {keep});
    int32_t* offsets = output<int32_t>(row_offsets, "row_offsets", {B + 1});
    if (batch.rows_seen() > static_cast<std::size_t>(B)) {
        throw py::value_error("row_offsets: expected at least " + std::to_string(batch.rows_seen() + 1) +
                              " numbers, got " + std::to_string(B + 1));
    }
    py::gil_scoped_release release;
    batch.finish(B, out, columns, offsets);
}

std::ptrdiff_t feed_above(AboveBlock& block, const py::array& pre_acts, const py::array& thresholds) {
    const auto z = checked<float>(pre_acts, "pre_acts", 2);
    check_range("pre_acts: the number of rows", z.shape(0), block.rows(), block.rows());
    const float* in = z.data();
    const float* bounds = input<float>(thresholds, "thresholds", {z.shape(1)});
    const auto columns = static_cast<std::size_t>(z.shape(1));
    py::gil_scoped_release release;
    return block.feed(in, bounds, columns);
}

void finish_above(const AboveBlock& block, py::array acts, py::array indices, py::array counts) {
    const auto n = static_cast<py::ssize_t>(block.size()), rows = static_cast<py::ssize_t>(block.rows());
    float* out = output<float>(acts, "acts", {n});
    int32_t* columns = output<int32_t>(indices, "indices", {n});
    int32_t* per_row = output<int32_t>(counts, "counts", {rows});
    py::gil_scoped_release release;
    block.finish(out, columns, per_row);
}

std::ptrdiff_t encode(TopkEncoder& encoder, const py::array& centred, const py::array& W_enc, const py::array& b_enc,
                      py::ssize_t k, py::array top_acts, py::array top_indices, int threads,
                      std::optional<py::ssize_t> limit) {
    const auto rows = checked<float>(centred, "centred", 2), weights = checked<float>(W_enc, "W_enc", 2);
    const py::ssize_t B = rows.shape(0), D = rows.shape(1), F = weights.shape(0);
    check_indexable("centred: the number of rows", B);
    check_indexable("W_enc: the number of latents", F);
    check_range("centred: the width", D, TopkEncoder::MIN_D, TopkEncoder::MAX_D);
    const float* in = rows.data();
    const float *table = input<float>(W_enc, "W_enc", {F, D}), *bias = input<float>(b_enc, "b_enc", {F});
    check_range("k", k, 1, F / static_cast<py::ssize_t>(TopkEncoder::LATENTS_PER_K), " (a 32nd of the latents)");
    float* acts = output<float>(top_acts, "top_acts", {B, k});
    int32_t* indices = output<int32_t>(top_indices, "top_indices", {B, k});
    check_threads(threads);
    const py::ssize_t most = limit.value_or(F / 8);
    check_range("limit", most, 0, F);
    py::gil_scoped_release release;
    return encoder.encode(in, table, bias, B, F, D, k, most, threads, acts, indices);
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

void bind_cpu(py::module_& m) {
    using py::arg;
    constexpr auto big = std::numeric_limits<int32_t>::max();
    m.def("isas", &isa_names, "The instruction sets that this machine runs, the fastest first.");
    m.def("topk", &py_topk, arg("pre_acts"), arg("k"), arg("threads"), arg("isa") = "auto",
          "pre_acts [B, F] float32 -> top_acts [B, k] float32, top_indices [B, k] int32"
          " (spec: saefast.reference.topk); uses at most `threads` threads.");
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

    const auto checked_rows = [](py::ssize_t rows) {
        check_range("rows", rows, 0, big);
        return static_cast<std::size_t>(rows);
    };
    py::class_<TopkEncoder> encoder(m, "TopkEncoder",
                                    "Exact top-k of the encoder's product, screened in 8 bits; keeps its memory.");
    encoder.attr("MIN_D") = TopkEncoder::MIN_D;
    encoder.attr("MAX_D") = TopkEncoder::MAX_D;
    encoder.attr("LATENTS_PER_K") = TopkEncoder::LATENTS_PER_K;
    encoder.attr("BAD_WEIGHTS") = TopkEncoder::BAD_WEIGHTS;
    encoder
        .def(py::init([](const std::string& isa) { return TopkEncoder(parse_isa(isa)); }), arg("isa") = "auto")
        .def("encode", &encode, arg("centred"), arg("W_enc"), arg("b_enc"), arg("k"), arg("top_acts"),
             arg("top_indices"), arg("threads"), arg("limit") = py::none(),
             "Writes top_acts and top_indices [B, k]; rows with more candidates than `limit` (an eighth of the latents) are"
             " scored whole. Returns -1, the first row with a NaN, or BAD_WEIGHTS where the"
             " weights are not finite, or huge.")
        .def_property_readonly("candidates", &TopkEncoder::candidates, "Pairs scored in fp32 by the last call.")
        .def_property_readonly("dense_rows", &TopkEncoder::dense_rows, "Rows of which all latents were scored.");
    py::class_<TopkBlock>(m, "TopkBlock", "Top-k of a block of rows whose columns come a few at a time.")
        .def(py::init([checked_rows](py::ssize_t rows, py::ssize_t k, const std::string& isa) {
                 check_range("k", k, 1, big);
                 return TopkBlock(checked_rows(rows), static_cast<std::size_t>(k), parse_isa(isa));
             }),
             arg("rows"), arg("k"), arg("isa") = "auto")
        .def("feed", &feed_topk, arg("pre_acts"), "The next columns [rows, n]; the first row with a NaN, or -1.")
        .def("finish", &finish_topk, arg("top_acts"), arg("top_indices"), "Writes both [rows, k], once.");
    py::class_<BatchTopk>(m, "BatchTopk", "The largest of a whole matrix that comes in pieces.")
        .def(py::init([](py::ssize_t keep, py::ssize_t F, const std::string& isa) {
                 check_range("keep", keep, 1, big);
                 check_range("F", F, 1, big);
                 return BatchTopk(static_cast<std::size_t>(keep), static_cast<std::size_t>(F), parse_isa(isa));
             }),
             arg("keep"), arg("F"), arg("isa") = "auto")
        .def("feed", &feed_batch, arg("pre_acts"), arg("row"), arg("column"),
             "A piece of the matrix; the first of its rows with a NaN, or -1.")
        .def("merge", &BatchTopk::merge, arg("other"), "Take in what another one found.")
        .def("finish", &finish_batch, arg("acts"), arg("indices"), arg("row_offsets"), "Writes the code.");
    py::class_<AboveBlock>(m, "AboveBlock", "The entries of a block of rows above a threshold for each column.")
        .def(py::init([checked_rows](py::ssize_t rows, const std::string& isa) {
                 return AboveBlock(checked_rows(rows), parse_isa(isa));
             }),
             arg("rows"), arg("isa") = "auto")
        .def("feed", &feed_above, arg("pre_acts"), arg("thresholds"),
             "The next columns [rows, n]; the first row with a NaN, or -1.")
        .def("size", &AboveBlock::size, "How many entries were found.")
        .def("finish", &finish_above, arg("acts"), arg("indices"), arg("counts"), "Writes them, row after row.");
}

}  // namespace saefast
