// A token's row of `error` is multiplied by a few rows of W_dec at a time: as many are on their way from memory.

#include "grad_acts.h"

#include <algorithm>

#include "parallel.h"

namespace saefast {
namespace {

using std::int32_t;
using std::size_t;
constexpr size_t TOKENS = 16;  // in an item of work
constexpr size_t AT_ONCE = 4;  // entries

// grads[place] = <error, W_dec row of that entry> for N places in the code.
template <typename V, size_t N>
SAEFAST_INLINE void dots(const float* error, const int32_t* indices, const size_t* places, const float* W_dec, size_t D,
                         float* grads) {
    const float* rows[N];
    for (size_t r = 0; r < N; ++r) rows[r] = W_dec + static_cast<size_t>(indices[places[r]]) * D;
    V partial[N];
    for (size_t r = 0; r < N; ++r) partial[r] = V::zero();
    size_t d = 0;
    for (; d + LANES <= D; d += LANES) {
        const V part = V::load(error + d);
        for (size_t r = 0; r < N; ++r) partial[r].add(part, V::load(rows[r] + d));
    }
    float totals[N];
    for (size_t r = 0; r < N; ++r) totals[r] = sum(partial[r]);
    for (; d < D; ++d) {
        for (size_t r = 0; r < N; ++r) totals[r] += error[d] * rows[r][d];
    }
    for (size_t r = 0; r < N; ++r) grads[places[r]] = totals[r];
}

// The entries [first, end) of one token.
template <typename V>
SAEFAST_INLINE void token(const float* acts, const int32_t* indices, size_t first, size_t end, const float* error,
                          const float* W_dec, size_t D, float* grads) {
    size_t places[AT_ONCE], n = 0;
    for (size_t i = first; i < end; ++i) {
        if (acts[i] > 0) {
            places[n++] = i;
        } else {
            grads[i] = 0;
        }
        if (n < AT_ONCE) continue;
        dots<V, AT_ONCE>(error, indices, places, W_dec, D, grads);
        n = 0;
    }
    for (size_t r = 0; r < n; ++r) dots<V, 1>(error, indices, places + r, W_dec, D, grads);
}
SAEFAST_DISPATCH_V(void, token,
                 (const float* acts, const int32_t* indices, size_t first, size_t end, const float* error,
                  const float* W_dec, size_t D, float* grads),
                 (acts, indices, first, end, error, W_dec, D, grads))

}  // namespace

void grad_top_acts(const Code& code, const float* error, const float* W_dec, size_t B, size_t D, size_t N, int threads,
                   Isa isa, float* grads) {
    const auto run = SAEFAST_PICK(token, isa);
    parallel_for((B + TOKENS - 1) / TOKENS, threads, [&](size_t item, size_t) {
        for (size_t b = item * TOKENS; b < std::min(B, (item + 1) * TOKENS); ++b) {
            run(code.acts, code.indices, code.begin(b), code.begin(b + 1), error + b * D, W_dec, D, grads);
        }
    });
    std::fill(grads + code.begin(B), grads + N, 0.0f);
}

}  // namespace saefast
