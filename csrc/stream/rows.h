// What is done to single rows: are they finite, and as fp32.
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

}  // namespace saefast::stream
