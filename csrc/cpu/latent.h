// One latent of `update.cpp`: its gradients from its entries, and its Adam step.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "update.h"

namespace saefast {

using std::int32_t;
using std::size_t;

constexpr size_t AT_ONCE = 4;  // entries of a latent, so that sums are loaded and stored less often

// sums += act * row for N rows, and dots[r] = <row, w>, in one reading of the rows.
template <typename V, size_t N>
SAEFAST_INLINE void add_and_dot(const float* const* rows, const float* acts, const float* w, size_t D, float* sums,
                                float* dots) {
    V partial[N];
    for (size_t r = 0; r < N; ++r) partial[r] = V::zero();
    size_t d = 0;
    for (; d + LANES <= D; d += LANES) {
        V total = V::load(sums + d);
        const V weight = V::load(w + d);
        for (size_t r = 0; r < N; ++r) {
            const V row = V::load(rows[r] + d);
            total.add(acts[r], row);
            partial[r].add(row, weight);
        }
        total.store(sums + d);
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
template <typename V, size_t N>
SAEFAST_INLINE void add(const float* const* rows, const float* factors, size_t D, float* sums) {
    size_t d = 0;
    for (; d + LANES <= D; d += LANES) {
        V total = V::load(sums + d);
        for (size_t r = 0; r < N; ++r) total.add(factors[r], V::load(rows[r] + d));
        total.store(sums + d);
    }
    for (; d < D; ++d) {
        for (size_t r = 0; r < N; ++r) sums[d] += factors[r] * rows[r][d];
    }
}

// N entries of a latent from `i` on: adds to the gradient of its row of W_dec, in units of the error, and finds those
// of its pre-activations.
template <typename V, size_t N>
SAEFAST_INLINE void add_errors(const Weights& weights, const Batch& batch, const Numbers& numbers, size_t i,
                               const float* w_dec, float* grad_dec, float* grad_pre) {
    const float* errors[N];
    float acts[N];
    for (size_t r = 0; r < N; ++r) {
        errors[r] = batch.error + static_cast<size_t>(batch.tokens[i + r]) * weights.D_out;
        acts[r] = batch.acts[batch.pairs[i + r]];
    }
    if (batch.given.grad_pre) {
        add<V, N>(errors, acts, weights.D_out, grad_dec);
        for (size_t r = 0; r < N; ++r) grad_pre[r] = batch.given.grad_pre[batch.pairs[i + r]];
    } else {
        add_and_dot<V, N>(errors, acts, w_dec, weights.D_out, grad_dec, grad_pre);
        for (size_t r = 0; r < N; ++r) grad_pre[r] = batch.grad_scale * grad_pre[r] + numbers.l1;
    }
}

// N entries of a latent from `i` on: adds to the gradient of its row of W_enc, returns their part of b_enc's.
template <typename V, size_t N>
SAEFAST_INLINE float add_inputs(const Weights& weights, const Batch& batch, size_t i, const float* grad_pre,
                                float* grad_enc) {
    const float* inputs[N];
    float db = 0;
    for (size_t r = 0; r < N; ++r) {
        const size_t row = static_cast<size_t>(batch.tokens[i + r]);
        inputs[r] = batch.centred + (row < batch.B ? row : row % batch.B) * weights.D_in;
        db += grad_pre[r];
    }
    add<V, N>(inputs, grad_pre, weights.D_in, grad_enc);
    return db;
}

template <typename V>
SAEFAST_INLINE float dot(const float* a, const float* b, size_t D) {
    V partial{};
    size_t d = 0;
    for (; d + LANES <= D; d += LANES) partial.add(V::load(a + d), V::load(b + d));
    float total = sum(partial);
    for (; d < D; ++d) total += a[d] * b[d];
    return total;
}

// Whether latent f has a gradient at all.
SAEFAST_INLINE bool has_gradient(const Batch& batch, const Aux& aux, size_t f) {
    return batch.offsets[f] < batch.offsets[f + 1] || (aux.slots && aux.slots[f] >= 0) || batch.given.grad_pre;
}

// The gradient of row f of W_dec, projected if it keeps unit norm; and those of its pre-activations, by its entries.
template <typename V>
SAEFAST_INLINE void decoder_grad(const Weights& weights, const Batch& batch, const Aux& aux, const Numbers& numbers,
                                 size_t f, float* grad, float* grad_pre) {
    const size_t D = weights.D_out, first = static_cast<size_t>(batch.offsets[f]);
    const size_t end = static_cast<size_t>(batch.offsets[f + 1]);
    const float* w = weights.W_dec.value + f * D;
    std::fill(grad, grad + D, 0.0f);
    if (!has_gradient(batch, aux, f)) return;
    size_t i = first;
    for (; i + AT_ONCE <= end; i += AT_ONCE) {
        add_errors<V, AT_ONCE>(weights, batch, numbers, i, w, grad, grad_pre + (i - first));
    }
    for (; i < end; ++i) add_errors<V, 1>(weights, batch, numbers, i, w, grad, grad_pre + (i - first));
    if (batch.grad_scale != 1) {
        for (size_t d = 0; d < D; ++d) grad[d] *= batch.grad_scale;
    }
    const Given& given = batch.given;
    for (size_t l = 0; given.grad_pre && l < given.L; ++l) {
        const float pull = given.pull[f * given.L + l];
        const size_t width = D / given.L;
        if (pull == 0) continue;
        for (size_t d = l * width; d < (l + 1) * width; ++d) grad[d] += pull * w[d];
    }
    if (aux.slots && aux.slots[f] >= 0) {
        const float* added = aux.W_dec + static_cast<size_t>(aux.slots[f]) * D;
        for (size_t d = 0; d < D; ++d) grad[d] += added[d];
    }
    if (numbers.unit == 0) return;
    const float along = dot<V>(grad, w, D);
    for (size_t d = 0; d < D; ++d) grad[d] -= along * w[d];
}

// The gradients of row f of W_enc and, returned, of b_enc, from those of its pre-activations. What AuxK and
// `Given.bias` add to that of b_enc comes on top of it in `alone`: it does not pass through to b_dec.
template <typename V>
SAEFAST_INLINE float encoder_grad(const Weights& weights, const Batch& batch, const Aux& aux, size_t f,
                                  const float* grad_pre, float* grad, float& alone) {
    const size_t D = weights.D_in, first = static_cast<size_t>(batch.offsets[f]);
    const size_t end = static_cast<size_t>(batch.offsets[f + 1]);
    std::fill(grad, grad + D, 0.0f);
    float db = alone = 0;
    if (!has_gradient(batch, aux, f)) return 0;
    size_t i = first;
    for (; i + AT_ONCE <= end; i += AT_ONCE) {
        db += add_inputs<V, AT_ONCE>(weights, batch, i, grad_pre + (i - first), grad);
    }
    for (; i < end; ++i) db += add_inputs<V, 1>(weights, batch, i, grad_pre + (i - first), grad);
    if (batch.given.grad_pre) {
        const float push = batch.given.push[f];
        if (push != 0) {
            for (size_t d = 0; d < D; ++d) grad[d] += push * batch.given.push_row[d];
        }
        db += push * static_cast<float>(batch.B);
        alone = batch.given.bias[f];
    }
    if (aux.slots && aux.slots[f] >= 0) {
        const size_t slot = static_cast<size_t>(aux.slots[f]);
        for (size_t d = 0; d < D; ++d) grad[d] += aux.W_enc[slot * D + d];
        alone += aux.b_enc[slot];
    }
    return db;
}

// param -= lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps), after the moments took in the gradient.
SAEFAST_INLINE void adam(const Param& param, size_t first, const float* grad, float factor, size_t D, float lr,
                         float eps, const Numbers& n) {
    float *w = param.value + first, *m = param.exp_avg + first, *v = param.exp_avg_sq + first;
    const float step = -lr * n.correction1;
    const auto one = [&](size_t d) __attribute__((always_inline)) {
        const float g = factor * grad[d];
        m[d] += n.beta1_rest * (g - m[d]);
        v[d] = n.beta2 * v[d] + n.beta2_rest * (g * g);
        w[d] += step * m[d] / (std::sqrt(v[d] * n.correction2) + eps);
    };
    size_t d = 0;
    for (; d + LANES <= D; d += LANES) {  // a cache line, while that of the next latent is on its way
        for (const float* row : {w, m, v}) __builtin_prefetch(row + D + d, 1);
        for (size_t i = d; i < d + LANES; ++i) one(i);
    }
    for (; d < D; ++d) one(d);
}

template <typename V>
SAEFAST_INLINE void update_decoder(const Weights& weights, size_t f, const float* grad, float factor,
                                   const Numbers& n) {
    const size_t D = weights.D_out;
    adam(weights.W_dec, f * D, grad, factor, D, n.lr_dec, n.eps, n);
    if (n.unit == 0) return;
    float* w = weights.W_dec.value + f * D;
    const float norm = std::max(std::sqrt(dot<V>(w, w, D)), std::numeric_limits<float>::min());
    for (size_t d = 0; d < D; ++d) w[d] /= norm;
}

SAEFAST_INLINE void update_encoder(const Weights& weights, size_t f, const float* grad, float db, float factor,
                                   const Numbers& n) {
    adam(weights.W_enc, f * weights.D_in, grad, factor, weights.D_in, n.lr, n.eps, n);
    adam(weights.b_enc, f, &db, factor, 1, n.lr_bias, n.eps_bias, n);
}

}  // namespace saefast
