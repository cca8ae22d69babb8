// Exact top-k with ReLU over the rows of a matrix. Spec: `saefast.reference.topk`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace saefast {

enum class Isa { avx512, avx2, plain };

// What this machine can run, the fastest first.
std::vector<Isa> supported_isas();

// pre_acts [B, F] -> top_acts [B, K] after ReLU, top_indices [B, K]; 1 <= K <= F < 2^31.
//
// Values descend; among equal values (-0 equals 0) the smaller index wins. The result does not depend on
// `threads` or `isa`. Returns the first row that holds a NaN, which has no place in an order, or -1; outputs
// from that row on are then undefined.
std::ptrdiff_t topk(const float* pre_acts, std::size_t B, std::size_t F, std::size_t K, int threads, Isa isa,
                    float* top_acts, std::int32_t* top_indices);

}  // namespace saefast
