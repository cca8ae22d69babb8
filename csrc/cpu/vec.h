// Sixteen floats as one value.
#pragma once

#include <cstddef>

#define SAEFAST_INLINE inline __attribute__((always_inline))

namespace saefast {

constexpr std::size_t LANES = 16;

// In registers of BYTES: one of AVX-512, two of AVX2, four of SSE or NEON. Lane by lane they do the same. (A vector that is
// longer than a register is kept in memory by gcc, not in registers: up to 7 times as slow.)
template <std::size_t BYTES>
struct Floats {
    typedef float Register __attribute__((vector_size(BYTES)));
    typedef float Unaligned __attribute__((vector_size(BYTES), aligned(4), may_alias));
    static constexpr std::size_t EACH = BYTES / 4, N = LANES / EACH;

    Register parts[N];

    static SAEFAST_INLINE Floats zero() {  // an array of them that is set to {} becomes a call or a slow instruction
        Floats v;
#pragma GCC unroll 4
        for (std::size_t i = 0; i < N; ++i) v.parts[i] = Register{};
        return v;
    }
    static SAEFAST_INLINE Floats load(const float* from) {
        Floats v;
#pragma GCC unroll 4
        for (std::size_t i = 0; i < N; ++i) v.parts[i] = *reinterpret_cast<const Unaligned*>(from + i * EACH);
        return v;
    }
    SAEFAST_INLINE void store(float* to) const {
#pragma GCC unroll 4
        for (std::size_t i = 0; i < N; ++i) *reinterpret_cast<Unaligned*>(to + i * EACH) = parts[i];
    }
    // this += a * b
    SAEFAST_INLINE void add(const Floats& a, const Floats& b) {
#pragma GCC unroll 4
        for (std::size_t i = 0; i < N; ++i) parts[i] += a.parts[i] * b.parts[i];
    }
    SAEFAST_INLINE void add(float a, const Floats& b) {
#pragma GCC unroll 4
        for (std::size_t i = 0; i < N; ++i) parts[i] += a * b.parts[i];
    }
    SAEFAST_INLINE void operator+=(const Floats& b) {
#pragma GCC unroll 4
        for (std::size_t i = 0; i < N; ++i) parts[i] += b.parts[i];
    }
    SAEFAST_INLINE Floats operator+(const Floats& b) const {
        Floats v = *this;
        v += b;
        return v;
    }
    SAEFAST_INLINE Floats operator-(const Floats& b) const {
        Floats v;
#pragma GCC unroll 4
        for (std::size_t i = 0; i < N; ++i) v.parts[i] = parts[i] - b.parts[i];
        return v;
    }
    SAEFAST_INLINE Floats operator*(const Floats& b) const {
        Floats v;
#pragma GCC unroll 4
        for (std::size_t i = 0; i < N; ++i) v.parts[i] = parts[i] * b.parts[i];
        return v;
    }
    // this = max(this, |b|); a NaN is never larger
    SAEFAST_INLINE void raise_to_size_of(const Floats& b) {
#pragma GCC unroll 4
        for (std::size_t i = 0; i < N; ++i) {
            const Register size = b.parts[i] < 0 ? -b.parts[i] : b.parts[i];
            parts[i] = size > parts[i] ? size : parts[i];
        }
    }
};

// The sum of the lanes, always in the same order: upper half to lower half, again and again.
template <std::size_t BYTES>
SAEFAST_INLINE float sum(const Floats<BYTES>& v) {
    Floats<BYTES> folded = v;
#pragma GCC unroll 2
    for (std::size_t n = Floats<BYTES>::N / 2; n > 0; n /= 2) {
#pragma GCC unroll 2
        for (std::size_t i = 0; i < n; ++i) folded.parts[i] += folded.parts[i + n];
    }
    float s[Floats<BYTES>::EACH];
    __builtin_memcpy(s, &folded.parts[0], sizeof s);
    if constexpr (BYTES >= 64) {
#pragma GCC unroll 8
        for (std::size_t i = 0; i < 8; ++i) s[i] += s[i + 8];
    }
    if constexpr (BYTES >= 32) {
#pragma GCC unroll 4
        for (std::size_t i = 0; i < 4; ++i) s[i] += s[i + 4];
    }
    return (s[0] + s[2]) + (s[1] + s[3]);
}

}  // namespace saefast
