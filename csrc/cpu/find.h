// Which elements of a row reach a bound, sixty-four at a time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "isa.h"

#ifdef SAEFAST_X86
#include <immintrin.h>
#endif

namespace saefast {

using std::int32_t;
using std::size_t;
using std::uint64_t;

constexpr size_t BLOCK = 64;  // elements per compare, one bit each in a mask

// Floats as integers of the same order, with -0 just below 0.
SAEFAST_INLINE int32_t to_ordered(float value) {
    int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits < 0 ? bits ^ 0x7FFFFFFF : bits;
}

SAEFAST_INLINE float from_ordered(int32_t ordered) {
    const int32_t bits = ordered < 0 ? ordered ^ 0x7FFFFFFF : ordered;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// A find function returns the start i of the first block of row[begin, end) with elements not below `bound`,
// or `end`; bit j of `hits` is set if row[i + j] is one. A NaN is not below any bound: it is found at no
// cost.
SAEFAST_INLINE size_t find_plain(const float* row, size_t begin, size_t end, float bound, uint64_t& hits) {
    for (size_t i = begin; i < end; i += BLOCK) {
        const size_t length = std::min(BLOCK, end - i);
        int any = 0;  // first a loop that compilers vectorise; a block with a hit is rare
        for (size_t j = 0; j < length; ++j) any |= !(row[i + j] < bound);
        if (!any) continue;
        hits = 0;
        for (size_t j = 0; j < length; ++j) hits |= uint64_t{!(row[i + j] < bound)} << j;
        return i;
    }
    return end;
}

#ifdef SAEFAST_X86
SAEFAST_AVX512
inline size_t find_avx512(const float* row, size_t begin, size_t end, float bound, uint64_t& hits) {
    const __m512 bounds = _mm512_set1_ps(bound);
    size_t i = begin;
    for (; i + BLOCK <= end; i += BLOCK) {
        hits = 0;
        for (size_t j = 0; j < BLOCK; j += 16) {
            hits |= uint64_t{_mm512_cmp_ps_mask(_mm512_loadu_ps(row + i + j), bounds, _CMP_NLT_UQ)} << j;
        }
        if (hits) return i;
    }
    return find_plain(row, i, end, bound, hits);
}

SAEFAST_AVX2
inline size_t find_avx2(const float* row, size_t begin, size_t end, float bound, uint64_t& hits) {
    const __m256 bounds = _mm256_set1_ps(bound);
    size_t i = begin;
    for (; i + BLOCK <= end; i += BLOCK) {
        hits = 0;
        for (size_t j = 0; j < BLOCK; j += 8) {
            const __m256 hit = _mm256_cmp_ps(_mm256_loadu_ps(row + i + j), bounds, _CMP_NLT_UQ);
            hits |= uint64_t(_mm256_movemask_ps(hit)) << j;
        }
        if (hits) return i;
    }
    return find_plain(row, i, end, bound, hits);
}
#endif

// The same for bounds of their own, one for each element, that must be exceeded (or the element be a NaN).
SAEFAST_INLINE uint64_t above_plain(const float* row, const float* bounds, size_t length) {
    uint64_t hits = 0;
    for (size_t j = 0; j < length; ++j) hits |= uint64_t{!(row[j] <= bounds[j])} << j;
    return hits;
}

#ifdef SAEFAST_X86
SAEFAST_AVX512
inline uint64_t above_avx512(const float* row, const float* bounds, size_t length) {
    if (length < BLOCK) return above_plain(row, bounds, length);
    uint64_t hits = 0;
    for (size_t j = 0; j < BLOCK; j += 16) {
        const __mmask16 above =
            _mm512_cmp_ps_mask(_mm512_loadu_ps(row + j), _mm512_loadu_ps(bounds + j), _CMP_NLE_UQ);
        hits |= uint64_t{above} << j;
    }
    return hits;
}

SAEFAST_AVX2
inline uint64_t above_avx2(const float* row, const float* bounds, size_t length) {
    if (length < BLOCK) return above_plain(row, bounds, length);
    uint64_t hits = 0;
    for (size_t j = 0; j < BLOCK; j += 8) {
        const __m256 above = _mm256_cmp_ps(_mm256_loadu_ps(row + j), _mm256_loadu_ps(bounds + j), _CMP_NLE_UQ);
        hits |= uint64_t(_mm256_movemask_ps(above)) << j;
    }
    return hits;
}
#endif

}  // namespace saefast
