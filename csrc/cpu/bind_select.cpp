// The bindings of what selects from pre-activations that come in pieces: top-k, BatchTopK and thresholds.

#include "arguments.h"
#include "select.h"
#include "topk.h"

namespace saefast {
namespace {

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
    const Turn turn(&block);
    const auto z = checked<float>(pre_acts, "pre_acts", 2);
    check_range("pre_acts: the number of rows", z.shape(0), block.rows(), block.rows());
    check_indexable("pre_acts: the number of columns", z.shape(1) + static_cast<py::ssize_t>(block.columns()));
    const float* in = z.data();
    const auto columns = static_cast<std::size_t>(z.shape(1));
    py::gil_scoped_release release;
    return block.feed(in, columns);
}

void finish_topk(TopkBlock& block, py::array top_acts, py::array top_indices) {
    const Turn turn(&block);
    const auto rows = static_cast<py::ssize_t>(block.rows()), k = static_cast<py::ssize_t>(block.k());
    check_range("k", k, 1, static_cast<py::ssize_t>(block.columns()), " (the columns fed)");
    float* acts = output<float>(top_acts, "top_acts", {rows, k});
    int32_t* indices = output<int32_t>(top_indices, "top_indices", {rows, k});
    py::gil_scoped_release release;
    block.finish(acts, indices);
}

std::ptrdiff_t feed_batch(BatchTopk& batch, const py::array& pre_acts, py::ssize_t row, py::ssize_t column) {
    const Turn turn(&batch);
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
    const Turn turn(&batch);
    const auto keep = static_cast<py::ssize_t>(batch.keep()), B = row_offsets.size() - 1;
    check_range("row_offsets: the number of rows", B, 0, std::numeric_limits<int32_t>::max());
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

void merge_batch(BatchTopk& batch, const BatchTopk& other) {
    if (&batch == &other) throw py::value_error("other: expected another one, got the same");
    const Turn turn(&batch), its(&other);
    const auto F = static_cast<py::ssize_t>(batch.F()), keep = static_cast<py::ssize_t>(batch.keep());
    check_range("other.F", static_cast<py::ssize_t>(other.F()), F, F);
    check_range("other.keep", static_cast<py::ssize_t>(other.keep()), keep, keep);
    batch.merge(other);
}

std::ptrdiff_t feed_above(AboveBlock& block, const py::array& pre_acts, const py::array& thresholds) {
    const Turn turn(&block);
    const auto z = checked<float>(pre_acts, "pre_acts", 2);
    check_range("pre_acts: the number of rows", z.shape(0), block.rows(), block.rows());
    const float* in = z.data();
    const float* bounds = input<float>(thresholds, "thresholds", {z.shape(1)});
    const auto columns = static_cast<std::size_t>(z.shape(1));
    py::gil_scoped_release release;
    return block.feed(in, bounds, columns);
}

void finish_above(const AboveBlock& block, py::array acts, py::array indices, py::array counts) {
    const Turn turn(&block);
    const auto n = static_cast<py::ssize_t>(block.size()), rows = static_cast<py::ssize_t>(block.rows());
    float* out = output<float>(acts, "acts", {n});
    int32_t* columns = output<int32_t>(indices, "indices", {n});
    int32_t* per_row = output<int32_t>(counts, "counts", {rows});
    py::gil_scoped_release release;
    block.finish(out, columns, per_row);
}

}  // namespace

void bind_select(py::module_& m) {
    using py::arg;
    constexpr auto big = std::numeric_limits<int32_t>::max();
    m.def("topk", &py_topk, arg("pre_acts"), arg("k"), arg("threads"), arg("isa") = "auto",
          "pre_acts [B, F] float32 -> top_acts [B, k] float32, top_indices [B, k] int32"
          " (spec: saefast.reference.topk); uses at most `threads` threads.");
    const auto checked_rows = [](py::ssize_t rows) {
        check_range("rows", rows, 0, big);
        return static_cast<std::size_t>(rows);
    };
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
        .def("merge", &merge_batch, arg("other"), "Take in what another one found.")
        .def("finish", &finish_batch, arg("acts"), arg("indices"), arg("row_offsets"), "Writes the code.");
    py::class_<AboveBlock>(m, "AboveBlock", "The entries of a block of rows above a threshold for each column.")
        .def(py::init([checked_rows](py::ssize_t rows, const std::string& isa) {
                 return AboveBlock(checked_rows(rows), parse_isa(isa));
             }),
             arg("rows"), arg("isa") = "auto")
        .def("feed", &feed_above, arg("pre_acts"), arg("thresholds"),
             "The next columns [rows, n]; the first row with a NaN, or -1.")
        .def("size",
             [](const AboveBlock& block) {
                 const Turn turn(&block);
                 return block.size();
             },
             "How many entries were found.")
        .def("finish", &finish_above, arg("acts"), arg("indices"), arg("counts"), "Writes them, row after row.");
}

}  // namespace saefast
