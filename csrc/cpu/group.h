// The active entries of each latent. Spec: `saefast.reference.group_by_latent`.
#pragma once

#include <cstddef>
#include <cstdint>

#include "decode.h"

namespace saefast {

// Stable counting sort of the active entries (act > 0) of B tokens by latent: offsets [F + 1], and of each entry in
// its new order the position in the code and the token, pairs and tokens [N]; from offsets[F] on they are zero.
void group_by_latent(const Code& code, std::size_t B, std::size_t F, std::size_t N, int threads,
                     std::int32_t* offsets, std::int32_t* pairs, std::int32_t* tokens);

// The same entries as a code sorted by latent: offsets [F + 1], and of each entry the slot of its token, slots_of_rows [B],
// and its activation, slots and sorted_acts [N]. N = code.begin(B), all of them active.
void sort_code(const Code& code, const std::int32_t* slots_of_rows, std::size_t B, std::size_t F, int threads,
               std::int64_t* offsets, std::int32_t* slots, float* sorted_acts);

// sums [F] of per_pair [N] over the listed entries of each latent, in token order.
// Spec: `saefast.reference.sum_entries`.
void sum_entries(const std::int32_t* offsets, const std::int32_t* pairs, const float* per_pair, std::size_t F,
                 int threads, float* sums);

}  // namespace saefast
