// The gradient of the activations of a sparse code. Spec: `saefast.reference.grad_top_acts`.
#pragma once

#include <cstddef>

#include "decode.h"

namespace saefast {

// grads [N] = <error of the token, W_dec row of the latent> of each entry, 0 where it is not active (act > 0) or not
// used. error [B, D]. Bound by bytes: a row of W_dec for each active entry; a token's error stays in cache.
void grad_top_acts(const Code& code, const float* error, const float* W_dec, std::size_t B, std::size_t D,
                   std::size_t N, int threads, Isa isa, float* grads);

}  // namespace saefast
