#include "candidates.h"

#include <algorithm>

#include "rank.h"

namespace saefast {
namespace {

SAEFAST_INLINE float upper_of(float approx, size_t j, const Errors& e) {
    return approx + e.by_norm * e.norm[j] + e.by_rest * e.rest[j] + e.bias_error;
}

// What `upper` of latent j must do. A NaN does both: it excludes nothing.
struct Reach {
    float bound;
    bool operator()(float upper, size_t) const { return !(upper < bound); }
#ifdef SAEFAST_X86
    SAEFAST_AVX512 SAEFAST_INLINE unsigned operator()(__m512 upper, size_t) const {
        return _mm512_cmp_ps_mask(upper, _mm512_set1_ps(bound), _CMP_NLT_UQ);
    }
    SAEFAST_AVX2 SAEFAST_INLINE unsigned operator()(__m256 upper, size_t) const {
        return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(upper, _mm256_set1_ps(bound), _CMP_NLT_UQ)));
    }
#endif
};
struct Exceed {
    const float* thresholds;
    bool operator()(float upper, size_t j) const { return !(upper <= thresholds[j]); }
#ifdef SAEFAST_X86
    SAEFAST_AVX512 SAEFAST_INLINE unsigned operator()(__m512 upper, size_t j) const {
        return _mm512_cmp_ps_mask(upper, _mm512_loadu_ps(thresholds + j), _CMP_NLE_UQ);
    }
    SAEFAST_AVX2 SAEFAST_INLINE unsigned operator()(__m256 upper, size_t j) const {
        const __m256 above = _mm256_cmp_ps(upper, _mm256_loadu_ps(thresholds + j), _CMP_NLE_UQ);
        return static_cast<unsigned>(_mm256_movemask_ps(above));
    }
#endif
};

// Candidates among the next columns.
template <typename Test>
SAEFAST_INLINE void collect_plain(const float* approx, size_t columns, size_t first, const Errors& e, Test test,
                                  Candidates& c) {
    for (size_t begin = 0; begin < columns; begin += LANES) {
        const size_t end = std::min(columns, begin + LANES);
        if (end == begin + LANES) {  // whether any is one: a loop that compilers vectorise; a hit is rare
            int any = 0;
            for (size_t i = 0; i < LANES; ++i) {
                any |= test(upper_of(approx[begin + i], first + begin + i, e), first + begin + i);
            }
            if (!any) continue;
        }
        for (size_t j = begin; j < end; ++j) {
            const float upper = upper_of(approx[j], first + j, e);
            if (!test(upper, first + j)) continue;
            c.approx[c.n] = approx[j], c.upper[c.n] = upper, c.indices[c.n] = static_cast<int32_t>(first + j);
            ++c.n;
        }
    }
}

#ifdef SAEFAST_X86
// As many vectors at a time as there are columns for. Whether any of four has a hit is foreseen better than for each.
template <size_t AT_ONCE, typename Test>
SAEFAST_AVX512 SAEFAST_INLINE size_t some_avx512(const float* approx, size_t j, size_t columns, size_t first,
                                                 const Errors& e, Test test, Candidates& c) {
    const __m512 by_norm = _mm512_set1_ps(e.by_norm), by_rest = _mm512_set1_ps(e.by_rest);
    const __m512 bias_error = _mm512_set1_ps(e.bias_error);
    float *const approxes = c.approx, *const uppers = c.upper;
    const float *const norms = e.norm + first, *const rests = e.rest + first;
    int32_t* const indices = c.indices;
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    size_t n = c.n;
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
            hits[i] = static_cast<__mmask16>(test(upper[i], first + at));
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
    return j;
}

template <typename Test>
SAEFAST_AVX512 SAEFAST_INLINE void collect_avx512(const float* approx, size_t columns, size_t first, const Errors& e,
                                                  Test test, Candidates& c) {
    size_t j = some_avx512<4>(approx, 0, columns, first, e, test, c);
    j = some_avx512<1>(approx, j, columns, first, e, test, c);
    collect_plain(approx + j, columns - j, first + j, e, test, c);
}

template <typename Test>
SAEFAST_AVX2 SAEFAST_INLINE void collect_avx2(const float* approx, size_t columns, size_t first, const Errors& e,
                                              Test test, Candidates& c) {
    constexpr size_t AT_ONCE = 4, WIDTH = 8;
    const __m256 by_norm = _mm256_set1_ps(e.by_norm), by_rest = _mm256_set1_ps(e.by_rest);
    const __m256 bias_error = _mm256_set1_ps(e.bias_error);
    size_t j = 0;
    for (; j + AT_ONCE * WIDTH <= columns; j += AT_ONCE * WIDTH) {
        alignas(32) float upper[AT_ONCE * WIDTH];
        unsigned hits = 0;
        for (size_t i = 0; i < AT_ONCE; ++i) {
            const size_t at = j + i * WIDTH;
            const __m256 value = _mm256_add_ps(_mm256_loadu_ps(approx + at), bias_error);
            const __m256 sum = _mm256_fmadd_ps(by_norm, _mm256_loadu_ps(e.norm + first + at),
                                               _mm256_fmadd_ps(by_rest, _mm256_loadu_ps(e.rest + first + at), value));
            _mm256_store_ps(upper + i * WIDTH, sum);
            hits |= test(sum, first + at) << (i * WIDTH);
        }
        for (; hits; hits &= hits - 1) {
            const size_t i = static_cast<size_t>(__builtin_ctz(hits));
            c.approx[c.n] = approx[j + i], c.upper[c.n] = upper[i];
            c.indices[c.n++] = static_cast<int32_t>(first + j + i);
        }
    }
    collect_plain(approx + j, columns - j, first + j, e, test, c);
}
#endif

// Only candidates from `begin` on that reach the bound stay.
SAEFAST_INLINE void forget(size_t begin, Candidates& c) {
    size_t kept = begin;
    for (size_t i = begin; i < c.n; ++i) {
        c.approx[kept] = c.approx[i], c.upper[kept] = c.upper[i], c.indices[kept] = c.indices[i];
        kept += !(c.upper[i] < c.bound);
    }
    c.n = c.tightened = kept;
}

// Raise the bound to the K-th largest less the margin, and forget those that do not reach it.
SAEFAST_INLINE void tighten(const Errors& e, size_t K, Candidates& c) {
    if (c.n >= K) c.bound = std::max(c.bound, bound_of(c.approx, c.n, K) - e.margin);
    forget(0, c);
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
    collect(approx, columns, first, e, Reach{c.bound}, c);
    if (c.n > 2 * c.tightened + 4 * K) tighten(e, K, c);  // before many come that will not stay
}

template <typename Collect, typename Test>
SAEFAST_INLINE void take_in_all(const float* approx, size_t columns, size_t first, const Errors& e, size_t limit,
                                Collect collect, Test test, Candidates& c) {
    c.wide = c.wide || c.n > limit;
    if (!c.wide) collect(approx, columns, first, e, test, c);
}

// `tightened`: the candidates of earlier groups.
template <typename Collect>
SAEFAST_INLINE void take_in_grouped(const float* approx, size_t columns, size_t first, const Errors& e, size_t group,
                                    size_t limit, Collect collect, Candidates& c) {
    c.wide = c.wide || c.n > limit;
    if (c.wide) return;
    for (size_t j = 0; j < columns;) {
        const size_t seen = (first + j) % group, end = std::min(columns, j + group - seen);
        float largest = approx[j];
        for (size_t i = j; i < end; ++i) largest = approx[i] > largest ? approx[i] : largest;
        c.bound = seen ? std::max(c.bound, largest - e.margin) : largest - e.margin;
        collect(approx + j, end - j, first + j, e, Reach{c.bound}, c);
        if (seen + end - j == group) forget(c.tightened, c);
        j = end;
    }
}

struct Functions {
    void (*take_in)(const float*, size_t, size_t, const Errors&, size_t, size_t, float*, Candidates&);
    void (*tighten)(const Errors&, size_t, Candidates&);
    void (*reaching)(const float*, size_t, size_t, const Errors&, size_t, Candidates&);
    void (*above)(const float*, size_t, size_t, const Errors&, size_t, const float*, Candidates&);
    void (*groups)(const float*, size_t, size_t, const Errors&, size_t, size_t, Candidates&);
};

#define SAEFAST_CANDIDATES(ATTRIBUTE, SUFFIX)                                                                      \
    struct Collect_##SUFFIX {                                                                                      \
        template <typename Test>                                                                                   \
        ATTRIBUTE void operator()(const float* approx, size_t columns, size_t first, const Errors& e, Test test,   \
                                  Candidates& c) const {                                                           \
            collect_##SUFFIX(approx, columns, first, e, test, c);                                                  \
        }                                                                                                          \
    };                                                                                                             \
    ATTRIBUTE void take_in_##SUFFIX(const float* approx, size_t columns, size_t first, const Errors& e, size_t K,  \
                                    size_t limit, float* maxima, Candidates& c) {                                  \
        take_in_row(approx, columns, first, e, K, limit, Collect_##SUFFIX{}, maxima, c);                           \
    }                                                                                                              \
    ATTRIBUTE void tighten_##SUFFIX(const Errors& e, size_t K, Candidates& c) { tighten(e, K, c); }                \
    ATTRIBUTE void reaching_##SUFFIX(const float* approx, size_t columns, size_t first, const Errors& e,           \
                                     size_t limit, Candidates& c) {                                                \
        take_in_all(approx, columns, first, e, limit, Collect_##SUFFIX{}, Reach{c.bound}, c);                      \
    }                                                                                                              \
    ATTRIBUTE void above_##SUFFIX(const float* approx, size_t columns, size_t first, const Errors& e,              \
                                  size_t limit, const float* thresholds, Candidates& c) {                          \
        take_in_all(approx, columns, first, e, limit, Collect_##SUFFIX{}, Exceed{thresholds}, c);                  \
    }                                                                                                              \
    ATTRIBUTE void groups_##SUFFIX(const float* approx, size_t columns, size_t first, const Errors& e,             \
                                   size_t group, size_t limit, Candidates& c) {                                    \
        take_in_grouped(approx, columns, first, e, group, limit, Collect_##SUFFIX{}, c);                           \
    }                                                                                                              \
    constexpr Functions functions_##SUFFIX{take_in_##SUFFIX, tighten_##SUFFIX, reaching_##SUFFIX, above_##SUFFIX,  \
                                           groups_##SUFFIX};

SAEFAST_CANDIDATES(, plain)
#ifdef SAEFAST_X86
SAEFAST_CANDIDATES(SAEFAST_AVX2, avx2)
SAEFAST_CANDIDATES(SAEFAST_AVX512, avx512)
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

void take_in_reaching(const float* approx, size_t columns, size_t first, const Errors& errors, size_t limit, Isa isa,
                      Candidates& candidates) {
    functions_for(isa).reaching(approx, columns, first, errors, limit, candidates);
}

void take_in_above(const float* approx, size_t columns, size_t first, const Errors& errors, const float* thresholds,
                   size_t limit, Isa isa, Candidates& candidates) {
    functions_for(isa).above(approx, columns, first, errors, limit, thresholds, candidates);
}

void take_in_groups(const float* approx, size_t columns, size_t first, const Errors& errors, size_t group,
                    size_t limit, Isa isa, Candidates& candidates) {
    functions_for(isa).groups(approx, columns, first, errors, group, limit, candidates);
}

}  // namespace saefast
