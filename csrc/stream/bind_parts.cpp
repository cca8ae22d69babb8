// The bindings of the pieces of the streaming buffer, for tests and benchmarks.
#include "bind_parts.h"

#include <cstdint>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "../checks.h"
#include "buffer.h"
#include "draw.h"
#include "sha256.h"

namespace saefast {

using namespace stream;
using std::uint64_t;
using std::uint8_t;

namespace {

// Parts of at most 256 rows go to `threads` threads in turn, as in the buffer.
void gather(const py::array& rows_any, const py::array& index_any, const py::array& out_any, uint64_t d_in,
            const std::string& dtype, bool widen, int threads) {
    const DType d = parse_dtype(dtype);
    if (d_in >> 60) throw py::value_error("d_in: expected less than 2^60, got " + std::to_string(d_in));
    const auto rows = checked<uint8_t>(rows_any, "rows", 2), out = checked<uint8_t>(out_any, "out", 2);
    const auto index = checked<std::int64_t>(index_any, "index", 1);
    const auto n = static_cast<uint64_t>(index.shape(0));
    const auto out_bytes = static_cast<py::ssize_t>(d_in * (widen ? 4 : size_of(d)));
    if (rows.shape(1) != static_cast<py::ssize_t>(d_in * size_of(d)) || out.shape(0) != index.shape(0) ||
        out.shape(1) != out_bytes || !out.writeable() || threads < 1 || threads > 64) {
        throw py::value_error("out: expected a writeable array [len(index), " + std::to_string(out_bytes) +
                              "], rows [n, d_in] and 1 to 64 threads");
    }
    check_apart({memory_of("out", out)}, {memory_of("rows", rows), memory_of("index", index)});
    std::vector<const uint8_t*> from(n);
    for (uint64_t i = 0; i < n; ++i) {
        const std::int64_t row = index.data()[i];
        if (row < 0 || row >= rows.shape(0)) {
            throw py::value_error("index: expected rows below " + std::to_string(rows.shape(0)) + ", got " +
                                  std::to_string(row));
        }
        from[i] = rows.data() + row * rows.shape(1);
    }
    auto* to = static_cast<uint8_t*>(const_cast<void*>(static_cast<const void*>(out.data())));
    constexpr uint64_t PART = 256;
    const auto work = [&](uint64_t which) {
        for (uint64_t i = which * PART; i < n; i += PART * static_cast<uint64_t>(threads)) {
            gather_rows(from.data() + i, std::min(PART, n - i), d_in, d, widen,
                        to + i * static_cast<uint64_t>(out_bytes));
        }
    };
    const py::gil_scoped_release release;
    std::vector<std::thread> others;
    others.reserve(static_cast<std::size_t>(threads));
    for (int i = 1; i < threads; ++i) {
        try {
            others.emplace_back(work, i);
        } catch (const std::system_error&) {  // no thread to be had: this one does its part
            work(static_cast<uint64_t>(i));
        }
    }
    work(0);
    for (std::thread& thread : others) thread.join();
}

}  // namespace

void bind_stream_parts(py::module_& s) {
    s.def(
        "sha256",
        [](const py::bytes& data, bool plain) {
            const std::string_view view = data;
            Sha256 sha(plain);
            sha.update(view.data(), view.size());
            return sha.hex();
        },
        py::arg("data"), py::arg("plain") = false, "SHA-256 in hex; `plain` without the processor's instructions.");
    s.def(
        "widen",
        [](const py::array& row_any, const std::string& dtype, bool plain) {
            const auto row = checked<uint8_t>(row_any, "row", 1);
            const DType d = parse_dtype(dtype);
            const auto n = static_cast<std::size_t>(row.shape(0)) / size_of(d);
            py::array_t<float> out(static_cast<py::ssize_t>(n));
            const RowOps ops = row_ops(d, plain);
            ops.widen(row.data(), n, reinterpret_cast<uint8_t*>(out.mutable_data()));
            return py::make_tuple(out, ops.finite(row.data(), n));
        },
        py::arg("row"), py::arg("dtype"), py::arg("plain") = false,
        "row [bytes] uint8 -> its numbers in fp32, and whether all are finite; for tests.");
    s.def("gather", &gather, py::arg("rows"), py::arg("index"), py::arg("out"), py::kw_only(), py::arg("d_in"),
          py::arg("dtype"), py::arg("widen") = false, py::arg("threads") = 1,
          "rows [n, row bytes] uint8, index [m] int64 -> out [m, bytes of a row], in the dtype of the rows or in fp32.");
    s.def(
        "draw",
        [](uint64_t seed, uint64_t batch, uint64_t held, uint64_t n, bool plain) {
            if (held < 1 || held >> 62 || n > held) {
                throw py::value_error("held: expected 1 to 2^62 - 1 and n <= held, got " + std::to_string(held));
            }
            const std::vector<uint64_t> places = Draw(seed, batch, held)(n, plain);
            py::array_t<std::int64_t> out(static_cast<py::ssize_t>(n));
            std::copy(places.begin(), places.end(), out.mutable_data());
            return out;
        },
        py::arg("seed"), py::arg("batch"), py::arg("held"), py::arg("n"), py::arg("plain") = false,
        "As `saefast.activations.buffer.draw`; `plain` without the processor's vectors.");
}

}  // namespace saefast
