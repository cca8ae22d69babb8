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
    V partial[N] = {};
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

// N entries of a latent from `i` on: adds to its gradients (W_dec's in units of the error), returns their part of db.
template <typename V, size_t N>
SAEFAST_INLINE float add_entries(const Weights& weights, const Batch& batch, const Numbers& numbers, size_t i,
                                 const float* w_dec, float* grad_enc, float* grad_dec) {
    const float *errors[N], *inputs[N];
    float acts[N], grad_pre[N], db = 0;
    for (size_t r = 0; r < N; ++r) {
        const size_t row = static_cast<size_t>(batch.tokens[i + r]);
        errors[r] = batch.error + row * weights.D_out;
        inputs[r] = batch.centred + (row < batch.B ? row : row % batch.B) * weights.D_in;
        acts[r] = batch.acts[batch.pairs[i + r]];
    }
    if (batch.given.grad_pre) {
        add<V, N>(errors, acts, weights.D_out, grad_dec);
        for (size_t r = 0; r < N; ++r) grad_pre[r] = batch.given.grad_pre[batch.pairs[i + r]];
    } else {
        add_and_dot<V, N>(errors, acts, w_dec, weights.D_out, grad_dec, grad_pre);
        for (size_t r = 0; r < N; ++r) grad_pre[r] = batch.grad_scale * grad_pre[r] + numbers.l1;
    }
    for (size_t r = 0; r < N; ++r) db += grad_pre[r];
    add<V, N>(inputs, grad_pre, weights.D_in, grad_enc);
    return db;
}

// What is given for latent f besides its entries; returns its part of db.
SAEFAST_INLINE float add_given(const Weights& weights, const Batch& batch, size_t f, const float* w_dec,
                               float* grad_enc, float* grad_dec) {
    const Given& given = batch.given;
    const float push = given.push[f];
    if (push != 0) {
        for (size_t d = 0; d < weights.D_in; ++d) grad_enc[d] += push * given.push_row[d];
    }
    const size_t width = given.L ? weights.D_out / given.L : 0;
    for (size_t l = 0; l < given.L; ++l) {
        const float pull = given.pull[f * given.L + l];
        if (pull == 0) continue;
        for (size_t d = l * width; d < (l + 1) * width; ++d) grad_dec[d] += pull * w_dec[d];
    }
    return push * static_cast<float>(batch.B);
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

// The gradients of latent f: its rows of W_enc and W_dec (projected, if it keeps unit norm) and, returned, of b_enc.
// What AuxK and `Given.bias` add to that of b_enc comes on top of it in `alone`: it does not pass through to b_dec.
template <typename V>
SAEFAST_INLINE float latent_grads(const Weights& weights, const Batch& batch, const Aux& aux, const Numbers& numbers,
                                  size_t f, float* grad_enc, float* grad_dec, float& alone) {
    const size_t D_in = weights.D_in, D_out = weights.D_out, end = static_cast<size_t>(batch.offsets[f + 1]);
    const float* w_dec = weights.W_dec.value + f * D_out;
    std::fill(grad_enc, grad_enc + D_in, 0.0f);
    std::fill(grad_dec, grad_dec + D_out, 0.0f);
    float db = alone = 0;
    size_t i = static_cast<size_t>(batch.offsets[f]);
    const bool any = i < end;
    for (; i + AT_ONCE <= end; i += AT_ONCE) {
        db += add_entries<V, AT_ONCE>(weights, batch, numbers, i, w_dec, grad_enc, grad_dec);
    }
    for (; i < end; ++i) db += add_entries<V, 1>(weights, batch, numbers, i, w_dec, grad_enc, grad_dec);

    const int32_t slot = aux.slots ? aux.slots[f] : -1;
    if (!any && slot < 0 && !batch.given.grad_pre) return 0;  // no gradient, nothing to project
    if (batch.grad_scale != 1) {
        for (size_t d = 0; d < D_out; ++d) grad_dec[d] *= batch.grad_scale;
    }
    if (batch.given.grad_pre) {
        db += add_given(weights, batch, f, w_dec, grad_enc, grad_dec);
        alone = batch.given.bias[f];
    }
    if (slot >= 0) {
        const float* add_enc = aux.W_enc + static_cast<size_t>(slot) * D_in;
        const float* add_dec = aux.W_dec + static_cast<size_t>(slot) * D_out;
        for (size_t d = 0; d < D_in; ++d) grad_enc[d] += add_enc[d];
        for (size_t d = 0; d < D_out; ++d) grad_dec[d] += add_dec[d];
        alone += aux.b_enc[slot];
    }
    if (numbers.unit != 0) {
        const float along = dot<V>(grad_dec, w_dec, D_out);
        for (size_t d = 0; d < D_out; ++d) grad_dec[d] -= along * w_dec[d];
    }
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

template <typename V>
SAEFAST_INLINE void update_latent(const Weights& weights, size_t f, const float* grad_enc, float db,
                                  const float* grad_dec, float factor, const Numbers& n) {
    const size_t D_in = weights.D_in, D = weights.D_out;
    adam(weights.W_enc, f * D_in, grad_enc, factor, D_in, n.lr, n.eps, n);
    adam(weights.b_enc, f, &db, factor, 1, n.lr_bias, n.eps_bias, n);
    adam(weights.W_dec, f * D, grad_dec, factor, D, n.lr_dec, n.eps, n);
    if (n.unit == 0) return;
    float* w_dec = weights.W_dec.value + f * D;
    const float norm = std::max(std::sqrt(dot<V>(w_dec, w_dec, D)), std::numeric_limits<float>::min());
    for (size_t d = 0; d < D; ++d) w_dec[d] /= norm;
}

}  // namespace saefast
