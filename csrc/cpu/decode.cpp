// A token's row goes in panels of columns that fit into registers; its active rows of W_dec pass through each.

#include "decode.h"

#include <algorithm>

#include "parallel.h"

namespace saefast {
namespace {

using std::int32_t;
using std::size_t;
constexpr size_t TOKENS = 16;  // in an item of work

// N registers of LANES columns from `d` on; returns their squares.
template <typename V, size_t N>
SAEFAST_INLINE V panel(const float* acts, const int32_t* indices, size_t n, const float* W_dec, const float* b_dec,
                       const float* x, size_t D, size_t d, float* error) {
    V x_hat[N];
    for (size_t i = 0; i < N; ++i) x_hat[i] = V::load(b_dec + d + i * LANES);
    for (size_t j = 0; j < n; ++j) {
        const float* row = W_dec + static_cast<size_t>(indices[j]) * D + d;
        for (size_t i = 0; i < N; ++i) x_hat[i].add(acts[j], V::load(row + i * LANES));
    }
    V squares{};
    for (size_t i = 0; i < N; ++i) {
        const V off = x_hat[i] - V::load(x + d + i * LANES);
        off.store(error + d + i * LANES);
        squares.add(off, off);
    }
    return squares;
}

template <typename V, size_t N>
SAEFAST_INLINE float decode_row(const float* acts, const int32_t* indices, size_t n, const float* W_dec,
                                const float* b_dec, const float* x, size_t D, float* error) {
    V squares{};
    size_t d = 0;
    for (; d + N * LANES <= D; d += N * LANES) {
        squares += panel<V, N>(acts, indices, n, W_dec, b_dec, x, D, d, error);
    }
    for (; d + LANES <= D; d += LANES) squares += panel<V, 1>(acts, indices, n, W_dec, b_dec, x, D, d, error);
    float total = sum(squares);
    for (; d < D; ++d) {
        float x_hat = b_dec[d];
        for (size_t j = 0; j < n; ++j) x_hat += acts[j] * W_dec[static_cast<size_t>(indices[j]) * D + d];
        error[d] = x_hat - x[d];
        total += error[d] * error[d];
    }
    return total;
}

#define SAEFAST_DECODE(ATTRIBUTE, SUFFIX, BYTES, N)                                                                  \
    ATTRIBUTE float decode_row_##SUFFIX(const float* acts, const int32_t* indices, size_t n, const float* W_dec,   \
                                        const float* b_dec, const float* x, size_t D, float* error) {             \
        return decode_row<Floats<BYTES>, N>(acts, indices, n, W_dec, b_dec, x, D, error);                          \
    }
SAEFAST_DECODE(, plain, 16, 2)
#ifdef SAEFAST_X86
SAEFAST_DECODE(SAEFAST_AVX512, avx512, 64, 12)  // of 32 registers
SAEFAST_DECODE(SAEFAST_AVX2, avx2, 32, 4)       // eight of 16
#endif

}  // namespace

void decode_error(const Code& code, const float* W_dec, const float* b_dec, const float* x, size_t B, size_t D,
                  int threads, Isa isa, float* error, float* squares) {
    const auto decode = SAEFAST_PICK(decode_row, isa);
    parallel_for((B + TOKENS - 1) / TOKENS, threads, [&](size_t item, size_t) {
        for (size_t b = item * TOKENS; b < std::min(B, (item + 1) * TOKENS); ++b) {
            const size_t first = code.begin(b), n = code.begin(b + 1) - first;
            squares[b] = decode(code.acts + first, code.indices + first, n, W_dec, b_dec, x + b * D, D, error + b * D);
        }
    });
}

}  // namespace saefast
