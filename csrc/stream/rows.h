// What is done to single rows: are they finite, copied, and as fp32.
#pragma once

#include <cstddef>
#include <cstdint>

namespace saefast::stream {

enum class DType { f16, bf16, f32, f64 };

inline std::size_t size_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

// The functions for one dtype, the fastest that this processor runs. Rows need no alignment.
struct RowOps {
    bool (*finite)(const std::uint8_t* row, std::size_t n);
    void (*widen)(const std::uint8_t* row, std::size_t n, std::uint8_t* out);  // to fp32, exact but for f64
};

RowOps row_ops(DType dtype, bool plain = false);

// Copies a row to memory that is not read soon: around the cache where rows are whole cache lines, which saves
// reading every line that is about to be overwritten. `out` is then aligned to one. Before another thread may
// read: `copies_done`.
using CopyRow = void (*)(const std::uint8_t* row, std::size_t bytes, std::uint8_t* out);
CopyRow copy_row(std::size_t row_bytes);
void copies_done();

// Asks for a row that is needed soon, into the second-level cache: more lines can be on their way there than to the
// first, 1.5 times as many rows a second on Zen 4.
inline void prefetch_row(const std::uint8_t* row, std::size_t bytes) {
#ifdef __GNUC__
    for (std::size_t i = 0; i < bytes; i += 64) __builtin_prefetch(row + i, 0, 2);
#else
    static_cast<void>(row), static_cast<void>(bytes);
#endif
}

}  // namespace saefast::stream
