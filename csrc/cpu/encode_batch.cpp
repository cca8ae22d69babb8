// The B * K largest of the whole batch.
//
// 1. `guess`: a bound from a few rows, below which the (B * K)-th largest probably is not. It comes from the approximations
//    of at most SAMPLE rows spread over the batch, of each the 4 K largest, so that one row of huge norm does not decide.
// 2. Candidates are the entries whose upper reaches the guess. Their (B * K)-th largest approx less a margin is a better
//    bound, and only candidates that reach it too are scored.
// 3. If B * K scores reach that bound, the B * K largest of all are among the scored, with every entry that ties with the
//    last: whatever was not scored has a pre-activation below the bound (candidates.h).
// If they do not, for the guess was too high, the same again with a lower one; and if that fails all latents of all rows are
// scored, if that is not more than `most`.

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "encode.h"
#include "find.h"
#include "parallel.h"

namespace saefast {
namespace {

using std::int64_t;
using std::ptrdiff_t;
using std::uint32_t;

constexpr float LOWEST = -std::numeric_limits<float>::infinity();
constexpr size_t LEAST_SAMPLE = 16, SAMPLE = 96;  // rows
constexpr size_t CAP = 4;                         // times K: what a row of the sample may count
constexpr double GOLDEN = 0.6180339887498949;     // its multiples spread evenly, whatever repeats in the batch
// Of the median error's bound, times the root of D: three standard deviations, and far more than the (B * K)-th largest of
// so many moves.
constexpr float MARGIN = 2.25f;

SAEFAST_INLINE size_t reaching(const float* values, size_t n, float bound) {
    int32_t count = 0;  // n is below 2^31
    for (size_t i = 0; i < n; ++i) count += values[i] >= bound;
    return static_cast<size_t>(count);
}
SAEFAST_DISPATCH(size_t, reaching, (const float* values, size_t n, float bound), (values, n, bound))

}  // namespace

ptrdiff_t ScreenedEncoder::batch_topk(const Product& given, size_t K, float* acts, int32_t* indices,
                                      int32_t* row_offsets) {
    std::fill(row_offsets, row_offsets + given.B + 1, 0);
    if (!begin(given)) return BAD_WEIGHTS;
    if (given.B == 0) return FINITE;
    Product product = given;
    const size_t B = product.B, keep = B * K;
    const double spread = 1 + 2 / std::sqrt(static_cast<double>(std::min(B, SAMPLE)));

    float bound = LOWEST;
    bool enough = false;
    for (const double share : {spread, static_cast<double>(CAP)}) {
        if (enough || product.limit == 0) break;
        if (!find_batch(product, K, guess(product, K, share))) return TOO_MANY;
        const ptrdiff_t status = score(product);
        if (status != FINITE) return status;
        bound = bound_;
        enough = count(true, bound, product.threads) >= keep;
    }
    if (!enough) {
        if (B * product.F > product.most) return TOO_MANY;
        product.limit = 0;
        find_batch(product, K, bound = LOWEST);
        const ptrdiff_t status = score(product);
        if (status != FINITE) return status;
    }

    const float last = bound_of(true, keep, 0, bound, product.threads);  // the (B * K)-th largest
    std::vector<int32_t> equal(B);
    parallel_for(B, product.threads, [&](size_t r, size_t) {
        int32_t above = 0, same = 0;
        for (size_t i = 0; i < rows_[r].n; ++i) above += rows_[r].values[i] > last, same += rows_[r].values[i] == last;
        row_offsets[r + 1] = above, equal[r] = same;
    });
    size_t ties = keep;
    for (size_t r = 0; r < B; ++r) ties -= static_cast<size_t>(row_offsets[r + 1]);
    for (size_t r = 0; r < B; ++r) {  // the first of those that equal the last, in order of row and latent
        equal[r] = static_cast<int32_t>(std::min<size_t>(static_cast<size_t>(equal[r]), ties));
        ties -= static_cast<size_t>(equal[r]);
        row_offsets[r + 1] += row_offsets[r] + equal[r];
    }
    parallel_for(B, product.threads, [&](size_t r, size_t) {
        const Row& row = rows_[r];
        auto at = static_cast<size_t>(row_offsets[r]);
        for (size_t i = 0; i < row.n; ++i) {
            if (!(row.values[i] > last) && (row.values[i] != last || --equal[r] < 0)) continue;
            acts[at] = std::max(row.values[i], 0.0f), indices[at++] = static_cast<int32_t>(row.latent(i));
        }
    });
    return FINITE;
}

// A bound that K * share entries of a row reach on average.
float ScreenedEncoder::guess(const Product& product, size_t K, double share) {
    const size_t D = product.D, n = std::min(SAMPLE, std::max(LEAST_SAMPLE, product.B / 16)), cap = CAP * K;
    Product sample = product;
    sample.B = n, sample.limit = 2 * cap, sample.most = std::numeric_limits<size_t>::max();
    float* const centred = sample_.get(n * D);
    for (size_t i = 0; i < n; ++i) {
        const double place = std::fmod((static_cast<double>(i) + 0.5) * GOLDEN, 1.0) * static_cast<double>(product.B);
        const size_t row = std::min(product.B - 1, static_cast<size_t>(place));
        std::copy(product.centred + row * D, product.centred + (row + 1) * D, centred + i * D);
    }
    sample.centred = centred;
    Search search = search_topk(sample, cap);
    search.by_approx = true;
    find(sample, search, true);
    std::vector<float> largest;
    size_t seen = 0;
    for (const Row& row : rows_) {
        if (row.whole) continue;  // not finite, or many equal ones: it says nothing
        largest.insert(largest.end(), row.approx, row.approx + row.n), ++seen;
    }
    if (largest.empty()) return LOWEST;
    const double wanted = share * static_cast<double>(seen * K);
    const size_t rank = std::min(largest.size(), static_cast<size_t>(wanted)) - 1;
    std::nth_element(largest.begin(), largest.begin() + static_cast<ptrdiff_t>(rank), largest.end(), std::greater<>{});
    return largest[rank];
}

// Candidates of all rows, and the bound that they reach; false where there are more than `most`.
bool ScreenedEncoder::find_batch(const Product& product, size_t K, float bound) {
    Search search;
    search.columns = 1024, search.margin = MARGIN, search.bound = bound;
    search.take_in = [&](const float* approx, size_t columns, size_t first, const Errors& errors, float*,
                         Candidates& c) { take_in_reaching(approx, columns, first, errors, product.limit, isa_, c); };
    search.finish = [](const Errors&, Candidates&) {};
    if (!find(product, search, true)) return false;
    bound_ = bound;
    const size_t keep = product.B * K;
    std::vector<float> margins;
    for (const Row& row : rows_) {
        if (!row.whole) margins.push_back(row.margin);
    }
    if (margins.empty() || count(false, bound, product.threads) < keep) return true;
    const auto median = margins.begin() + static_cast<ptrdiff_t>(margins.size() / 2);
    std::nth_element(margins.begin(), median, margins.end());
    bound_ = std::max(bound, bound_of(false, keep, keep / 256, bound, product.threads) - *median);
    parallel_for(product.B, product.threads, [&](size_t r, size_t) {
        Row& row = rows_[r];
        size_t kept = 0;
        for (size_t i = 0; i < row.n; ++i) {
            row.latents[kept] = row.latents[i];
            kept += !(row.upper[i] < bound_);
        }
        row.n = kept;
    });
    return true;
}

size_t ScreenedEncoder::count(bool scored, float bound, int threads) const {
    constexpr size_t AT_ONCE = 64;  // rows
    const auto count_row = SAEFAST_PICK(reaching, isa_);
    std::vector<size_t> counts(chunks_of(rows_.size(), AT_ONCE), 0);
    parallel_for(counts.size(), threads, [&](size_t part, size_t) {
        for (size_t r = part * AT_ONCE; r < std::min(rows_.size(), (part + 1) * AT_ONCE); ++r) {
            counts[part] += count_row(scored ? rows_[r].values : rows_[r].approx, rows_[r].n, bound);
        }
    });
    size_t total = 0;
    for (const size_t n : counts) total += n;
    return total;
}

// As rank.h's: a bound that at least `keep` of them reach, and no more than keep + spare unless some are equal; `keep` reach
// `low`. Counts in bins of floats as integers of the same order, then in the bins of the one that holds the bound: three
// passes, for each is a turn of all threads.
float ScreenedEncoder::bound_of(bool scored, size_t keep, size_t spare, float low, int threads) const {
    size_t n_bins = 4096;
    const size_t parts = std::min(rows_.size(), 2 * static_cast<size_t>(threads));
    int64_t lowest = to_ordered(low);
    size_t above = 0;  // all bins
    for (const int shift : {20, 8, 0}) {
        std::vector<uint32_t> counts(parts * n_bins, 0);
        parallel_for(parts, threads, [&](size_t part, size_t) {
            uint32_t* const bins = &counts[part * n_bins];
            for (size_t r = rows_.size() * part / parts; r < rows_.size() * (part + 1) / parts; ++r) {
                const float* const values = scored ? rows_[r].values : rows_[r].approx;
                for (size_t i = 0; i < rows_[r].n; ++i) {
                    const int64_t bin = (to_ordered(values[i]) - lowest) >> shift;
                    if (bin >= 0 && bin < static_cast<int64_t>(n_bins)) ++bins[bin];
                }
            }
        });
        size_t bin = n_bins, reached = above;
        while (reached < keep) {
            above = reached, --bin;
            for (size_t part = 0; part < parts; ++part) reached += counts[part * n_bins + bin];
        }
        lowest += static_cast<int64_t>(bin) << shift;
        if (reached <= keep + spare) break;
        n_bins = shift == 20 ? 4096 : 256;  // of that one
    }
    return from_ordered(static_cast<int32_t>(lowest));
}

}  // namespace saefast
