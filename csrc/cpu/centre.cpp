// Rows go in blocks of fixed size whose partial sums are added in order, so the bits do not depend on the threads.

#include "centre.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.h"

namespace saefast {
namespace {

using std::size_t;
constexpr size_t ROWS = 128;  // in a block

SAEFAST_INLINE void subtract(const float* x, const float* b_dec, size_t rows, size_t D, float* centred, float* sums) {
    std::fill(sums, sums + D, 0.0f);
    for (size_t r = 0; r < rows; ++r, x += D, centred += D) {
        for (size_t d = 0; d < D; ++d) {
            centred[d] = x[d] - b_dec[d];
            sums[d] += x[d];
        }
    }
}
SAEFAST_DISPATCH(void, subtract,
                 (const float* x, const float* b_dec, size_t rows, size_t D, float* centred, float* sums),
                 (x, b_dec, rows, D, centred, sums))

template <typename V>
SAEFAST_INLINE double squares_about(const float* x, const float* mean, size_t rows, size_t D) {
    double total = 0;
    for (size_t r = 0; r < rows; ++r, x += D) {
        V squares{};
        size_t d = 0;
        for (; d + LANES <= D; d += LANES) {
            const V off = V::load(x + d) - V::load(mean + d);
            squares.add(off, off);
        }
        float rest = sum(squares);
        for (; d < D; ++d) rest += (x[d] - mean[d]) * (x[d] - mean[d]);
        total += rest;
    }
    return total;
}
SAEFAST_DISPATCH_V(double, squares_about, (const float* x, const float* mean, size_t rows, size_t D),
                 (x, mean, rows, D))

}  // namespace

double centre(const float* x, const float* b_dec, size_t B, size_t D, int threads, Isa isa, float* centred) {
    const size_t blocks = (B + ROWS - 1) / ROWS;
    std::vector<float> sums(blocks * D), mean(D);
    std::vector<double> squares(blocks), column(D, 0.0);
    const auto subtract_block = SAEFAST_PICK(subtract, isa);
    const auto squares_of_block = SAEFAST_PICK(squares_about, isa);

    parallel_for(blocks, threads, [&](size_t i, size_t) {
        const size_t first = i * ROWS, rows = std::min(ROWS, B - first);
        subtract_block(x + first * D, b_dec, rows, D, centred + first * D, &sums[i * D]);
    });
    for (size_t i = 0; i < blocks; ++i) {
        for (size_t d = 0; d < D; ++d) column[d] += sums[i * D + d];
    }
    for (size_t d = 0; d < D; ++d) mean[d] = static_cast<float>(column[d] / static_cast<double>(B));
    parallel_for(blocks, threads, [&](size_t i, size_t) {
        const size_t first = i * ROWS, rows = std::min(ROWS, B - first);
        squares[i] = squares_of_block(x + first * D, mean.data(), rows, D);
    });
    double total = 0;
    for (const double part : squares) total += part;
    const auto as_the_first = [&](size_t b) { return std::equal(x, x + D, x + b * D); };
    bool equal = std::isfinite(total) && as_the_first(B - 1);  // seldom are more than two rows compared
    for (size_t b = 1; equal && b < B; ++b) equal = as_the_first(b);
    return equal ? 0 : total;
}

}  // namespace saefast
