// x - b_dec and the total variance of a batch. Spec: `saefast.reference.centre`.
#pragma once

#include <cstddef>

#include "isa.h"

namespace saefast {

// x [B, D], b_dec [D] -> centred [B, D]; returns the sum over the batch of ||x - mean(x)||^2, unadjusted, and 0
// where all rows are equal, whatever their mean rounds to. Bound by bytes: x is read twice, centred written once.
double centre(const float* x, const float* b_dec, std::size_t B, std::size_t D, int threads, Isa isa, float* centred);

}  // namespace saefast
