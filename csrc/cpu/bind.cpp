// The bindings of the CPU engine: numpy arrays in, results into numpy arrays that the caller allocated. Shapes, dtypes,
// layouts and the range of every index are checked here; the interpreter's lock is released for the work.

#include "../bindings.h"

#include <exception>
#include <optional>

#include "arguments.h"
#include "centre.h"
#include "decode.h"
#include "grad_acts.h"
#include "group.h"
#include "parallel.h"

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
    if (rows.size() == 0) return 0.0;  // however many rows without columns
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
              py::array offsets, py::array pairs, py::array tokens, int threads) {
    const py::ssize_t F = offsets.size() - 1, N = acts.size();
    check_range("offsets: the number of latents", F, 0, std::numeric_limits<int32_t>::max());
    const py::ssize_t B = row_offsets ? row_offsets->size() - 1 : acts.ndim() == 2 ? acts.shape(0) : 0;
    check_range("row_offsets: the number of rows", B, 0, std::numeric_limits<int32_t>::max());
    const Code code = parse_code(acts, indices, row_offsets, B, F);
    int32_t* starts = output<int32_t>(offsets, "offsets", {F + 1});
    int32_t *places = output<int32_t>(pairs, "pairs", {N}), *rows = output<int32_t>(tokens, "tokens", {N});
    std::vector<Memory> read = {memory_of("acts", acts), memory_of("indices", indices)};
    if (row_offsets) read.push_back(memory_of("row_offsets", *row_offsets));
    check_threads(threads);
    check_apart({memory_of("offsets", offsets), memory_of("pairs", pairs), memory_of("tokens", tokens)}, read);
    py::gil_scoped_release release;
    group_by_latent(code, B, F, N, threads, starts, places, rows);
}

void py_sort_code(const py::array& acts, const py::array& indices, const py::array& row_offsets, const py::array& rows,
                  py::array offsets, py::array slots, py::array sorted_acts, int threads) {
    const py::ssize_t B = rows.size(), F = offsets.size() - 1;
    check_range("offsets: the number of latents", F, 0, std::numeric_limits<int32_t>::max());
    const Code code = parse_code(acts, indices, row_offsets, B, F);
    const auto N = static_cast<py::ssize_t>(code.begin(static_cast<std::size_t>(B)));
    const int32_t* of_rows = input<int32_t>(rows, "rows", {B});
    auto* starts = output<std::int64_t>(offsets, "offsets", {F + 1});
    int32_t* where = output<int32_t>(slots, "slots", {N});
    float* values = output<float>(sorted_acts, "sorted_acts", {N});
    check_threads(threads);
    check_apart({memory_of("offsets", offsets), memory_of("slots", slots), memory_of("sorted_acts", sorted_acts)},
                {memory_of("acts", acts), memory_of("indices", indices), memory_of("row_offsets", row_offsets),
                 memory_of("rows", rows)});
    py::gil_scoped_release release;
    sort_code(code, of_rows, static_cast<std::size_t>(B), static_cast<std::size_t>(F), threads, starts, where, values);
}

void py_sum_entries(const py::array& offsets, const py::array& pairs, const py::array& per_pair, py::array sums,
                    int threads) {
    const py::ssize_t F = sums.size(), N = per_pair.size();
    const int32_t *starts = input<int32_t>(offsets, "offsets", {F + 1}), *places = input<int32_t>(pairs, "pairs", {N});
    const float* values = input<float>(per_pair, "per_pair", {N});
    float* out = output<float>(sums, "sums", {F});
    check_offsets("offsets", starts, F + 1, N);
    check_indices("pairs", places, starts[F], N);
    check_threads(threads);
    py::gil_scoped_release release;
    sum_entries(starts, places, values, F, threads, out);
}

void py_grad_top_acts(const py::array& error, const py::array& W_dec, const py::array& acts, const py::array& indices,
                      const std::optional<py::array>& row_offsets, py::array grads, int threads,
                      const std::string& isa_name) {
    const auto rows = checked<float>(error, "error", 2), weights = checked<float>(W_dec, "W_dec", 2);
    const py::ssize_t B = rows.shape(0), D = rows.shape(1), F = weights.shape(0), N = acts.size();
    const Code code = parse_code(acts, indices, row_offsets, B, F);
    const float *off = rows.data(), *table = input<float>(W_dec, "W_dec", {F, D});
    float* out = output<float>(grads, "grads", Sizes(acts.shape(), acts.shape() + acts.ndim()));
    const Isa isa = parse_isa(isa_name);
    check_threads(threads);
    if (N == 0) return;
    py::gil_scoped_release release;
    grad_top_acts(code, off, table, B, D, N, threads, isa, out);
}

// Python's work, on the threads of the engine; of several errors the one of the first item is raised.
void py_parallel_for(py::ssize_t items, int threads, const py::function& work) {
    check_range("items", items, 0, std::numeric_limits<int32_t>::max());
    check_threads(threads);
    std::exception_ptr error;  // written while holding the interpreter's lock
    std::size_t failed = static_cast<std::size_t>(items);
    {
        py::gil_scoped_release release;
        parallel_for(failed, threads, [&](std::size_t item, std::size_t thread) {
            py::gil_scoped_acquire acquire;
            try {
                work(item, thread);
            } catch (...) {
                if (item < failed) {
                    failed = item;
                    error = std::current_exception();
                }
            }
        });
    }
    if (error) std::rethrow_exception(error);
}

}  // namespace

void bind_encode(py::module_& m);
void bind_select(py::module_& m);
void bind_records(py::module_& m);
void bind_update(py::module_& m);

void bind_cpu(py::module_& m) {
    using py::arg;
    bind_encode(m);
    bind_select(m);
    bind_records(m);
    bind_update(m);
    m.def("isas", &isa_names, "The instruction sets that this machine runs, the fastest first.");
    m.def("openmp", [] { return openmp() != nullptr; }, "Whether the threads are those of torch.");
    m.def("parallel_for", &py_parallel_for, arg("items"), arg("threads"), arg("work"),
          "Calls work(item, thread) for every item, on at most `threads` threads; torch takes one within each.");
    m.def("centre", &py_centre, arg("x"), arg("b_dec"), arg("centred"), arg("threads"), arg("isa") = "auto",
          "x [B, D], b_dec [D] -> centred [B, D] = x - b_dec; returns the sum of ||x - mean||^2.");
    m.def("decode_error", &py_decode_error, arg("acts"), arg("indices"), arg("row_offsets").none(true),
          arg("W_dec"), arg("b_dec"), arg("x"), arg("error"), arg("squares"), arg("threads"),
          arg("isa") = "auto", "Spec: saefast.reference.decode_error; error [B, D] and squares [B] are written.");
    m.def("group_by_latent", &py_group, arg("acts"), arg("indices"), arg("row_offsets").none(true),
          arg("offsets"), arg("pairs"), arg("tokens"), arg("threads"),
          "Spec: saefast.reference.group_by_latent; offsets [F + 1], pairs [N], tokens [N] are written.");
    m.def("sort_code", &py_sort_code, arg("acts"), arg("indices"), arg("row_offsets"), arg("rows"), arg("offsets"),
          arg("slots"), arg("sorted_acts"), arg("threads"),
          "A ragged code sorted by latent: offsets [F + 1], and the slot of the row and the act of each entry, are written.");
    m.def("sum_entries", &py_sum_entries, arg("offsets"), arg("pairs"), arg("per_pair"), arg("sums"),
          arg("threads"), "Spec: saefast.reference.sum_entries; sums [F] are written.");
    m.def("grad_top_acts", &py_grad_top_acts, arg("error"), arg("W_dec"), arg("acts"), arg("indices"),
          arg("row_offsets").none(true), arg("grads"), arg("threads"), arg("isa") = "auto",
          "Spec: saefast.reference.grad_top_acts; grads, in the shape of acts, are written.");
}

}  // namespace saefast
