// Each latent belongs to one thread, which adds its entries in the order of the tokens; what all latents add to b_dec
// and to the norm is kept per chunk of latents and added in the order of the chunks. So the bits depend on neither the
// number of threads nor on which of them was faster.

#include "update.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

#include "latent.h"
#include "parallel.h"

namespace saefast {
namespace {

constexpr size_t LATENTS = 32;  // in a chunk
constexpr size_t AT_A_TIME = PANEL / LATENTS;  // chunks in an item of work, for they are rounded together
static_assert(PANEL % LATENTS == 0);
constexpr size_t TOKENS = 128;  // in a chunk of the column sums of `error`

// The rounded copy of the weights, if there is one, as a thread follows it up: row after row, while those that come next
// are on their way from memory, and panel after panel.
struct Copy {
    ScreenWeights* rounded;
    RoundedPanel panel;

    void row(size_t f, const float* W_enc) {
        if (rounded) rounded->round_row(f, W_enc, panel);
    }
    void finish(size_t p, const float* W_enc) {
        if (rounded) rounded->finish(p, W_enc, panel);
    }
};

std::vector<Copy> copies(ScreenWeights* rounded, const Weights& weights, int threads) {
    const bool is_of = rounded && rounded->rounds(weights.W_enc.value, weights.F, weights.D_in);
    return std::vector<Copy>(static_cast<size_t>(threads), {is_of ? rounded : nullptr, {}});
}

// A chunk of latents comes twice, for their rows of W_dec and, when all of those are done, of W_enc: so the gathered rows
// are those of one matrix at a time, `error` and then `centred`, and more of them are still in cache. `grads` with null
// pointers: update at once; else write the gradients there.
//
// grad_pre: of the entries, in their order; norms [F]: squared, of the rows' gradients.
template <typename V>
SAEFAST_INLINE void decoder_chunk(const Weights& weights, const Batch& batch, const Aux& aux, const Numbers& n,
                                  const Grads& grads, size_t first, size_t end, float* scratch, float* grad_pre,
                                  float* norms) {
    const size_t D = weights.D_out;
    for (size_t f = first; f < end; ++f) {
        float* grad = grads.W_dec ? grads.W_dec + f * D : scratch;
        decoder_grad<V>(weights, batch, aux, n, f, grad, grad_pre + batch.offsets[f]);
        norms[f] = dot<V>(grad, grad, D);
        if (!grads.W_dec) update_decoder<V>(weights, f, grad, 1.0f, n);
    }
}
SAEFAST_DISPATCH_V(void, decoder_chunk,
                   (const Weights& weights, const Batch& batch, const Aux& aux, const Numbers& n, const Grads& grads,
                    size_t first, size_t end, float* scratch, float* grad_pre, float* norms),
                   (weights, batch, aux, n, grads, first, end, scratch, grad_pre, norms))

// If the input is tied to b_dec, b_dec_part [D_in] takes sum of db * W_enc row. Returns the squared norm of the chunk's
// gradients.
template <typename V>
SAEFAST_INLINE double encoder_chunk(const Weights& weights, const Batch& batch, const Aux& aux, const Numbers& n,
                                    const Grads& grads, size_t first, size_t end, float* scratch,
                                    const float* grad_pre, const float* norms, float* b_dec_part, Copy& copy) {
    const size_t D = weights.D_in;
    const bool tied = n.tied != 0;
    double squared = 0;
    if (tied) std::fill(b_dec_part, b_dec_part + D, 0.0f);
    for (size_t f = first; f < end; ++f) {
        float* grad = grads.W_enc ? grads.W_enc + f * D : scratch;
        float alone, db = encoder_grad<V>(weights, batch, aux, f, grad_pre + batch.offsets[f], grad, alone);
        if (tied && db != 0) {
            const float* w = weights.W_enc.value + f * D;
            for (size_t d = 0; d < D; ++d) b_dec_part[d] += db * w[d];
        }
        db += alone;
        squared += dot<V>(grad, grad, D) + norms[f] + db * db * n.bias_norm * n.bias_norm;
        if (grads.b_enc) {
            grads.b_enc[f] = db;
        } else {
            update_encoder(weights, f, grad, db, 1.0f, n);
            copy.row(f, weights.W_enc.value);
        }
    }
    return squared;
}
SAEFAST_DISPATCH_V(double, encoder_chunk,
                   (const Weights& weights, const Batch& batch, const Aux& aux, const Numbers& n, const Grads& grads,
                    size_t first, size_t end, float* scratch, const float* grad_pre, const float* norms,
                    float* b_dec_part, Copy& copy),
                   (weights, batch, aux, n, grads, first, end, scratch, grad_pre, norms, b_dec_part, copy))

template <typename V>
SAEFAST_INLINE void adam_chunk(const Weights& weights, const Grads& grads, float factor, const Numbers& n,
                               size_t first, size_t end, Copy& copy) {
    for (size_t f = first; f < end; ++f) {
        update_encoder(weights, f, grads.W_enc + f * weights.D_in, grads.b_enc[f], factor, n);
        copy.row(f, weights.W_enc.value);
        update_decoder<V>(weights, f, grads.W_dec + f * weights.D_out, factor, n);
    }
}
SAEFAST_DISPATCH_V(void, adam_chunk,
                   (const Weights& weights, const Grads& grads, float factor, const Numbers& n, size_t first,
                    size_t end, Copy& copy),
                   (weights, grads, factor, n, first, end, copy))

SAEFAST_INLINE void column_sums(const float* rows, size_t n, size_t D, float* sums) {
    std::fill(sums, sums + D, 0.0f);
    for (size_t r = 0; r < n; ++r) {
        for (size_t d = 0; d < D; ++d) sums[d] += rows[r * D + d];
    }
}
SAEFAST_DISPATCH(void, column_sums, (const float* rows, size_t n, size_t D, float* sums), (rows, n, D, sums))


// Panels in descending order of their entries: the longest begin first, so that no thread is left with it at the end.
std::vector<size_t> longest_first(const Batch& batch, size_t F) {
    std::vector<size_t> order(chunks_of(F, PANEL));
    std::iota(order.begin(), order.end(), size_t{0});
    const auto entries = [&](size_t i) {
        return batch.offsets[std::min(F, (i + 1) * PANEL)] - batch.offsets[i * PANEL];
    };
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return entries(a) > entries(b); });
    return order;
}

// Backward of all latents, with or without the update; `grad_b_dec` [D_out] is b_dec's gradient.
double backward(const Weights& weights, const Batch& batch, const Aux& aux, const Numbers& n, int threads, Isa isa,
                const Grads& grads, float* grad_b_dec, ScreenWeights* rounded) {
    const size_t F = weights.F, D = weights.D_out, n_chunks = chunks_of(F, LATENTS);
    const size_t n_blocks = chunks_of(batch.B, TOKENS);
    const size_t width = chunks_of(std::max(weights.D_in, D), LANES) * LANES;
    const bool tied = n.tied != 0;  // then D_in is D_out
    std::vector<float> scratch(static_cast<size_t>(threads) * width), b_dec_parts(tied ? n_chunks * D : 0);
    std::vector<float> error_sums(n_blocks * D), norms(F);
    const std::unique_ptr<float[]> grad_pre(new float[static_cast<size_t>(batch.offsets[F])]);
    std::vector<double> squared(n_chunks), total(D, 0.0);
    const std::vector<size_t> order = longest_first(batch, F);
    std::vector<Copy> copy = copies(rounded, weights, threads);
    const auto decoder_of = SAEFAST_PICK(decoder_chunk, isa);
    const auto encoder_of = SAEFAST_PICK(encoder_chunk, isa);
    const auto sums_of = SAEFAST_PICK(column_sums, isa);

    // error's column sums first: they read it into cache
    parallel_for(n_blocks, threads, [&](size_t i, size_t) {
        const size_t first = i * TOKENS, rows = std::min(TOKENS, batch.B - first);
        sums_of(batch.error + first * D, rows, D, &error_sums[i * D]);
    });
    parallel_for(order.size(), threads, [&](size_t i, size_t thread) {
        const size_t first = order[i] * PANEL;
        decoder_of(weights, batch, aux, n, grads, first, std::min(F, first + PANEL), &scratch[thread * width],
                   grad_pre.get(), norms.data());
    });
    parallel_for(order.size(), threads, [&](size_t i, size_t thread) {
        for (size_t c = order[i] * AT_A_TIME; c < std::min(n_chunks, (order[i] + 1) * AT_A_TIME); ++c) {
            const size_t first = c * LATENTS;
            squared[c] = encoder_of(weights, batch, aux, n, grads, first, std::min(F, first + LATENTS),
                                    &scratch[thread * width], grad_pre.get(), norms.data(),
                                    tied ? &b_dec_parts[c * D] : nullptr, copy[thread]);
        }
        copy[thread].finish(order[i], weights.W_enc.value);
    });
    for (size_t i = 0; i < n_blocks; ++i) {
        for (size_t d = 0; d < D; ++d) total[d] += static_cast<double>(batch.grad_scale) * error_sums[i * D + d];
    }
    for (size_t c = 0; tied && c < n_chunks; ++c) {
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

double update(const Weights& weights, const Batch& batch, const Aux& aux, const Numbers& n, int threads, Isa isa,
              ScreenWeights* rounded) {
    if (std::isnan(batch.grad_scale)) return batch.grad_scale;  // the batch is not finite: nothing changes
    std::vector<float> grad_b_dec(weights.D_out);
    const double norm = backward(weights, batch, aux, n, threads, isa, Grads{}, grad_b_dec.data(), rounded);
    adam(weights.b_dec, 0, grad_b_dec.data(), 1.0f, weights.D_out, n.lr_b_dec, n.eps_bias, n);
    return norm;
}

double row_grads(const Weights& weights, const Batch& batch, const Aux& aux, const Numbers& n, int threads, Isa isa,
                 const Grads& grads) {
    return backward(weights, batch, aux, n, threads, isa, grads, grads.b_dec, nullptr);
}

void adam_rows(const Weights& weights, const Grads& grads, float factor, const Numbers& n, int threads, Isa isa,
               ScreenWeights* rounded) {
    if (std::isnan(factor)) return;
    const auto run = SAEFAST_PICK(adam_chunk, isa);
    std::vector<Copy> copy = copies(rounded, weights, threads);
    parallel_for(chunks_of(weights.F, PANEL), threads, [&](size_t p, size_t thread) {
        run(weights, grads, factor, n, p * PANEL, std::min(weights.F, (p + 1) * PANEL), copy[thread]);
        copy[thread].finish(p, weights.W_enc.value);
    });
    adam(weights.b_dec, 0, grads.b_dec, factor, weights.D_out, n.lr_b_dec, n.eps_bias, n);
}

}  // namespace saefast
