// Order among values: the k-th largest of some, and a few of them in descending order.
#pragma once

#include <algorithm>
#include <functional>
#include <limits>

#include "find.h"

namespace saefast {

using std::int64_t;
using std::uint32_t;

// A key is a value and its index in one integer: the larger value is larger, then the smaller index.
SAEFAST_INLINE int64_t make_key(float value, size_t index) {
    const int32_t ordered = to_ordered(value);
    const int64_t high = ordered == -1 ? 0 : ordered;  // -0 ties with 0
    return high * (int64_t{1} << 32) + static_cast<uint32_t>(~index);
}

SAEFAST_INLINE size_t index_of(int64_t key) { return static_cast<uint32_t>(~key); }
SAEFAST_INLINE int32_t ordered_of(int64_t key) { return static_cast<int32_t>(key >> 32); }
SAEFAST_INLINE float value_of(int64_t key) { return from_ordered(ordered_of(key)); }  // -0 comes back as 0

// A bound that at least K of n values reach, and no more than K unless some are equal. NaN reaches none.
SAEFAST_INLINE float bound_of(const float* values, size_t n, size_t K) {
    // Bisection has no unpredictable branch: nth_element took 5 to 12 times as long.
    int64_t low = to_ordered(-std::numeric_limits<float>::infinity());
    int64_t high = to_ordered(std::numeric_limits<float>::infinity()) + int64_t{1};
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        const float bound = from_ordered(static_cast<int32_t>(middle));
        int32_t reached = 0;
        for (size_t j = 0; j < n; ++j) reached += values[j] >= bound;
        (reached >= static_cast<int32_t>(K) ? low : high) = middle;
        if (reached == static_cast<int32_t>(K)) break;
    }
    return from_ordered(static_cast<int32_t>(low));
}

// The first columns of a row go in groups, about 4K of them, and the K-th largest of their maxima is a bound that at
// least K elements reach: it is found in one pass.
inline size_t group_count(size_t K) { return (4 * K + BLOCK - 1) / BLOCK * BLOCK; }

// A bound that at least K of the `groups` maxima of the row reach, and no more than K unless some are equal.
SAEFAST_INLINE float bound_by_maxima(const float* row, size_t F, size_t K, float* maxima, size_t groups) {
    std::fill(maxima, maxima + groups, -std::numeric_limits<float>::infinity());
    for (size_t i = 0; i + groups <= F; i += groups) {
        for (size_t j = 0; j < groups; ++j) {
            maxima[j] = row[i + j] > maxima[j] ? row[i + j] : maxima[j];  // a NaN is never larger
        }
    }
    return bound_of(maxima, groups, K);
}

// Write the K best of n >= K keys after ReLU, in order; `value(key)` is the value that belongs to one.
template <typename Value>
SAEFAST_INLINE void order(int64_t* keys, size_t n, size_t K, size_t rank_limit, Value value, float* top_acts,
                          int32_t* top_indices) {
    const auto put = [&](size_t rank, int64_t key) {
        top_acts[rank] = std::max(value(key), 0.0f);  // as torch: relu(-0) is -0
        top_indices[rank] = static_cast<int32_t>(index_of(key));
    };
    if (n <= rank_limit) {  // n^2 compares without a branch take less time than a sort that mispredicts
        for (size_t a = 0; a < n; ++a) {
            int64_t rank = 0;
            for (size_t b = 0; b < n; ++b) rank += keys[b] > keys[a];
            if (static_cast<size_t>(rank) < K) put(static_cast<size_t>(rank), keys[a]);
        }
    } else {
        std::nth_element(keys, keys + K - 1, keys + n, std::greater<>{});
        std::sort(keys, keys + K, std::greater<>{});
        for (size_t rank = 0; rank < K; ++rank) put(rank, keys[rank]);
    }
}

}  // namespace saefast
