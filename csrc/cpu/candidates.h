// The latents that may be among the k largest of a row, from approximate pre-activations with bounds of their errors.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"

namespace saefast {

// `wide`: too many came for them to be worth listing.
struct Candidates {
    static constexpr std::size_t SPARE = 16;  // written beyond what is kept

    float *approx, *upper;
    std::int32_t* indices;
    std::size_t n, tightened;  // how many there are, and were when the bound was raised last
    float bound;               // that `upper` reaches
    bool wide;
};

struct Errors {  // |approx - exact| <= by_norm * norm[j] + by_rest * rest[j] + bias_error for latent j of this row
    const float *norm, *rest;
    float by_norm, by_rest, bias_error;
    float margin;  // the bound is this much below the k-th largest approx
};

// Take in latents [first, first + columns) of a row. `limit`: candidates that may stay; room for
// limit + columns + SPARE. `maxima` has room for group_count(K).
void take_in(const float* approx, std::size_t columns, std::size_t first, const Errors& errors, std::size_t K,
             std::size_t limit, Isa isa, float* maxima, Candidates& candidates);

// After the last of them: only candidates that reach the final bound stay, at most `limit`, or the row is `wide`.
void finish(const Errors& errors, std::size_t K, std::size_t limit, Isa isa, Candidates& candidates);

}  // namespace saefast
