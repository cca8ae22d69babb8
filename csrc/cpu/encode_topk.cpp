// The K largest of each row.
//
// The bound of a row is the K-th largest approx less a margin, and whatever is no candidate has a pre-activation below it
// (candidates.h). If K scores of candidates reach the bound, the K largest of all are therefore among the candidates. If
// not (rare: the margin is two standard deviations of an error), all latents of the row are scored.

#include <algorithm>
#include <limits>

#include "encode.h"
#include "parallel.h"
#include "rank.h"
#include "topk.h"

namespace saefast {
namespace {

using std::ptrdiff_t;

// The margin, of the bound of an error, times the root of D: errors are normal with 0.75 / sqrt(D) of it.
constexpr float MARGIN = 1.5f;

// Writes the K largest of n values after ReLU; `keys` has room for n. False if fewer than K reach `bound`.
SAEFAST_INLINE bool best(const float* values, const int32_t* indices, size_t n, size_t K, float bound, int64_t* keys,
                         float* top_acts, int32_t* top_indices) {
    size_t enough = 0, kept = 0;
    for (size_t i = 0; i < n; ++i) enough += values[i] >= bound;
    if (enough < K) return false;
    const float least = bound_of(values, n, K);
    for (size_t i = 0; i < n; ++i) {
        keys[kept] = make_key(values[i], static_cast<size_t>(indices[i]));
        kept += values[i] >= least;
    }
    order(keys, kept, K, 256, value_of, top_acts, top_indices);
    return true;
}
SAEFAST_DISPATCH(bool, best,
                 (const float* values, const int32_t* indices, size_t n, size_t K, float bound, int64_t* keys,
                  float* top_acts, int32_t* top_indices),
                 (values, indices, n, K, bound, keys, top_acts, top_indices))

// Latents screened at a time: eight for each of the k largest give a good first bound.
size_t columns_of(size_t K) { return chunks_of(std::max<size_t>(1024, 8 * K), PANEL) * PANEL; }

}  // namespace

ScreenedEncoder::Search ScreenedEncoder::search_topk(const Product& product, size_t K) const {
    Search search;
    search.columns = columns_of(K), search.scratch = group_count(K), search.margin = MARGIN;
    search.bound = -std::numeric_limits<float>::infinity();
    search.take_in = [=, isa = isa_, limit = product.limit](const float* approx, size_t columns, size_t first,
                                                          const Errors& errors, float* maxima, Candidates& c) {
        take_in(approx, columns, first, errors, K, limit, isa, maxima, c);
    };
    search.finish = [=, isa = isa_, limit = product.limit](const Errors& errors, Candidates& c) {
        finish(errors, K, limit, isa, c);
    };
    return search;
}

ptrdiff_t ScreenedEncoder::top_k(const Product& product, size_t K, float* top_acts, int32_t* top_indices) {
    if (!begin(product)) return BAD_WEIGHTS;
    const size_t at_once = std::max<size_t>(1, MAX_FOUND / std::max<size_t>(1, product.limit));  // rows
    for (size_t first = 0; first < product.B; first += at_once) {
        Product part = product;
        part.centred += first * part.D, part.B = std::min(at_once, part.B - first);
        part.most = std::numeric_limits<size_t>::max();
        const ptrdiff_t status = some_top_k(part, K, top_acts + first * K, top_indices + first * K);
        if (status != FINITE) return status + static_cast<ptrdiff_t>(first);
    }
    return FINITE;
}

ptrdiff_t ScreenedEncoder::some_top_k(const Product& product, size_t K, float* top_acts, int32_t* top_indices) {
    find(product, search_topk(product, K), false);
    score_candidates(product);
    std::vector<int64_t> keys(static_cast<size_t>(product.threads) * product.limit);
    std::vector<char> done(product.B, 0);
    const auto best_of = SAEFAST_PICK(best, isa_);
    parallel_for(product.B, product.threads, [&](size_t r, size_t thread) {
        const Row& row = rows_[r];
        done[r] = !row.whole && best_of(row.values, row.latents, row.n, K, row.bound, &keys[thread * product.limit],
                                        top_acts + r * K, top_indices + r * K);
    });
    std::vector<size_t> rest;
    for (size_t r = 0; r < product.B; ++r) {
        if (!done[r]) rest.push_back(r);
    }
    return score_rows(product, rest, false, [&](size_t r, const float* values) {
        return topk(values, 1, product.F, K, 1, isa_, top_acts + r * K, top_indices + r * K) < 0;
    });
}

}  // namespace saefast
