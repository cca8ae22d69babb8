// Each latent belongs to one thread, which adds its entries in the order of the tokens; what all latents add to b_dec
// and to the norm is kept per chunk of latents and added in the order of the chunks. So the bits depend on neither the
// number of threads nor on which of them was faster.

#include "update.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "parallel.h"

namespace saefast {
namespace {

using std::int32_t;
using std::size_t;

constexpr size_t LATENTS = 32;  // in a chunk
constexpr size_t TOKENS = 128;  // in a chunk of the column sums of `error`
constexpr size_t AT_ONCE = 4;   // entries of a latent, so that sums are loaded and stored less often

// sums += act * row for N rows, and dots[r] = <row, w>, in one reading of the rows.
template <size_t N>
SAEFAST_INLINE void add_and_dot(const float* const* rows, const float* acts, const float* w, size_t D, float* sums,
                                float* dots) {
    Vec partial[N] = {};
    size_t d = 0;
    for (; d + LANES <= D; d += LANES) {
        Vec total = load(sums + d);
        const Vec weight = load(w + d);
        for (size_t r = 0; r < N; ++r) {
            const Vec row = load(rows[r] + d);
            total += acts[r] * row;
            partial[r] += row * weight;
        }
        store(sums + d, total);
    }
    for (size_t r = 0; r < N; ++r) dots[r] = sum(partial[r]);
    for (; d < D; ++d) {
        for (size_t r = 0; r < N; ++r) {
            sums[d] += acts[r] * rows[r][d];
            dots[r] += rows[r][d] * w[d];
        }
    }
}

// sums += factor * row for N rows.
template <size_t N>
SAEFAST_INLINE void add(const float* const* rows, const float* factors, size_t D, float* sums) {
    size_t d = 0;
    for (; d + LANES <= D; d += LANES) {
        Vec total = load(sums + d);
        for (size_t r = 0; r < N; ++r) total += factors[r] * load(rows[r] + d);
        store(sums + d, total);
    }
    for (; d < D; ++d) {
        for (size_t r = 0; r < N; ++r) sums[d] += factors[r] * rows[r][d];
    }
}

// N entries of a latent from `i` on: adds to its gradients (W_dec's in units of the error), returns their part of db.
template <size_t N>
SAEFAST_INLINE float add_entries(const Batch& batch, const Numbers& numbers, size_t i, size_t D, const float* w_dec,
                                 float* grad_enc, float* grad_dec) {
    const float *errors[N], *inputs[N];
    float acts[N], grad_acts[N], db = 0;
    for (size_t r = 0; r < N; ++r) {
        const size_t token = static_cast<size_t>(batch.tokens[i + r]);
        errors[r] = batch.error + token * D;
        inputs[r] = batch.centred + token * D;
        acts[r] = batch.acts[batch.pairs[i + r]];
    }
    add_and_dot<N>(errors, acts, w_dec, D, grad_dec, grad_acts);
    for (size_t r = 0; r < N; ++r) {
        grad_acts[r] = batch.grad_scale * grad_acts[r] + numbers.l1;
        db += grad_acts[r];
    }
    add<N>(inputs, grad_acts, D, grad_enc);
    return db;
}

SAEFAST_INLINE float dot(const float* a, const float* b, size_t D) {
    Vec partial{};
    size_t d = 0;
    for (; d + LANES <= D; d += LANES) partial += load(a + d) * load(b + d);
    float total = sum(partial);
    for (; d < D; ++d) total += a[d] * b[d];
    return total;
}

// The gradients of latent f: its rows of W_enc and W_dec (projected) and, returned, of b_enc. AuxK's addend to that of
// b_enc comes on top of it: its part of b_dec's gradient is known already.
SAEFAST_INLINE float latent_grads(const Weights& weights, const Batch& batch, const Aux& aux, const Numbers& numbers,
                                  size_t f, float* grad_enc, float* grad_dec, float& aux_db) {
    const size_t D = weights.D, end = static_cast<size_t>(batch.offsets[f + 1]);
    const float* w_dec = weights.W_dec.value + f * D;
    std::fill(grad_enc, grad_enc + D, 0.0f);
    std::fill(grad_dec, grad_dec + D, 0.0f);
    float db = aux_db = 0;
    size_t i = static_cast<size_t>(batch.offsets[f]);
    const bool any = i < end;
    for (; i + AT_ONCE <= end; i += AT_ONCE) {
        db += add_entries<AT_ONCE>(batch, numbers, i, D, w_dec, grad_enc, grad_dec);
    }
    for (; i < end; ++i) db += add_entries<1>(batch, numbers, i, D, w_dec, grad_enc, grad_dec);

    const int32_t slot = aux.slots ? aux.slots[f] : -1;
    if (!any && slot < 0) return 0;  // no gradient, nothing to project
    if (batch.grad_scale != 1) {
        for (size_t d = 0; d < D; ++d) grad_dec[d] *= batch.grad_scale;
    }
    if (slot >= 0) {
        const size_t row = static_cast<size_t>(slot) * D;
        for (size_t d = 0; d < D; ++d) {
            grad_enc[d] += aux.W_enc[row + d];
            grad_dec[d] += aux.W_dec[row + d];
        }
        aux_db = aux.b_enc[slot];
    }
    const float along = dot(grad_dec, w_dec, D);
    for (size_t d = 0; d < D; ++d) grad_dec[d] -= along * w_dec[d];
    return db;
}

// param -= lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps), after the moments took in the gradient.
SAEFAST_INLINE void adam(const Param& param, size_t first, const float* grad, float factor, size_t D, float lr,
                         float eps, const Numbers& n) {
    float *w = param.value + first, *m = param.exp_avg + first, *v = param.exp_avg_sq + first;
    const float step = -lr * n.correction1;
    for (size_t d = 0; d < D; ++d) {
        const float g = factor * grad[d];
        m[d] += n.beta1_rest * (g - m[d]);
        v[d] = n.beta2 * v[d] + n.beta2_rest * (g * g);
        w[d] += step * m[d] / (std::sqrt(v[d] * n.correction2) + eps);
    }
}

SAEFAST_INLINE void update_latent(const Weights& weights, size_t f, const float* grad_enc, float db,
                                  const float* grad_dec, float factor, const Numbers& n) {
    const size_t D = weights.D;
    adam(weights.W_enc, f * D, grad_enc, factor, D, n.lr, n.eps, n);
    adam(weights.b_enc, f, &db, factor, 1, n.lr_bias, n.eps_bias, n);
    adam(weights.W_dec, f * D, grad_dec, factor, D, n.lr, n.eps, n);
    float* w_dec = weights.W_dec.value + f * D;
    const float norm = std::max(std::sqrt(dot(w_dec, w_dec, D)), std::numeric_limits<float>::min());
    for (size_t d = 0; d < D; ++d) w_dec[d] /= norm;
}

// A chunk of latents. `grads` with null pointers: update at once; else write the gradients there. b_dec_part [D] takes
// sum of db * W_enc row; returns the squared norm of the chunk's gradients.
SAEFAST_INLINE double chunk(const Weights& weights, const Batch& batch, const Aux& aux, const Numbers& n,
                            const Grads& grads, size_t first, size_t end, float* scratch, float* b_dec_part) {
    const size_t D = weights.D;
    double squared = 0;
    std::fill(b_dec_part, b_dec_part + D, 0.0f);
    for (size_t f = first; f < end; ++f) {
        float* grad_enc = grads.W_enc ? grads.W_enc + f * D : scratch;
        float* grad_dec = grads.W_dec ? grads.W_dec + f * D : scratch + D;
        float aux_db, db = latent_grads(weights, batch, aux, n, f, grad_enc, grad_dec, aux_db);
        if (db != 0) {
            const float* w_enc = weights.W_enc.value + f * D;
            for (size_t d = 0; d < D; ++d) b_dec_part[d] += db * w_enc[d];
        }
        db += aux_db;
        squared += dot(grad_enc, grad_enc, D) + dot(grad_dec, grad_dec, D) + db * db * n.bias_norm * n.bias_norm;
        if (grads.b_enc) {
            grads.b_enc[f] = db;
        } else {
            update_latent(weights, f, grad_enc, db, grad_dec, 1.0f, n);
        }
    }
    return squared;
}
SAEFAST_DISPATCH(double, chunk,
                 (const Weights& weights, const Batch& batch, const Aux& aux, const Numbers& n, const Grads& grads,
                  size_t first, size_t end, float* scratch, float* b_dec_part),
                 (weights, batch, aux, n, grads, first, end, scratch, b_dec_part))

SAEFAST_INLINE void adam_chunk(const Weights& weights, const Grads& grads, float factor, const Numbers& n,
                               size_t first, size_t end) {
    for (size_t f = first; f < end; ++f) {
        update_latent(weights, f, grads.W_enc + f * weights.D, grads.b_enc[f], grads.W_dec + f * weights.D, factor, n);
    }
}
SAEFAST_DISPATCH(void, adam_chunk,
                 (const Weights& weights, const Grads& grads, float factor, const Numbers& n, size_t first,
                  size_t end),
                 (weights, grads, factor, n, first, end))

SAEFAST_INLINE void column_sums(const float* rows, size_t n, size_t D, float* sums) {
    std::fill(sums, sums + D, 0.0f);
    for (size_t r = 0; r < n; ++r) {
        for (size_t d = 0; d < D; ++d) sums[d] += rows[r * D + d];
    }
}
SAEFAST_DISPATCH(void, column_sums, (const float* rows, size_t n, size_t D, float* sums), (rows, n, D, sums))

size_t chunks_of(size_t n, size_t size) { return (n + size - 1) / size; }

// Chunks in descending order of their entries: the longest begin first, so that no thread is left with it at the end.
std::vector<size_t> longest_first(const Batch& batch, size_t F) {
    std::vector<size_t> order(chunks_of(F, LATENTS));
    std::iota(order.begin(), order.end(), size_t{0});
    const auto entries = [&](size_t i) {
        return batch.offsets[std::min(F, (i + 1) * LATENTS)] - batch.offsets[i * LATENTS];
    };
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return entries(a) > entries(b); });
    return order;
}

// Backward of all latents, with or without the update; `grad_b_dec` [D] is b_dec's gradient.
double backward(const Weights& weights, const Batch& batch, const Aux& aux, const Numbers& n, int threads, Isa isa,
                const Grads& grads, float* grad_b_dec) {
    const size_t F = weights.F, D = weights.D, n_chunks = chunks_of(F, LATENTS);
    const size_t n_blocks = chunks_of(batch.B, TOKENS), width = chunks_of(D, LANES) * LANES;
    std::vector<float> scratch(static_cast<size_t>(threads) * 2 * width), b_dec_parts(n_chunks * D);
    std::vector<float> error_sums(n_blocks * D);
    std::vector<double> squared(n_chunks), total(D, 0.0);
    const std::vector<size_t> order = longest_first(batch, F);
    const auto run = SAEFAST_PICK(chunk, isa);
    const auto sums_of = SAEFAST_PICK(column_sums, isa);

    // error's column sums first: they read it into cache
    parallel_for(n_blocks, threads, [&](size_t i, size_t) {
        const size_t first = i * TOKENS, rows = std::min(TOKENS, batch.B - first);
        sums_of(batch.error + first * D, rows, D, &error_sums[i * D]);
    });
    parallel_for(n_chunks, threads, [&](size_t i, size_t thread) {
        const size_t c = order[i], first = c * LATENTS;
        squared[c] = run(weights, batch, aux, n, grads, first, std::min(F, first + LATENTS),
                         &scratch[thread * 2 * width], &b_dec_parts[c * D]);
    });
    for (size_t i = 0; i < n_blocks; ++i) {
        for (size_t d = 0; d < D; ++d) total[d] += static_cast<double>(batch.grad_scale) * error_sums[i * D + d];
    }
    for (size_t c = 0; c < n_chunks; ++c) {
        for (size_t d = 0; d < D; ++d) total[d] -= b_dec_parts[c * D + d];
    }
    double norm = 0;
    for (const double part : squared) norm += part;
    for (size_t d = 0; d < D; ++d) {
        grad_b_dec[d] = static_cast<float>(total[d] + (aux.slots ? aux.b_dec[d] : 0.0f));
        norm += static_cast<double>(grad_b_dec[d]) * grad_b_dec[d] * n.bias_norm * n.bias_norm;
    }
    return norm;
}

}  // namespace

double update(const Weights& weights, const Batch& batch, const Aux& aux, const Numbers& n, int threads, Isa isa) {
    if (std::isnan(batch.grad_scale)) return batch.grad_scale;  // the batch is not finite: nothing changes
    std::vector<float> grad_b_dec(weights.D);
    const double norm = backward(weights, batch, aux, n, threads, isa, Grads{}, grad_b_dec.data());
    adam(weights.b_dec, 0, grad_b_dec.data(), 1.0f, weights.D, n.lr_bias, n.eps_bias, n);
    return norm;
}

double row_grads(const Weights& weights, const Batch& batch, const Aux& aux, const Numbers& n, int threads, Isa isa,
                 const Grads& grads) {
    return backward(weights, batch, aux, n, threads, isa, grads, grads.b_dec);
}

void adam_rows(const Weights& weights, const Grads& grads, float factor, const Numbers& n, int threads, Isa isa) {
    if (std::isnan(factor)) return;
    const auto run = SAEFAST_PICK(adam_chunk, isa);
    parallel_for(chunks_of(weights.F, LATENTS), threads, [&](size_t c, size_t) {
        run(weights, grads, factor, n, c * LATENTS, std::min(weights.F, (c + 1) * LATENTS));
    });
    adam(weights.b_dec, 0, grads.b_dec, factor, weights.D, n.lr_bias, n.eps_bias, n);
}

}  // namespace saefast
