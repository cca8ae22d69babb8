// A row is read from memory once, and once more from cache. The first pass takes the maximum of each of
// about 4k groups of elements: the k-th largest maximum is a bound that at least k elements reach. The
// second collects the elements that reach it, about 1.15 k of a random row, and only these are ordered.
// Where more come than the buffer holds (ties, k near F), the k best are kept and the bound rises: every row
// takes linear time.

#include "topk.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <system_error>
#include <thread>

#if defined(__x86_64__) && defined(__GNUC__)
#define SAEFAST_X86 1
#include <immintrin.h>
#endif
#ifdef __GNUC__
#define SAEFAST_INLINE inline __attribute__((always_inline))
#else
#define SAEFAST_INLINE inline
#endif

namespace saefast {
namespace {

using std::int32_t;
using std::int64_t;
using std::size_t;
using std::uint32_t;
using std::uint64_t;

constexpr size_t BLOCK = 64;                // elements per compare, one bit each in a mask
constexpr size_t MIN_PER_THREAD = 1 << 20;  // elements, 0.2 to 0.4 ms of work: less is not worth a thread

size_t group_count(size_t K) { return (4 * K + BLOCK - 1) / BLOCK * BLOCK; }
size_t buffer_size(size_t K) { return 2 * K + 2 * BLOCK; }  // keeping the best K makes room for K + BLOCK

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

// A key is a value and its index in one integer: the larger value is larger, then the smaller index.
SAEFAST_INLINE int64_t make_key(float value, size_t index) {
    const int32_t ordered = to_ordered(value);
    const int64_t high = ordered == -1 ? 0 : ordered;  // -0 ties with 0
    return high * (int64_t{1} << 32) + static_cast<uint32_t>(~index);
}

SAEFAST_INLINE size_t index_of(int64_t key) { return static_cast<uint32_t>(~key); }
SAEFAST_INLINE int32_t ordered_of(int64_t key) { return static_cast<int32_t>(key >> 32); }

SAEFAST_INLINE int lowest_bit(uint64_t mask) {
#ifdef __GNUC__
    return __builtin_ctzll(mask);
#else
    int j = 0;
    while (!(mask >> j & 1)) ++j;
    return j;
#endif
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
__attribute__((target("avx512f")))
size_t find_avx512(const float* row, size_t begin, size_t end, float bound, uint64_t& hits) {
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

__attribute__((target("avx2")))
size_t find_avx2(const float* row, size_t begin, size_t end, float bound, uint64_t& hits) {
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

// A bound that at least K of the `groups` maxima of the row reach, and no more than K unless some are equal.
SAEFAST_INLINE float bound_by_maxima(const float* row, size_t F, size_t K, float* maxima, size_t groups) {
    std::fill(maxima, maxima + groups, -std::numeric_limits<float>::infinity());
    for (size_t i = 0; i + groups <= F; i += groups) {
        for (size_t j = 0; j < groups; ++j) {
            maxima[j] = row[i + j] > maxima[j] ? row[i + j] : maxima[j];  // a NaN is never larger
        }
    }
    // Bisection has no unpredictable branch: nth_element took 5 to 12 times as long.
    int64_t low = to_ordered(-std::numeric_limits<float>::infinity());
    int64_t high = to_ordered(std::numeric_limits<float>::infinity()) + int64_t{1};
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        const float bound = from_ordered(static_cast<int32_t>(middle));
        int32_t reached = 0;
        for (size_t j = 0; j < groups; ++j) reached += maxima[j] >= bound;
        (reached >= static_cast<int32_t>(K) ? low : high) = middle;
        if (reached == static_cast<int32_t>(K)) break;
    }
    return from_ordered(static_cast<int32_t>(low));
}

struct Workspace {
    std::vector<float> maxima;
    std::vector<int64_t> keys;
    explicit Workspace(size_t K) : maxima(group_count(K)), keys(buffer_size(K)) {}
};

// One row. Returns false if it holds a NaN. Inlined below into one function per instruction set, so that the
// compiler vectorises its loops for each.
template <typename Find>
SAEFAST_INLINE bool topk_row(const float* row, size_t F, size_t K, Find find, size_t rank_limit,
                             Workspace& space, float* top_acts, int32_t* top_indices) {
    int64_t* const keys = space.keys.data();
    const size_t capacity = space.keys.size(), groups = space.maxima.size();
    float bound = -std::numeric_limits<float>::infinity();
    if (2 * groups <= F) bound = bound_by_maxima(row, F, K, space.maxima.data(), groups);

    bool has_nan = false;
    size_t n = 0;
    for (size_t i = 0; i < F; i += BLOCK) {
        uint64_t hits;
        i = find(row, i, F, bound, hits);
        if (i >= F) break;
        if (n + BLOCK > capacity) {
            if (has_nan) return false;
            std::nth_element(keys, keys + K - 1, keys + n, std::greater<>{});
            n = K;
            // What comes later loses a tie with the K-th by index: from here it must be larger.
            bound = from_ordered(ordered_of(keys[K - 1]) + 1);
        }
        for (; hits; hits &= hits - 1) {
            const size_t index = i + lowest_bit(hits);
            has_nan |= row[index] != row[index];
            keys[n++] = make_key(row[index], index);
        }
    }
    if (has_nan) return false;

    const auto put = [&](size_t rank, int64_t key) {
        const size_t index = index_of(key);
        top_acts[rank] = std::max(row[index], 0.0f);  // as torch: relu(-0) is -0
        top_indices[rank] = static_cast<int32_t>(index);
    };
    if (n <= rank_limit) {  // n^2 compares without a branch take less time than a sort that mispredicts
        for (size_t a = 0; a < n; ++a) {
            int64_t rank = 0;
            for (size_t b = 0; b < n; ++b) rank += keys[b] > keys[a];
            if (static_cast<size_t>(rank) < K) put(rank, keys[a]);
        }
    } else {
        std::nth_element(keys, keys + K - 1, keys + n, std::greater<>{});
        std::sort(keys, keys + K, std::greater<>{});
        for (size_t rank = 0; rank < K; ++rank) put(rank, keys[rank]);
    }
    return true;
}

using TopkRow = bool (*)(const float*, size_t, size_t, Workspace&, float*, int32_t*);

bool topk_row_plain(const float* row, size_t F, size_t K, Workspace& space, float* acts, int32_t* indices) {
    return topk_row(row, F, K, find_plain, 64, space, acts, indices);
}

#ifdef SAEFAST_X86
__attribute__((target("avx512f")))
bool topk_row_avx512(const float* row, size_t F, size_t K, Workspace& space, float* acts, int32_t* indices) {
    return topk_row(row, F, K, find_avx512, 256, space, acts, indices);
}

__attribute__((target("avx2")))
bool topk_row_avx2(const float* row, size_t F, size_t K, Workspace& space, float* acts, int32_t* indices) {
    return topk_row(row, F, K, find_avx2, 256, space, acts, indices);
}
#endif

TopkRow topk_row_for([[maybe_unused]] Isa isa) {
#ifdef SAEFAST_X86
    if (isa == Isa::avx512) return topk_row_avx512;
    if (isa == Isa::avx2) return topk_row_avx2;
#endif
    return topk_row_plain;
}

}  // namespace

std::vector<Isa> supported_isas() {
    std::vector<Isa> isas;
#ifdef SAEFAST_X86
    if (__builtin_cpu_supports("avx512f")) isas.push_back(Isa::avx512);
    if (__builtin_cpu_supports("avx2")) isas.push_back(Isa::avx2);
#endif
    isas.push_back(Isa::plain);
    return isas;
}

std::ptrdiff_t topk(const float* pre_acts, size_t B, size_t F, size_t K, int threads, Isa isa,
                    float* top_acts, int32_t* top_indices) {
    const TopkRow one_row = topk_row_for(isa);
    const size_t worthwhile = std::max<size_t>(1, std::min(B, B * F / MIN_PER_THREAD));
    const size_t parts = std::min(static_cast<size_t>(threads), worthwhile);
    // Everything that can fail to allocate does so here, where an exception reaches the caller.
    std::vector<Workspace> workspaces(parts, Workspace(K));
    std::vector<std::ptrdiff_t> nan_row(parts, -1);
    std::vector<std::thread> workers;
    workers.reserve(parts);

    const auto run = [&](size_t part) {
        const size_t end = B * (part + 1) / parts;
        size_t b = B * part / parts;
        Workspace& space = workspaces[part];
        while (b < end && one_row(pre_acts + b * F, F, K, space, top_acts + b * K, top_indices + b * K)) ++b;
        if (b < end) nan_row[part] = static_cast<std::ptrdiff_t>(b);
    };
    for (size_t part = 1; part < parts; ++part) {
        try {
            workers.emplace_back(run, part);
        } catch (const std::system_error&) {  // no thread to be had: do its rows here
            run(part);
        }
    }
    run(0);
    for (auto& worker : workers) worker.join();

    for (const std::ptrdiff_t row : nan_row) {
        if (row >= 0) return row;
    }
    return -1;
}

}  // namespace saefast
