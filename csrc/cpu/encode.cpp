// 1. `find`: 8-bit products of all latents in blocks that stay in cache, approximately the pre-activations, each with a
//    bound of its error. The k-th largest so far, less a margin, is a bound that candidates must be able to reach.
// 2. `score`: the candidates' pre-activations in fp32, latent after latent, so that a row of W_enc is read once.
// 3. The k largest of these. If the k-th reaches the bound of step 1, no other latent could have been among them. Where
//    it does not (rare), and where the bounds exclude too little, all latents of the row are scored.

#include "encode.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "candidates.h"
#include "parallel.h"
#include "rank.h"
#include "topk.h"

namespace saefast {
namespace {

using std::ptrdiff_t;

constexpr size_t ROWS = 96;        // in a block, fewer if k is large
constexpr size_t LATENTS = 32;     // in an item of scoring
constexpr size_t DENSE_ROWS = 16;  // in an item of scoring all
constexpr size_t MAX_FOUND = size_t{1} << 27;  // candidates of the rows taken together, at most
constexpr float LOWEST = -std::numeric_limits<float>::infinity();
// The margin, of the bound of an error, times the root of D: errors are normal with 0.75 / sqrt(D) of it.
constexpr float MARGIN = 1.5f;

// out[r] = <row r, w> for N rows, each with two vectors of sums: the same bits for every N. `next`: rows to fetch
// meanwhile, for these come from wherever the batch is kept.
template <typename V, size_t N>
SAEFAST_INLINE void dot(const float* const* rows, const float* const* next, const float* w, size_t D, float* out) {
    V even[N] = {}, odd[N] = {};
    size_t d = 0;
    for (; d + 2 * LANES <= D; d += 2 * LANES) {
        const V first = V::load(w + d), second = V::load(w + d + LANES);
        for (size_t r = 0; r < N; ++r) {
            even[r].add(V::load(rows[r] + d), first);
            odd[r].add(V::load(rows[r] + d + LANES), second);
            __builtin_prefetch(next[r] + d);
            __builtin_prefetch(next[r] + d + LANES);
        }
    }
    for (size_t r = 0; r < N; ++r) {
        float rest = 0;
        for (size_t i = d; i < D; ++i) rest += rows[r][i] * w[i];
        out[r] = sum(even[r] + odd[r]) + rest;
    }
}

// values[place] = <row, w> + b for entries of one latent; those up to `ahead` follow, of whatever latent.
template <typename V>
SAEFAST_INLINE void score(const ScoreEntry* entries, size_t n, size_t ahead, const float* centred, const float* w,
                          float b, size_t D, float* values) {
    constexpr size_t N = V::N == 1 ? 4 : 2;  // rows at a time, as many as there are registers for
    const float *rows[N], *next[N];
    float scores[N];
    const auto row = [&](size_t i) { return centred + static_cast<size_t>(entries[i].row) * D; };
    size_t i = 0;
    for (; i + N <= n; i += N) {
        for (size_t r = 0; r < N; ++r) rows[r] = row(i + r), next[r] = row(std::min(i + r + N, ahead - 1));
        dot<V, N>(rows, next, w, D, scores);
        for (size_t r = 0; r < N; ++r) values[entries[i + r].place] = scores[r] + b;
    }
    for (; i < n; ++i) {
        rows[0] = row(i), next[0] = row(std::min(i + N, ahead - 1));
        dot<V, 1>(rows, next, w, D, scores);
        values[entries[i].place] = scores[0] + b;
    }
}
SAEFAST_DISPATCH_V(void, score,
                 (const ScoreEntry* entries, size_t n, size_t ahead, const float* centred, const float* w, float b,
                  size_t D, float* values),
                 (entries, n, ahead, centred, w, b, D, values))

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

struct TopkEncoder::Call {
    const float *centred, *W_enc, *b_enc;
    size_t B, F, D, K, limit;
    int threads;
    float* top_acts;
    int32_t* top_indices;
};

ptrdiff_t TopkEncoder::encode(const float* centred, const float* W_enc, const float* b_enc, size_t B, size_t F,
                              size_t D, size_t K, size_t limit, int threads, float* top_acts,
                              int32_t* top_indices) {
    candidates_ = dense_rows_ = 0;
    if (!weights_.set(W_enc, b_enc, F, D, threads, isa_)) return BAD_WEIGHTS;
    const size_t at_once = std::max<size_t>(1, MAX_FOUND / std::max<size_t>(1, limit));  // rows
    for (size_t first = 0; first < B; first += at_once) {
        const Call call{centred + first * D, W_enc, b_enc, std::min(at_once, B - first), F, D, K, limit, threads,
                        top_acts + first * K, top_indices + first * K};
        const ptrdiff_t status = some_rows(call);
        if (status != FINITE) return status + static_cast<ptrdiff_t>(first);
    }
    return FINITE;
}

ptrdiff_t TopkEncoder::some_rows(const Call& call) {
    find(call);
    std::vector<size_t> offsets(call.B + 1, 0);
    for (size_t r = 0; r < call.B; ++r) offsets[r + 1] = offsets[r] + rows_[r].n;
    candidates_ += offsets.back();
    score_candidates(call, offsets);

    const size_t parts = static_cast<size_t>(call.threads);
    std::vector<int64_t> keys(parts * call.limit);
    std::vector<char> done(call.B, 0);
    const auto best_of = SAEFAST_PICK(best, isa_);
    const float* values = values_.get(0);
    parallel_for(call.B, call.threads, [&](size_t r, size_t thread) {
        const Found& row = rows_[r];
        done[r] = row.n && best_of(values + offsets[r], row.latents, row.n, call.K, row.bound,
                                   &keys[thread * call.limit], call.top_acts + r * call.K,
                                   call.top_indices + r * call.K);
    });
    std::vector<size_t> rows;
    for (size_t r = 0; r < call.B; ++r) {
        if (!done[r]) rows.push_back(r);
    }
    dense_rows_ += rows.size();
    return score_all(call, rows);
}

// The candidates of each row.
void TopkEncoder::find(const Call& call) {
    const size_t K = call.K, columns = columns_of(K), width = weights_.mixing.width();
    const size_t in_block = std::min(ROWS, std::max<size_t>(6, ROWS * 1024 / columns));
    const size_t room = call.limit + columns + Candidates::SPARE, panels = chunks_of(call.F, PANEL);
    const float margin = MARGIN / std::sqrt(static_cast<float>(call.D));
    struct Worker {
        Worker(size_t rows, size_t width, size_t columns, size_t room, size_t groups)
            : x(rows, width), scratch(width), maxima(groups), approx(new float[rows * columns]),
              listed(new float[2 * rows * room]), indices(new int32_t[rows * room]), candidates(rows), errors(rows) {}
        ScreenRows x;
        std::vector<float> scratch, maxima;
        std::unique_ptr<float[]> approx, listed;
        std::unique_ptr<int32_t[]> indices;
        std::vector<Candidates> candidates;
        std::vector<Errors> errors;
    };
    std::vector<Worker> workers;
    for (int t = 0; t < call.threads; ++t) workers.emplace_back(in_block, width, columns, room, group_count(K));
    rows_.resize(call.B);
    int32_t* const found = found_.get(call.B * call.limit);

    parallel_for(chunks_of(call.B, in_block), call.threads, [&](size_t block, size_t thread) {
        Worker& w = workers[thread];
        const size_t start = block * in_block, rows = std::min(in_block, call.B - start);
        w.x.set(weights_, call.centred + start * call.D, rows, isa_, w.scratch.data());
        for (size_t r = 0; r < rows; ++r) {
            const float by_norm = w.x.by_norm[r], by_rest = w.x.by_rest[r];
            w.errors[r] = {weights_.norm.data(), weights_.rest.data(), by_norm, by_rest, weights_.bias_error,
                           margin * (by_norm * weights_.mean_norm + by_rest * weights_.mean_rest)};
            float* const listed = &w.listed[2 * r * room];
            w.candidates[r] = {listed, listed + room, &w.indices[r * room], 0, 0, LOWEST, !w.x.info[r].usable};
        }
        for (size_t p = 0; p < panels; p += columns / PANEL) {
            const size_t end = std::min(panels, p + columns / PANEL), first = p * PANEL;
            screen(weights_, w.x, rows, p, end, isa_, w.approx.get(), columns);
            for (size_t r = 0; r < rows; ++r) {
                take_in(&w.approx[r * columns], std::min(call.F, end * PANEL) - first, first, w.errors[r], K,
                        call.limit, isa_, w.maxima.data(), w.candidates[r]);
            }
        }
        int32_t* to = found + start * call.limit;  // one row after another, for little of this is ever touched
        for (size_t r = 0; r < rows; ++r) {
            Candidates& c = w.candidates[r];
            finish(w.errors[r], K, call.limit, isa_, c);
            rows_[start + r] = {to, c.wide ? 0 : c.n, c.bound};
            to = std::copy(c.indices, c.indices + rows_[start + r].n, to);
        }
    });
}

// values_[offsets[r] + i] = the pre-activation of row r and its candidate i.
void TopkEncoder::score_candidates(const Call& call, const std::vector<size_t>& offsets) {
    const size_t F = call.F, parts = static_cast<size_t>(call.threads);
    ScoreEntry* const entries = entries_.get(offsets.back());
    float* const values = values_.get(offsets.back());
    // a counting sort by latent; each part of the rows has its own counts, then places
    std::vector<uint32_t> places(parts * F, 0), starts(F + 1);
    const auto each = [&](size_t part, auto work) {
        for (size_t r = call.B * part / parts; r < call.B * (part + 1) / parts; ++r) {
            for (size_t i = 0; i < rows_[r].n; ++i) {
                work(r, i, places[part * F + static_cast<size_t>(rows_[r].latents[i])]);
            }
        }
    };
    parallel_for(parts, call.threads, [&](size_t part, size_t) {
        each(part, [](size_t, size_t, uint32_t& count) { ++count; });
    });
    uint32_t place = 0;
    for (size_t f = 0; f < F; ++f) {
        starts[f] = place;
        for (size_t part = 0; part < parts; ++part) {
            const uint32_t count = places[part * F + f];
            places[part * F + f] = place;
            place += count;
        }
    }
    starts[F] = place;
    parallel_for(parts, call.threads, [&](size_t part, size_t) {
        each(part, [&](size_t r, size_t i, uint32_t& to) {
            entries[to++] = {static_cast<int32_t>(r), static_cast<uint32_t>(offsets[r] + i)};
        });
    });
    const auto score_latent = SAEFAST_PICK(score, isa_);
    parallel_for(chunks_of(F, LATENTS), call.threads, [&](size_t c, size_t) {
        for (size_t f = c * LATENTS; f < std::min(F, (c + 1) * LATENTS); ++f) {
            const size_t start = starts[f];
            score_latent(entries + start, starts[f + 1] - start, starts[F] - start, call.centred,
                         call.W_enc + f * call.D, call.b_enc[f], call.D, values);
        }
    });
}

// All latents of the rows that are left. Returns the first of them with a NaN, or FINITE.
ptrdiff_t TopkEncoder::score_all(const Call& call, const std::vector<size_t>& rows) {
    const size_t F = call.F, K = call.K;
    if (rows.empty()) return FINITE;
    const size_t at_once = std::min(DENSE_ROWS, rows.size());
    float* const dense = dense_.get(static_cast<size_t>(call.threads) * at_once * F);
    std::vector<ptrdiff_t> nan_row(chunks_of(rows.size(), at_once), FINITE);
    const auto score_latent = SAEFAST_PICK(score, isa_);
    parallel_for(nan_row.size(), call.threads, [&](size_t block, size_t thread) {
        const size_t first = block * at_once, n = std::min(at_once, rows.size() - first);
        float* const values = dense + thread * at_once * F;
        ScoreEntry entries[DENSE_ROWS];
        for (size_t f = 0; f < F; ++f) {
            for (size_t i = 0; i < n; ++i) {
                entries[i] = {static_cast<int32_t>(rows[first + i]), static_cast<uint32_t>(i * F + f)};
            }
            score_latent(entries, n, n, call.centred, call.W_enc + f * call.D, call.b_enc[f], call.D, values);
        }
        for (size_t i = 0; i < n && nan_row[block] == FINITE; ++i) {
            const size_t r = rows[first + i];
            const ptrdiff_t status =
                topk(values + i * F, 1, F, K, 1, isa_, call.top_acts + r * K, call.top_indices + r * K);
            if (status >= 0) nan_row[block] = static_cast<ptrdiff_t>(r);
        }
    });
    const auto bad = std::find_if(nan_row.begin(), nan_row.end(), [](ptrdiff_t row) { return row != FINITE; });
    return bad == nan_row.end() ? FINITE : *bad;
}

}  // namespace saefast
