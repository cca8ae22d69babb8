// Backward, projection, Adam and unit norm in one pass over the latents. Spec: `saefast.reference.update_`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "isa.h"
#include "numbers.h"
#include "screen.h"

namespace saefast {

struct Param {  // a parameter with Adam's moments
    float *value, *exp_avg, *exp_avg_sq;
};

struct Weights {
    Param W_enc, b_enc, W_dec, b_dec;  // [F, D_in], [F], [F, D_out], [D_out]
    std::size_t F, D_in, D_out;
};

struct Given {  // see `saefast.reference.Given`; grad_pre is null without it
    const float *grad_pre, *bias, *push, *push_row, *pull;  // [N], [F], [F], [D_in], [F, L]
    std::size_t L;                                          // divides D_out
};

struct Batch {
    const float *centred, *error;                  // [B, D_in], [G * B, D_out]; G is 1 unless there is a `Given`
    const float* acts;                             // [N]
    const std::int32_t *offsets, *pairs, *tokens;  // of `group_by_latent`; a token is a row of `error`
    std::size_t B;
    float grad_scale;
    Given given;
};

struct Aux {  // what AuxK adds to the gradients; slots is null without it
    const std::int32_t* slots;                   // [F]: row below of this latent, or -1
    const float *W_enc, *b_enc, *W_dec, *b_dec;  // [C, D_in], [C], [C, D_out], [D_out]
};

struct Grads {  // of the four parameters, W_dec's projected if its rows keep unit norm
    float *W_enc, *b_enc, *W_dec, *b_dec;
};

// One optimizer step in place; returns the squared norm of the gradient. No gradient matrix exists: a latent's rows
// are summed in cache, and its weights and moments read and written once (24 bytes per parameter), while the rows of
// `error` and `centred` are gathered, two for each active entry. A rounded copy of W_enc, if one is given that is of these
// weights, follows while the rows are in cache; it need not, see `ScreenWeights`.
double update(const Weights& weights, const Batch& batch, const Aux& aux, const Numbers& numbers, int threads, Isa isa,
              ScreenWeights* rounded = nullptr);

// The gradients alone, for a norm that must be known before the update; returns the square of it.
double row_grads(const Weights& weights, const Batch& batch, const Aux& aux, const Numbers& numbers, int threads,
                 Isa isa, const Grads& grads);

// The update alone, with `factor` times the gradients; `rounded` as for `update`.
void adam_rows(const Weights& weights, const Grads& grads, float factor, const Numbers& numbers, int threads, Isa isa,
               ScreenWeights* rounded = nullptr);

}  // namespace saefast
