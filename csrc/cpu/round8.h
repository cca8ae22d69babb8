// Rows of a matrix rounded to 8 bits, with the norm of what rounding left out: their products bound those of the rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "isa.h"

namespace saefast {

// An orthogonal transform of rows, the same for both factors of a product, which keeps it. It spreads the few large
// entries that rows of activations have over all of them: the largest sets the step of the rounding, so it should be
// small beside the norm. Two Hadamard transforms with random signs before each; each mixes a power of two of vectors,
// the first from the beginning of the row, the second up to its end.
class Mixing {
public:
    explicit Mixing(std::size_t D);

    std::size_t width() const { return signs_.size() / 2; }  // D rounded up to whole vectors
    std::size_t mixed() const { return mixed_; }             // vectors in a transform
    const float* signs() const { return signs_.data(); }     // [2, width], with the scale of the transform

private:
    std::size_t mixed_;
    std::vector<float> signs_;
};

// What q may be: |q| <= most, and the sum of |q| and the size of the sum of q are together at most `sum`, over the entries 0 and
// 1 of every four in a vector of 16, and over 2 and 3.
struct Levels {
    int most, sum = 16 * 127;
};

// row [D] ~ step * q [width], after the mixing.
struct Rounded {
    float step, norm, rest;  // norm >= ||step * q||, rest >= ||mixed row - step * q|| up to rounding in fp32
    std::int32_t sum;        // of q
    bool usable;             // else it holds NaN, Inf or numbers above 1e15, and nothing else here means anything
};

// `scratch` [width].
Rounded round8(const float* row, std::size_t D, const Mixing& mixing, const Levels& levels, Isa isa, float* scratch,
               std::int8_t* q);

}  // namespace saefast
