#include "candidates.h"

#include <algorithm>

#include "rank.h"

namespace saefast {
namespace {

// Candidates among the next columns.
SAEFAST_INLINE void collect_plain(const float* approx, size_t columns, size_t first, const Errors& e, Candidates& c) {
    for (size_t j = 0; j < columns; ++j) {
        const float upper = approx[j] + e.by_norm * e.norm[first + j] + e.by_rest * e.rest[first + j] + e.bias_error;
        if (upper < c.bound) continue;
        c.approx[c.n] = approx[j], c.upper[c.n] = upper, c.indices[c.n] = static_cast<int32_t>(first + j);
        ++c.n;
    }
}

#ifdef SAEFAST_X86
SAEFAST_AVX512
inline void collect_avx512(const float* approx, size_t columns, size_t first, const Errors& e, Candidates& c) {
    const __m512 by_norm = _mm512_set1_ps(e.by_norm), by_rest = _mm512_set1_ps(e.by_rest);
    const __m512 bias_error = _mm512_set1_ps(e.bias_error), bound = _mm512_set1_ps(c.bound);
    float *const approxes = c.approx, *const uppers = c.upper;
    const float *const norms = e.norm + first, *const rests = e.rest + first;
    int32_t* const indices = c.indices;
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    constexpr size_t AT_ONCE = 4;  // vectors: whether any of them has a hit is foreseen better than for each
    size_t n = c.n, j = 0;
    for (; j + AT_ONCE * LANES <= columns; j += AT_ONCE * LANES) {
        __m512 value[AT_ONCE], upper[AT_ONCE];
        __mmask16 hits[AT_ONCE];
        unsigned any = 0;
        for (size_t i = 0; i < AT_ONCE; ++i) {
            const size_t at = j + i * LANES;
            value[i] = _mm512_loadu_ps(approx + at);
            upper[i] = _mm512_fmadd_ps(by_norm, _mm512_loadu_ps(norms + at),
                                       _mm512_fmadd_ps(by_rest, _mm512_loadu_ps(rests + at),
                                                       _mm512_add_ps(value[i], bias_error)));
            hits[i] = _mm512_cmp_ps_mask(upper[i], bound, _CMP_NLT_UQ);
            any |= hits[i];
        }
        if (!any) continue;
        for (size_t i = 0; i < AT_ONCE; ++i) {
            const __m512i index = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(first + j + i * LANES)));
            // whole vectors: stores under a mask that compress take Zen 4 more than a hundred cycles
            _mm512_storeu_ps(approxes + n, _mm512_maskz_compress_ps(hits[i], value[i]));
            _mm512_storeu_ps(uppers + n, _mm512_maskz_compress_ps(hits[i], upper[i]));
            _mm512_storeu_si512(indices + n, _mm512_maskz_compress_epi32(hits[i], index));
            n += static_cast<size_t>(__builtin_popcount(hits[i]));
        }
    }
    c.n = n;
    collect_plain(approx + j, columns - j, first + j, e, c);
}
#endif

#ifdef SAEFAST_X86
SAEFAST_AVX2
inline void collect_avx2(const float* approx, size_t columns, size_t first, const Errors& e, Candidates& c) {
    const __m256 by_norm = _mm256_set1_ps(e.by_norm), by_rest = _mm256_set1_ps(e.by_rest);
    const __m256 bias_error = _mm256_set1_ps(e.bias_error), bound = _mm256_set1_ps(c.bound);
    const float *const norms = e.norm + first, *const rests = e.rest + first;
    constexpr size_t AT_ONCE = 32;
    float uppers[AT_ONCE];
    size_t n = c.n, j = 0;
    for (; j + AT_ONCE <= columns; j += AT_ONCE) {
        uint32_t hits = 0;
        for (size_t i = 0; i < AT_ONCE; i += 8) {
            const size_t at = j + i;
            const __m256 upper = _mm256_fmadd_ps(
                by_norm, _mm256_loadu_ps(norms + at),
                _mm256_fmadd_ps(by_rest, _mm256_loadu_ps(rests + at),
                                _mm256_add_ps(_mm256_loadu_ps(approx + at), bias_error)));
            _mm256_storeu_ps(uppers + i, upper);
            hits |= static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(upper, bound, _CMP_NLT_UQ))) << i;
        }
        for (; hits; hits &= hits - 1) {
            const auto i = static_cast<size_t>(__builtin_ctz(hits));
            c.approx[n] = approx[j + i], c.upper[n] = uppers[i], c.indices[n] = static_cast<int32_t>(first + j + i);
            ++n;
        }
    }
    c.n = n;
    collect_plain(approx + j, columns - j, first + j, e, c);
}
#endif

// Raise the bound to the K-th largest less the margin, and forget those that do not reach it.
SAEFAST_INLINE void tighten(const Errors& e, size_t K, Candidates& c) {
    if (c.n >= K) c.bound = std::max(c.bound, bound_of(c.approx, c.n, K) - e.margin);
    size_t kept = 0;
    for (size_t i = 0; i < c.n; ++i) {
        c.approx[kept] = c.approx[i], c.upper[kept] = c.upper[i], c.indices[kept] = c.indices[i];
        kept += !(c.upper[i] < c.bound);
    }
    c.n = c.tightened = kept;
}

template <typename Collect>
SAEFAST_INLINE void take_in_row(const float* approx, size_t columns, size_t first, const Errors& e, size_t K,
                                size_t limit, Collect collect, float* maxima, Candidates& c) {
    if (c.wide) return;
    if (first == 0 && 2 * group_count(K) <= columns) {
        c.bound = bound_by_maxima(approx, columns, K, maxima, group_count(K)) - e.margin;
    }
    if (c.n > limit) tighten(e, K, c);
    if (c.n > limit) {
        c.wide = true;
        return;
    }
    collect(approx, columns, first, e, c);
    if (c.n > 2 * c.tightened + 4 * K) tighten(e, K, c);  // before many come that will not stay
}

struct Functions {
    void (*take_in)(const float*, size_t, size_t, const Errors&, size_t, size_t, float*, Candidates&);
    void (*tighten)(const Errors&, size_t, Candidates&);
};

#define SAEFAST_CANDIDATES(ATTRIBUTE, SUFFIX, COLLECT)                                                             \
    ATTRIBUTE void take_in_##SUFFIX(const float* approx, size_t columns, size_t first, const Errors& e, size_t K,  \
                                    size_t limit, float* maxima, Candidates& c) {                                  \
        take_in_row(approx, columns, first, e, K, limit, COLLECT, maxima, c);                                      \
    }                                                                                                              \
    ATTRIBUTE void tighten_##SUFFIX(const Errors& e, size_t K, Candidates& c) { tighten(e, K, c); }                \
    constexpr Functions functions_##SUFFIX{take_in_##SUFFIX, tighten_##SUFFIX};

SAEFAST_CANDIDATES(, plain, collect_plain)
#ifdef SAEFAST_X86
SAEFAST_CANDIDATES(SAEFAST_AVX2, avx2, collect_avx2)
SAEFAST_CANDIDATES(SAEFAST_AVX512, avx512, collect_avx512)
#endif

const Functions& functions_for([[maybe_unused]] Isa isa) {
#ifdef SAEFAST_X86
    return *pick(isa, &functions_avx512, &functions_avx2, &functions_plain);
#else
    return functions_plain;
#endif
}

}  // namespace

void take_in(const float* approx, size_t columns, size_t first, const Errors& errors, size_t K, size_t limit, Isa isa,
             float* maxima, Candidates& candidates) {
    functions_for(isa).take_in(approx, columns, first, errors, K, limit, maxima, candidates);
}

void finish(const Errors& errors, size_t K, size_t limit, Isa isa, Candidates& candidates) {
    if (candidates.wide) return;
    functions_for(isa).tighten(errors, K, candidates);
    candidates.wide = candidates.n > limit || candidates.n < K;
}

}  // namespace saefast
