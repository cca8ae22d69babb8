// The bindings of the screened encoder.

#include <optional>

#include "arguments.h"
#include "encode.h"

namespace saefast {
namespace {

using Limit = std::optional<py::ssize_t>;

// The operands, checked; the arrays are kept by the caller of the method.
Product product_of(const py::array& centred, const py::array& W_enc, const py::array& b_enc, int threads, Limit limit,
                   Limit most) {
    const auto rows = checked<float>(centred, "centred", 2), weights = checked<float>(W_enc, "W_enc", 2);
    const py::ssize_t B = rows.shape(0), D = rows.shape(1), F = weights.shape(0);
    check_indexable("centred: the number of rows", B);
    check_range("W_enc: the number of latents", F, 1, ScreenedEncoder::MAX_F);
    check_range("centred: the width", D, ScreenedEncoder::MIN_D, ScreenedEncoder::MAX_D);
    const float *table = input<float>(W_enc, "W_enc", {F, D}), *bias = input<float>(b_enc, "b_enc", {F});
    check_threads(threads);
    constexpr auto all = std::numeric_limits<py::ssize_t>::max();
    const py::ssize_t listed = limit.value_or(F / 4);
    check_range("limit", listed, 0, F);
    check_range("most", most.value_or(all), 0, all);
    const auto size = [](py::ssize_t n) { return static_cast<std::size_t>(n); };
    return {rows.data(), table, bias, size(B), size(F), size(D), size(listed), size(most.value_or(all)), threads};
}

void check_k(const Product& product, py::ssize_t k) {
    const auto most = static_cast<py::ssize_t>(product.F / ScreenedEncoder::LATENTS_PER_K);
    check_range("k", k, 1, most, " (a 32nd of the latents)");
}

std::ptrdiff_t top_k(ScreenedEncoder& encoder, const py::array& centred, const py::array& W_enc, const py::array& b_enc,
                     py::ssize_t k, py::array top_acts, py::array top_indices, int threads, Limit limit) {
    const Turn turn(&encoder);
    const Product product = product_of(centred, W_enc, b_enc, threads, limit, {});
    check_k(product, k);
    const Sizes sizes{static_cast<py::ssize_t>(product.B), k};
    float* acts = output<float>(top_acts, "top_acts", sizes);
    int32_t* indices = output<int32_t>(top_indices, "top_indices", sizes);
    py::gil_scoped_release release;
    return encoder.top_k(product, static_cast<std::size_t>(k), acts, indices);
}

std::ptrdiff_t batch_topk(ScreenedEncoder& encoder, const py::array& centred, const py::array& W_enc,
                          const py::array& b_enc, py::ssize_t k, py::array acts, py::array indices,
                          py::array row_offsets, int threads, Limit limit, Limit most) {
    const Turn turn(&encoder);
    const Product product = product_of(centred, W_enc, b_enc, threads, limit, most);
    check_k(product, k);
    const auto B = static_cast<py::ssize_t>(product.B);
    check_range("k times the number of rows", B * k, 0, std::numeric_limits<int32_t>::max());
    float* out = output<float>(acts, "acts", {B * k});
    int32_t* latents = output<int32_t>(indices, "indices", {B * k});
    int32_t* offsets = output<int32_t>(row_offsets, "row_offsets", {B + 1});
    py::gil_scoped_release release;
    return encoder.batch_topk(product, static_cast<std::size_t>(k), out, latents, offsets);
}

std::ptrdiff_t above(ScreenedEncoder& encoder, const py::array& centred, const py::array& W_enc, const py::array& b_enc,
                     const py::array& thresholds, py::array row_offsets, int threads, Limit limit, Limit most) {
    const Turn turn(&encoder);
    const Product product = product_of(centred, W_enc, b_enc, threads, limit, most);
    const float* bounds = input<float>(thresholds, "thresholds", {static_cast<py::ssize_t>(product.F)});
    int32_t* offsets = output<int32_t>(row_offsets, "row_offsets", {static_cast<py::ssize_t>(product.B) + 1});
    py::gil_scoped_release release;
    return encoder.above(product, bounds, offsets);
}

std::size_t write_above(const ScreenedEncoder& encoder, py::array acts, py::array indices) {
    const Turn turn(&encoder);
    float* out = output<float>(acts, "acts", {acts.size()});
    int32_t* latents = output<int32_t>(indices, "indices", {acts.size()});
    const auto room = static_cast<std::size_t>(acts.size());
    py::gil_scoped_release release;
    return encoder.write_above(room, out, latents);
}

std::ptrdiff_t group_max(ScreenedEncoder& encoder, const py::array& centred, const py::array& W_enc,
                         const py::array& b_enc, py::ssize_t k, py::array acts, py::array indices, int threads,
                         Limit limit, Limit most) {
    const Turn turn(&encoder);
    const Product product = product_of(centred, W_enc, b_enc, threads, limit, most);
    check_k(product, k);
    if (product.F % static_cast<std::size_t>(k)) {
        throw py::value_error("k: expected a divisor of the latents, " + std::to_string(product.F) + ", got " +
                              std::to_string(k));
    }
    const Sizes sizes{static_cast<py::ssize_t>(product.B), k};
    float* out = output<float>(acts, "acts", sizes);
    int32_t* latents = output<int32_t>(indices, "indices", sizes);
    py::gil_scoped_release release;
    return encoder.group_max(product, static_cast<std::size_t>(k), out, latents);
}

py::tuple rounded_weights(ScreenedEncoder& encoder) {
    const Turn turn(&encoder);
    const ScreenWeights& w = encoder.weights();
    const auto array = [](const auto& values) {
        return py::array(static_cast<py::ssize_t>(values.size()), values.data());
    };
    return py::make_tuple(array(w.packed), array(w.step), array(w.norm), array(w.rest));
}

}  // namespace

void bind_encode(py::module_& m) {
    using py::arg;
    py::class_<ScreenedEncoder> encoder(
        m, "ScreenedEncoder",
        "Exact selections from the encoder's product, screened in 8 bits; keeps its memory. Each writes its outputs and"
        " returns -1, the first row with a NaN, BAD_WEIGHTS where the weights are not finite, or huge, or TOO_MANY where"
        " more than `most` scores would have to be taken. Rows with more candidates than `limit` (a quarter of the"
        " latents) are scored whole.");
    encoder.attr("MIN_D") = ScreenedEncoder::MIN_D;
    encoder.attr("MAX_D") = ScreenedEncoder::MAX_D;
    encoder.attr("MAX_F") = ScreenedEncoder::MAX_F;
    encoder.attr("LATENTS_PER_K") = ScreenedEncoder::LATENTS_PER_K;
    encoder.attr("BAD_WEIGHTS") = ScreenedEncoder::BAD_WEIGHTS;
    encoder.attr("TOO_MANY") = ScreenedEncoder::TOO_MANY;
    const auto none = py::none();
    encoder
        .def(py::init([](const std::string& isa) { return ScreenedEncoder(parse_isa(isa)); }), arg("isa") = "auto")
        .def("top_k", &top_k, arg("centred"), arg("W_enc"), arg("b_enc"), arg("k"), arg("top_acts"),
             arg("top_indices"), arg("threads"), arg("limit") = none, "Writes top_acts and top_indices [B, k].")
        .def("batch_topk", &batch_topk, arg("centred"), arg("W_enc"), arg("b_enc"), arg("k"), arg("acts"),
             arg("indices"), arg("row_offsets"), arg("threads"), arg("limit") = none, arg("most") = none,
             "Writes acts and indices [B * k] and row_offsets [B + 1].")
        .def("above", &above, arg("centred"), arg("W_enc"), arg("b_enc"), arg("thresholds"), arg("row_offsets"),
             arg("threads"), arg("limit") = none, arg("most") = none,
             "Writes row_offsets [B + 1] of the entries above thresholds [F].")
        .def("write_above", &write_above, arg("acts"), arg("indices"),
             "Writes the first entries that the last call found, if it was `above`; how many.")
        .def("group_max", &group_max, arg("centred"), arg("W_enc"), arg("b_enc"), arg("k"), arg("acts"),
             arg("indices"), arg("threads"), arg("limit") = none, arg("most") = none,
             "Writes acts and indices [B, k], one of each of k groups.")
        .def_property_readonly("candidates", &ScreenedEncoder::candidates, "Pairs scored in fp32 by the last call.")
        .def_property_readonly("dense_rows", &ScreenedEncoder::dense_rows, "Rows of which all latents were scored.")
        .def_property_readonly(
            "rounded", [](ScreenedEncoder& e) { return e.weights().rounded(); },
            "Panels of 64 latents whose weights the last call had to round, for they had changed.")
        .def_property_readonly("rounded_weights", &rounded_weights, "(packed, step, norm, rest), copied, for tests.");
}

}  // namespace saefast
