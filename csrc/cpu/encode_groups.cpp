// The largest of each of K equal groups of consecutive latents.
//
// The bound of a group is its largest approx less a margin, and whatever of it is no candidate has a pre-activation below
// the bound (candidates.h). If a score of its candidates reaches the bound, the largest of all is therefore among them, and
// so is every one that equals it. If not (the margin is four standard deviations of an error, and little beside the error's
// bound), all latents of the row are scored.

#include <algorithm>
#include <limits>

#include "encode.h"
#include "parallel.h"

namespace saefast {

using std::int32_t;
using std::ptrdiff_t;
using std::size_t;

namespace {
constexpr float MARGIN = 3;  // of the bound of an error, times the root of D
constexpr float LOWEST = -std::numeric_limits<float>::infinity();
}  // namespace

ptrdiff_t ScreenedEncoder::group_max(const Product& product, size_t K, float* acts, int32_t* indices) {
    if (!begin(product)) return BAD_WEIGHTS;
    const size_t group = product.F / K;

    Search search;
    search.columns = 1024, search.margin = MARGIN, search.bound = LOWEST;
    search.take_in = [&](const float* approx, size_t columns, size_t first, const Errors& errors, float*,
                         Candidates& c) {
        take_in_groups(approx, columns, first, errors, group, product.limit, isa_, c);
    };
    search.finish = [](const Errors&, Candidates&) {};
    if (!find(product, search, true)) return TOO_MANY;
    score_candidates(product);

    std::vector<char> done(product.B, 0);
    parallel_for(product.B, product.threads, [&](size_t r, size_t) {
        const Row& row = rows_[r];
        bool sure = !row.whole;
        for (size_t i = 0, g = 0; g < K && sure; ++g) {
            size_t best = i;
            float largest = LOWEST;
            for (; i < row.n && static_cast<size_t>(row.latents[i]) < (g + 1) * group; ++i) {
                largest = std::max(largest, row.approx[i]);
                if (row.values[i] > row.values[best]) best = i;
            }
            sure = row.values[best] >= largest - row.margin;
            acts[r * K + g] = std::max(row.values[best], 0.0f), indices[r * K + g] = row.latents[best];
        }
        done[r] = sure;
    });
    std::vector<size_t> rest;
    for (size_t r = 0; r < product.B; ++r) {
        if (!done[r]) rest.push_back(r);
    }
    return score_rows(product, rest, false, [&](size_t r, const float* values) {
        bool bad = false;
        for (size_t g = 0; g < K; ++g) {
            size_t best = g * group;
            for (size_t f = best; f < (g + 1) * group; ++f) {
                bad |= values[f] != values[f];
                if (values[f] > values[best]) best = f;
            }
            acts[r * K + g] = std::max(values[best], 0.0f), indices[r * K + g] = static_cast<int32_t>(best);
        }
        return !bad;
    });
}

}  // namespace saefast
