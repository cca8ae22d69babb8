// The first columns of a row are read twice. The first pass takes the maximum of each of about 4k groups of elements:
// the k-th largest maximum is a bound that at least k elements reach. The second collects the elements that reach it,
// about 1.15 k of a random row, and only these are ordered. Where more come than the buffer holds (ties, k near F,
// later columns of the row), the k best are kept and the bound rises: every row takes linear time.

#include "topk.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>

#include "parallel.h"
#include "rank.h"

namespace saefast {
namespace {

using std::int32_t;
using std::int64_t;
using std::size_t;
using std::uint32_t;
using std::uint64_t;

constexpr size_t MIN_PER_THREAD = 1 << 20;  // elements, 0.2 to 0.4 ms of work: less is not worth a thread

size_t buffer_size(size_t K) { return 2 * K + 2 * BLOCK; }  // keeping the best K makes room for K + BLOCK

// What is known of a row of which some columns were seen: the keys of its candidates, and the bound that a value must
// reach to become one.
struct Row {
    float bound;
    bool has_nan;
    size_t n;
    int64_t* keys;  // room for buffer_size(K)
};

// Take in the next `columns` of a row, of which `first` is the number of the first one.
template <typename Find>
SAEFAST_INLINE void collect(const float* values, size_t columns, size_t first, size_t K, Find find, Row& row,
                            float* maxima) {
    if (row.n == 0 && 2 * group_count(K) <= columns) {
        row.bound = std::max(row.bound, bound_by_maxima(values, columns, K, maxima, group_count(K)));
    }
    for (size_t i = 0; i < columns; i += BLOCK) {
        uint64_t hits;
        i = find(values, i, columns, row.bound, hits);
        if (i >= columns) return;
        if (row.n + BLOCK > buffer_size(K)) {
            std::nth_element(row.keys, row.keys + K - 1, row.keys + row.n, std::greater<>{});
            row.n = K;
            // What comes later loses a tie with the K-th by index: from here it must be larger.
            row.bound = from_ordered(ordered_of(row.keys[K - 1]) + 1);
        }
        for (; hits; hits &= hits - 1) {
            const size_t j = i + static_cast<size_t>(__builtin_ctzll(hits));
            row.has_nan |= values[j] != values[j];
            row.keys[row.n++] = make_key(values[j], first + j);
        }
    }
}

constexpr float LOWEST = -std::numeric_limits<float>::infinity();

// A whole row. Returns false if it holds a NaN.
template <typename Find>
SAEFAST_INLINE bool topk_row(const float* values, size_t F, size_t K, Find find, size_t rank_limit,
                             int64_t* keys, float* maxima, float* top_acts, int32_t* top_indices) {
    Row row{LOWEST, false, 0, keys};
    collect(values, F, 0, K, find, row, maxima);
    if (row.has_nan) return false;
    order(row.keys, row.n, K, rank_limit, [&](int64_t key) { return values[index_of(key)]; }, top_acts, top_indices);
    return true;
}

// One set of functions for each instruction set, so that the compiler vectorises the loops inlined into them.
struct Functions {
    bool (*topk_row)(const float*, size_t, size_t, int64_t*, float*, float*, int32_t*);
    void (*collect)(const float*, size_t, size_t, size_t, Row&, float*);
    void (*order)(const Row&, size_t, float*, int32_t*);
};

#define SAEFAST_TOPK(ATTRIBUTE, SUFFIX, RANK_LIMIT)                                                              \
    ATTRIBUTE bool topk_row_##SUFFIX(const float* values, size_t F, size_t K, int64_t* keys, float* maxima,      \
                                     float* acts, int32_t* indices) {                                            \
        return topk_row(values, F, K, find_##SUFFIX, RANK_LIMIT, keys, maxima, acts, indices);                   \
    }                                                                                                            \
    ATTRIBUTE void collect_##SUFFIX(const float* values, size_t columns, size_t first, size_t K, Row& row,       \
                                    float* maxima) {                                                             \
        collect(values, columns, first, K, find_##SUFFIX, row, maxima);                                          \
    }                                                                                                            \
    ATTRIBUTE void order_##SUFFIX(const Row& row, size_t K, float* acts, int32_t* indices) {                     \
        order(row.keys, row.n, K, RANK_LIMIT, value_of, acts, indices);                              \
    }                                                                                                            \
    constexpr Functions functions_##SUFFIX{topk_row_##SUFFIX, collect_##SUFFIX, order_##SUFFIX};

SAEFAST_TOPK(, plain, 64)
#ifdef SAEFAST_X86
SAEFAST_TOPK(SAEFAST_AVX512, avx512, 256)
SAEFAST_TOPK(SAEFAST_AVX2, avx2, 256)
#endif

const Functions& functions_for([[maybe_unused]] Isa isa) {
#ifdef SAEFAST_X86
    return *pick(isa, &functions_avx512, &functions_avx2, &functions_plain);
#else
    return functions_plain;
#endif
}

}  // namespace

std::ptrdiff_t topk(const float* pre_acts, size_t B, size_t F, size_t K, int threads, Isa isa,
                    float* top_acts, int32_t* top_indices) {
    const Functions& functions = functions_for(isa);
    const size_t worthwhile = std::max<size_t>(1, std::min(B, B * F / MIN_PER_THREAD));
    const size_t parts = std::min(static_cast<size_t>(threads), worthwhile);
    std::vector<int64_t> keys(parts * buffer_size(K));
    std::vector<float> maxima(parts * group_count(K));
    std::vector<std::ptrdiff_t> nan_row(parts, -1);

    parallel_for(parts, threads, [&](size_t part, size_t) {
        const size_t end = B * (part + 1) / parts;
        size_t b = B * part / parts;
        while (b < end && functions.topk_row(pre_acts + b * F, F, K, &keys[part * buffer_size(K)],
                                             &maxima[part * group_count(K)], top_acts + b * K,
                                             top_indices + b * K)) {
            ++b;
        }
        if (b < end) nan_row[part] = static_cast<std::ptrdiff_t>(b);
    });
    for (const std::ptrdiff_t row : nan_row) {
        if (row >= 0) return row;
    }
    return -1;
}

TopkBlock::TopkBlock(size_t rows, size_t K, Isa isa)
    : K_(K), isa_(isa), bounds_(rows, LOWEST), counts_(rows, 0), keys_(rows * buffer_size(K)),
      maxima_(group_count(K)) {}

std::ptrdiff_t TopkBlock::feed(const float* pre_acts, size_t columns) {
    const auto collect = functions_for(isa_).collect;
    for (size_t b = 0; b < counts_.size(); ++b) {
        Row row{bounds_[b], false, counts_[b], &keys_[b * buffer_size(K_)]};
        collect(pre_acts + b * columns, columns, columns_, K_, row, maxima_.data());
        if (row.has_nan) return static_cast<std::ptrdiff_t>(b);
        bounds_[b] = row.bound;
        counts_[b] = row.n;
    }
    columns_ += columns;
    return -1;
}

void TopkBlock::finish(float* top_acts, int32_t* top_indices) {
    const auto order = functions_for(isa_).order;
    for (size_t b = 0; b < counts_.size(); ++b) {
        const Row row{bounds_[b], false, counts_[b], &keys_[b * buffer_size(K_)]};
        order(row, K_, top_acts + b * K_, top_indices + b * K_);
    }
}

}  // namespace saefast
