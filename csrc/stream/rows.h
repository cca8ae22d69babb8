// What is done with single rows: checking that they are finite, copying them, converting them to fp32.
#pragma once

#include <cstddef>
#include <cstdint>

namespace saefast::stream {

enum class DType { f16, bf16, f32, f64 };

inline std::size_t size_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

// The functions for one dtype: the fastest ones that this processor can run. Rows need no alignment.
struct RowOps {
    bool (*finite)(const std::uint8_t* row, std::size_t n);
    void (*widen)(const std::uint8_t* row, std::size_t n, std::uint8_t* out);  // to fp32, exact but for f64
};

RowOps row_ops(DType dtype, bool plain = false);

// Copies a row to memory that is not read soon. Rows that are whole cache lines go around the cache, which saves reading
// every line that is overwritten; `out` must then be aligned to a cache line. Call `copies_done` before another thread
// reads the copies.
using CopyRow = void (*)(const std::uint8_t* row, std::size_t bytes, std::uint8_t* out);
CopyRow copy_row(std::size_t row_bytes);
void copies_done();

// Fetches a row that is needed soon into the second-level cache. More lines can be on their way to that cache than to the
// first-level one: 1.5 times as many rows a second were measured on Zen 4.
inline void prefetch_row(const std::uint8_t* row, std::size_t bytes) {
#ifdef __GNUC__
    for (std::size_t i = 0; i < bytes; i += 64) __builtin_prefetch(row + i, 0, 2);
#else
    static_cast<void>(row), static_cast<void>(bytes);
#endif
}

}  // namespace saefast::stream
