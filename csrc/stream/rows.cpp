#include "rows.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#define SAEFAST_X86 1
#include <immintrin.h>
#endif
#ifdef __GNUC__
#define SAEFAST_INLINE inline __attribute__((always_inline))
#else
#define SAEFAST_INLINE inline
#endif

namespace saefast::stream {
namespace {

using std::int16_t;
using std::int32_t;
using std::int64_t;
using std::size_t;
using std::uint16_t;
using std::uint32_t;
using std::uint8_t;

template <typename T>
SAEFAST_INLINE T load(const uint8_t* row, size_t i) {
    T value;
    std::memcpy(&value, row + i * sizeof(T), sizeof(T));
    return value;
}

// The largest magnitude, as an integer, against that of infinity: a loop that compilers vectorise.
template <typename T, T MAGNITUDE, T INFINITE>
SAEFAST_INLINE bool finite(const uint8_t* row, size_t n) {
    T largest = 0;
    for (size_t i = 0; i < n; ++i) largest = std::max<T>(largest, load<T>(row, i) & MAGNITUDE);
    return largest < INFINITE;
}

float from_half(uint16_t half) {
    const uint32_t sign = uint32_t{half} >> 15 << 31, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 0) {  // zero or subnormal: fraction * 2^-24 is exact
        const float value = static_cast<float>(fraction) * 5.9604644775390625e-8f;
        return sign ? -value : value;
    }
    const uint32_t bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

void widen_f16(const uint8_t* row, size_t n, uint8_t* out) {
    for (size_t i = 0; i < n; ++i) {
        const float value = from_half(load<uint16_t>(row, i));
        std::memcpy(out + 4 * i, &value, 4);
    }
}

void widen_bf16(const uint8_t* row, size_t n, uint8_t* out) {
    for (size_t i = 0; i < n; ++i) {
        const uint32_t bits = uint32_t{load<uint16_t>(row, i)} << 16;
        std::memcpy(out + 4 * i, &bits, 4);
    }
}

void widen_f32(const uint8_t* row, size_t n, uint8_t* out) { std::memcpy(out, row, 4 * n); }

void widen_f64(const uint8_t* row, size_t n, uint8_t* out) {
    for (size_t i = 0; i < n; ++i) {
        const float value = static_cast<float>(load<double>(row, i));
        std::memcpy(out + 4 * i, &value, 4);
    }
}

#define SAEFAST_FINITE(TARGET, SUFFIX)                                                                       \
    TARGET bool finite_f16##SUFFIX(const uint8_t* row, size_t n) {                                           \
        return finite<int16_t, 0x7FFF, 0x7C00>(row, n);                                                      \
    }                                                                                                        \
    TARGET bool finite_bf16##SUFFIX(const uint8_t* row, size_t n) {                                          \
        return finite<int16_t, 0x7FFF, 0x7F80>(row, n);                                                      \
    }                                                                                                        \
    TARGET bool finite_f32##SUFFIX(const uint8_t* row, size_t n) {                                           \
        return finite<int32_t, 0x7FFFFFFF, 0x7F800000>(row, n);                                              \
    }
SAEFAST_FINITE(, )
bool finite_f64(const uint8_t* row, size_t n) {
    return finite<int64_t, 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000>(row, n);
}

#ifdef SAEFAST_X86
SAEFAST_FINITE(__attribute__((target("avx2"))), _avx2)

__attribute__((target("avx,f16c")))
void widen_f16_f16c(const uint8_t* row, size_t n, uint8_t* out) {
    const bool aligned = reinterpret_cast<std::uintptr_t>(out) % 32 == 0;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + 2 * i));
        auto* to = reinterpret_cast<float*>(out + 4 * i);
        if (aligned) {
            _mm256_stream_ps(to, _mm256_cvtph_ps(half));
        } else {
            _mm256_storeu_ps(to, _mm256_cvtph_ps(half));
        }
    }
    widen_f16(row + 2 * i, n - i, out + 4 * i);
}

__attribute__((target("avx")))
void copy_around_cache(const uint8_t* row, size_t bytes, uint8_t* out) {
    const auto* from = reinterpret_cast<const __m256i*>(row);
    auto* to = reinterpret_cast<__m256i*>(out);
    for (size_t i = 0; i < bytes / 32; i += 2) {
        const __m256i a = _mm256_loadu_si256(from + i), b = _mm256_loadu_si256(from + i + 1);
        _mm256_stream_si256(to + i, a);
        _mm256_stream_si256(to + i + 1, b);
    }
}
#endif

void copy_through_cache(const uint8_t* row, size_t bytes, uint8_t* out) { std::memcpy(out, row, bytes); }

}  // namespace

CopyRow copy_row(size_t row_bytes) {
#ifdef SAEFAST_X86
    if (row_bytes % 64 == 0 && __builtin_cpu_supports("avx")) return copy_around_cache;
#endif
    static_cast<void>(row_bytes);
    return copy_through_cache;
}

void copies_done() {
#ifdef SAEFAST_X86
    _mm_sfence();  // such stores are not ordered with others, those of a mutex for one
#endif
}

RowOps row_ops(DType dtype, bool plain) {
    RowOps ops = dtype == DType::f16    ? RowOps{finite_f16, widen_f16}
                 : dtype == DType::bf16 ? RowOps{finite_bf16, widen_bf16}
                 : dtype == DType::f32  ? RowOps{finite_f32, widen_f32}
                                        : RowOps{finite_f64, widen_f64};
#ifdef SAEFAST_X86
    if (!plain && __builtin_cpu_supports("avx2")) {
        if (dtype == DType::f16) ops.finite = finite_f16_avx2;
        if (dtype == DType::bf16) ops.finite = finite_bf16_avx2;
        if (dtype == DType::f32) ops.finite = finite_f32_avx2;
        if (dtype == DType::f16 && __builtin_cpu_supports("f16c")) ops.widen = widen_f16_f16c;
    }
#else
    (void)plain;
#endif
    return ops;
}

}  // namespace saefast::stream
