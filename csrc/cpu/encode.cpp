// What all selections share.
//
// 1. `find`: 8-bit products of all latents in blocks that stay in cache, approximately the pre-activations, each with a
//    bound of its error; a selection lists its candidates among them.
// 2. `score`: the candidates' pre-activations in fp32, latent after latent, so that a row of W_enc is read once. Where a row
//    has too many (or a NaN, or numbers too large to round), all its latents are scored.
//
// How many will be scored is counted as blocks are searched, and the search ends as soon as they are more than `most` (or
// than memory is taken for): the total decides, whatever the order of the blocks.

#include "encode.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "parallel.h"

namespace saefast {
namespace {

using std::int32_t;
using std::ptrdiff_t;
using std::size_t;
using std::uint32_t;

constexpr size_t ROWS = 96;        // in a block, fewer if many latents are screened at a time
constexpr size_t TILE = 6;         // rows that `screen` takes at once
constexpr size_t LATENTS = 32;     // in an item of scoring
constexpr size_t DENSE_ROWS = 16;  // in an item of scoring all

// out[r] = <row r, w> for N rows, each with two vectors of sums: the same bits for every N. `next`: rows to fetch
// meanwhile, for these come from wherever the batch is kept.
template <typename V, size_t N>
SAEFAST_INLINE void dot(const float* const* rows, const float* const* next, const float* w, size_t D, float* out) {
    V even[N], odd[N];
    for (size_t r = 0; r < N; ++r) even[r] = odd[r] = V::zero();
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

}  // namespace

bool ScreenedEncoder::begin(const Product& product) {
    candidates_ = dense_rows_ = above_ = 0;
    return weights_.set(product.W_enc, product.b_enc, product.F, product.D, product.threads);
}

bool ScreenedEncoder::find(const Product& product, const Search& search, bool keep) {
    const size_t columns = search.columns, width = weights_.mixing.width(), limit = product.limit;
    const size_t threads = static_cast<size_t>(product.threads);
    const size_t in_block = std::min(ROWS, std::max(TILE, ROWS * 1024 / columns / TILE * TILE));
    // as many whole blocks for each thread, then what is left in as many parts as there are threads
    const size_t whole = product.B / (in_block * threads) * threads, left = product.B - whole * in_block;
    const size_t in_part = chunks_of(chunks_of(left, threads), TILE) * TILE;
    const size_t blocks = whole + (left ? chunks_of(left, in_part) : 0);
    const size_t room = limit + columns + Candidates::SPARE, panels = chunks_of(product.F, PANEL);
    const float margin = search.margin / std::sqrt(static_cast<float>(product.D));
    struct Worker {
        Worker(size_t rows, size_t width, size_t columns, size_t room, size_t numbers)
            : x(rows, width), mixed(width), scratch(numbers), approx(new float[rows * columns]),
              listed(new float[2 * rows * room]), indices(new int32_t[rows * room]), candidates(rows), errors(rows) {}
        ScreenRows x;
        std::vector<float> mixed, scratch;
        std::unique_ptr<float[]> approx, listed;
        std::unique_ptr<int32_t[]> indices;
        std::vector<Candidates> candidates;
        std::vector<Errors> errors;
    };
    std::vector<Worker> workers;
    for (int t = 0; t < product.threads; ++t) workers.emplace_back(in_block, width, columns, room, search.scratch);
    rows_.resize(product.B);
    const size_t most_found = std::min(product.B * limit, keep ? MAX_FOUND / 3 : MAX_FOUND);
    int32_t* const found = found_.get(most_found);
    float* const approxes = keep ? bounds_.get(2 * most_found) : nullptr;
    float* const uppers = keep ? approxes + most_found : nullptr;
    std::atomic<size_t> to_score{0}, listed{0};

    parallel_for(blocks, product.threads, [&](size_t block, size_t thread) {
        if (to_score > product.most || listed > most_found) return;
        Worker& w = workers[thread];
        const size_t start = std::min(block, whole) * in_block + (block - std::min(block, whole)) * in_part;
        const size_t rows = std::min(block < whole ? in_block : in_part, product.B - start);
        w.x.set(weights_, product.centred + start * product.D, rows, isa_, w.mixed.data());
        for (size_t r = 0; r < rows; ++r) {
            const float by_norm = search.by_approx ? 0 : w.x.by_norm[r], by_rest = search.by_approx ? 0 : w.x.by_rest[r];
            w.errors[r] = {weights_.norm.data(), weights_.rest.data(), by_norm, by_rest,
                           search.by_approx ? 0 : weights_.bias_error,
                           margin * (by_norm * weights_.mean_norm + by_rest * weights_.mean_rest)};
            float* const listed = &w.listed[2 * r * room];
            w.candidates[r] = {listed, listed + room, &w.indices[r * room], 0, 0, search.bound,
                               !w.x.info[r].usable || limit == 0};
        }
        for (size_t p = 0; p < panels; p += columns / PANEL) {
            const size_t end = std::min(panels, p + columns / PANEL), first = p * PANEL;
            screen(weights_, w.x, rows, p, end, isa_, w.approx.get(), columns);
            for (size_t r = 0; r < rows; ++r) {
                search.take_in(&w.approx[r * columns], std::min(product.F, end * PANEL) - first, first, w.errors[r],
                               w.scratch.data(), w.candidates[r]);
            }
        }
        size_t n = 0, n_whole = 0;
        for (size_t r = 0; r < rows; ++r) {
            Candidates& c = w.candidates[r];
            search.finish(w.errors[r], c);
            c.wide = c.wide || c.n > limit;
            if (c.wide) c.n = 0, ++n_whole;
            n += c.n;
        }
        to_score += n + n_whole * product.F;
        size_t at = listed.fetch_add(n);  // one block after another, as they come
        if (at + n > most_found) return;
        for (size_t r = 0; r < rows; ++r) {
            const Candidates& c = w.candidates[r];
            rows_[start + r] = {c.wide,  c.n,     found + at, nullptr, nullptr, nullptr,
                                c.bound, w.errors[r].margin};
            std::copy(c.indices, c.indices + c.n, found + at);
            if (keep) {
                rows_[start + r].approx = std::copy(c.approx, c.approx + c.n, approxes + at) - c.n;
                rows_[start + r].upper = std::copy(c.upper, c.upper + c.n, uppers + at) - c.n;
            }
            at += c.n;
        }
    });
    return to_score <= product.most && listed <= most_found;
}

ptrdiff_t ScreenedEncoder::score(const Product& product) {
    score_candidates(product);
    std::vector<size_t> whole;
    for (size_t r = 0; r < product.B; ++r) {
        if (rows_[r].whole) whole.push_back(r);
    }
    return score_rows(product, whole, true, [&](size_t r, const float* values) {
        rows_[r].n = product.F, rows_[r].latents = nullptr, rows_[r].values = values;
        bool bad = false;
        for (size_t f = 0; f < product.F; ++f) bad |= values[f] != values[f];
        return !bad;
    });
}

void ScreenedEncoder::score_candidates(const Product& product) {
    const size_t F = product.F, parts = static_cast<size_t>(product.threads);
    size_t total = 0;
    for (const Row& row : rows_) total += row.n;
    candidates_ += total;
    ScoreEntry* const entries = entries_.get(total);
    float* const values = values_.get(total);
    total = 0;
    for (Row& row : rows_) row.values = values + total, total += row.n;
    // a counting sort by latent; each part of the rows has its own counts, then places
    std::vector<uint32_t> places(parts * F, 0), starts(F + 1);
    const auto each = [&](size_t part, auto work) {
        for (size_t r = product.B * part / parts; r < product.B * (part + 1) / parts; ++r) {
            for (size_t i = 0; i < rows_[r].n; ++i) {
                work(r, i, places[part * F + static_cast<size_t>(rows_[r].latents[i])]);
            }
        }
    };
    parallel_for(parts, product.threads, [&](size_t part, size_t) {
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
    parallel_for(parts, product.threads, [&](size_t part, size_t) {
        each(part, [&](size_t r, size_t i, uint32_t& to) {
            entries[to++] = {static_cast<int32_t>(r), static_cast<uint32_t>(rows_[r].values - values + i)};
        });
    });
    const auto score_latent = SAEFAST_PICK(score, isa_);
    parallel_for(chunks_of(F, LATENTS), product.threads, [&](size_t c, size_t) {
        for (size_t f = c * LATENTS; f < std::min(F, (c + 1) * LATENTS); ++f) {
            const size_t start = starts[f];
            score_latent(entries + start, starts[f + 1] - start, starts[F] - start, product.centred,
                         product.W_enc + f * product.D, product.b_enc[f], product.D, values);
        }
    });
}

ptrdiff_t ScreenedEncoder::score_rows(const Product& product, const std::vector<size_t>& rows, bool keep,
                                      const std::function<bool(size_t row, const float* values)>& finite) {
    const size_t F = product.F;
    dense_rows_ += rows.size();
    if (rows.empty()) return FINITE;
    const size_t at_once = std::min(DENSE_ROWS, rows.size()), blocks = chunks_of(rows.size(), at_once);
    float* const dense = dense_.get((keep ? blocks : static_cast<size_t>(product.threads)) * at_once * F);
    std::vector<ptrdiff_t> nan_row(blocks, FINITE);
    const auto score_latent = SAEFAST_PICK(score, isa_);
    parallel_for(blocks, product.threads, [&](size_t block, size_t thread) {
        const size_t first = block * at_once, n = std::min(at_once, rows.size() - first);
        float* const values = dense + (keep ? block : thread) * at_once * F;
        ScoreEntry entries[DENSE_ROWS];
        for (size_t f = 0; f < F; ++f) {
            for (size_t i = 0; i < n; ++i) {
                entries[i] = {static_cast<int32_t>(rows[first + i]), static_cast<uint32_t>(i * F + f)};
            }
            score_latent(entries, n, n, product.centred, product.W_enc + f * product.D, product.b_enc[f], product.D,
                         values);
        }
        for (size_t i = 0; i < n && nan_row[block] == FINITE; ++i) {
            if (!finite(rows[first + i], values + i * F)) nan_row[block] = static_cast<ptrdiff_t>(rows[first + i]);
        }
    });
    const auto bad = std::find_if(nan_row.begin(), nan_row.end(), [](ptrdiff_t row) { return row != FINITE; });
    return bad == nan_row.end() ? FINITE : *bad;
}

}  // namespace saefast
