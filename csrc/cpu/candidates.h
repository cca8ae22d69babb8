// The latents of a row that may belong to a selection, from approximate pre-activations with bounds of their errors.
//
// `upper` = approx + error is never below the pre-activation. So a latent whose upper does not reach what the selection
// asks for cannot belong to it; all others are listed, in ascending order.
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
    float margin;  // a bound is this much below the approx that it is taken from
};

// Each of these takes in latents [first, first + columns) of a row. `limit`: candidates that may stay; there is room for
// limit + columns + SPARE.

// Of the K largest: the bound rises to the K-th largest approx so far, less the margin. `maxima` has room for
// group_count(K).
void take_in(const float* approx, std::size_t columns, std::size_t first, const Errors& errors, std::size_t K,
             std::size_t limit, Isa isa, float* maxima, Candidates& candidates);

// After the last of them: only candidates that reach the final bound stay, at most `limit`, or the row is `wide`.
void finish(const Errors& errors, std::size_t K, std::size_t limit, Isa isa, Candidates& candidates);

// Of those that reach a bound, which stays.
void take_in_reaching(const float* approx, std::size_t columns, std::size_t first, const Errors& errors,
                      std::size_t limit, Isa isa, Candidates& candidates);

// Of those that exceed a threshold of their latent.
void take_in_above(const float* approx, std::size_t columns, std::size_t first, const Errors& errors,
                   const float* thresholds, std::size_t limit, Isa isa, Candidates& candidates);

// Of the largest of each `group` of consecutive latents: the bound is that of the group at hand.
void take_in_groups(const float* approx, std::size_t columns, std::size_t first, const Errors& errors,
                    std::size_t group, std::size_t limit, Isa isa, Candidates& candidates);

}  // namespace saefast
