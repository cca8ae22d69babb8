// Exact top-k with ReLU over the rows of a matrix. Spec: `saefast.reference.topk`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "isa.h"

namespace saefast {

// pre_acts [B, F] -> top_acts [B, K] after ReLU, top_indices [B, K]; 1 <= K <= F < 2^31.
//
// Values descend; among equal values (-0 equals 0) the smaller index wins. The result does not depend on
// `threads` or `isa`. Returns the first row that holds a NaN, which has no place in an order, or -1; outputs
// from that row on are then undefined.
std::ptrdiff_t topk(const float* pre_acts, std::size_t B, std::size_t F, std::size_t K, int threads, Isa isa,
                    float* top_acts, std::int32_t* top_indices);

// The same for a block of rows whose columns come a few at a time, so that the pre-activations of all latents never
// exist at once. Not for several threads at a time: each has a block of its own.
class TopkBlock {
public:
    TopkBlock(std::size_t rows, std::size_t K, Isa isa);

    // pre_acts [rows, columns]: the next columns. Returns the first row with a NaN, or -1.
    std::ptrdiff_t feed(const float* pre_acts, std::size_t columns);
    // Once at least K columns were fed: top_acts [rows, K], top_indices [rows, K]. The block is used up.
    void finish(float* top_acts, std::int32_t* top_indices);

    std::size_t rows() const { return counts_.size(); }
    std::size_t columns() const { return columns_; }
    std::size_t k() const { return K_; }

private:
    std::size_t K_, columns_ = 0;
    Isa isa_;
    std::vector<float> bounds_;
    std::vector<std::size_t> counts_;
    std::vector<std::int64_t> keys_;
    std::vector<float> maxima_;
};

}  // namespace saefast
