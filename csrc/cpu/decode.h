// The reconstruction error of a sparse code. Spec: `saefast.reference.decode_error`.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"

namespace saefast {

// A sparse code (see `saefast.reference`): the entries of token b are starts[b] to starts[b + 1], or, where starts is
// null, b * K to (b + 1) * K.
struct Code {
    const float* acts;
    const std::int32_t* indices;
    const std::int32_t* starts;
    std::size_t K;

    std::size_t begin(std::size_t b) const { return starts ? static_cast<std::size_t>(starts[b]) : b * K; }
};

// error [B, D] = b_dec + sum over the entries of act * W_dec[index] - x; squares [B] = ||error||^2 of each row.
// Bound by bytes: K rows of W_dec for each token, x once, error once.
void decode_error(const Code& code, const float* W_dec, const float* b_dec, const float* x, std::size_t B,
                  std::size_t D, int threads, Isa isa, float* error, float* squares);

}  // namespace saefast
