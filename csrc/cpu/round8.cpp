#include "round8.h"

#include <algorithm>
#include <cmath>

namespace saefast {
namespace {

using std::int32_t;
using std::int8_t;
using std::size_t;

typedef int32_t IntVec __attribute__((vector_size(4 * LANES)));
typedef int8_t ByteVec __attribute__((vector_size(LANES)));
typedef int8_t UnalignedByteVec __attribute__((vector_size(LANES), aligned(1), may_alias));

constexpr float TINY = 1e-30f;  // below this a step would not have full precision
constexpr float LARGE = 1e15f;   // above this a product of norms might overflow

// The Hadamard transform over n vectors, a power of two, unscaled; two of its stages in one pass where there are two.
SAEFAST_INLINE void hadamard(float* row, size_t n) {
    size_t half = 1;
    for (; 4 * half <= n; half *= 4) {
        for (size_t i = 0; i < n; i += 4 * half) {
            for (float *v = row + i * LANES, *end = v + half * LANES; v < end; v += LANES) {
                const Vec a = load(v), b = load(v + half * LANES);
                const Vec c = load(v + 2 * half * LANES), d = load(v + 3 * half * LANES);
                const Vec a_b = a + b, ab = a - b, c_d = c + d, cd = c - d;
                store(v, a_b + c_d);
                store(v + half * LANES, ab + cd);
                store(v + 2 * half * LANES, a_b - c_d);
                store(v + 3 * half * LANES, ab - cd);
            }
        }
    }
    if (half == n) return;
    for (float *v = row, *end = row + half * LANES; v < end; v += LANES) {
        const Vec a = load(v), b = load(v + half * LANES);
        store(v, a + b);
        store(v + half * LANES, a - b);
    }
}

SAEFAST_INLINE Rounded round_row(const float* row, size_t D, const float* signs, size_t width, size_t mixed,
                                 float* v, int8_t* q) {
    std::copy(row, row + D, v);
    std::fill(v + D, v + width, 0.0f);
    for (size_t round = 0; round < 2; ++round) {
        for (size_t d = 0; d < width; d += LANES) store(v + d, load(v + d) * load(signs + round * width + d));
        hadamard(v + round * (width - mixed * LANES), mixed);
    }

    Vec larger{}, no_numbers{};  // the latter gets NaN where something is Inf or NaN, else 0
    for (size_t d = 0; d < width; d += LANES) {
        const Vec value = load(v + d), size = value < 0 ? -value : value;
        larger = size > larger ? size : larger;
        no_numbers += value - value;
    }
    float largest = 0;
    for (size_t i = 0; i < LANES; ++i) largest = std::max(largest, larger[i]);
    const float nothing = sum(no_numbers);
    if (!(nothing == 0) || largest > LARGE) return {0, 0, 0, 0, false};
    if (largest < TINY) {
        std::fill(q, q + width, int8_t{0});
        return {0, 0, largest * std::sqrt(static_cast<float>(width)), 0, true};
    }
    const float per_step = 127.0f / largest, step = largest / 127.0f;
    Vec squares{}, rests{};
    IntVec sums{};
    for (size_t d = 0; d < width; d += LANES) {
        // adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits
        const Vec scaled = load(v + d) * per_step, shifted = scaled + 12582912.0f, whole = shifted - 12582912.0f;
        const Vec rest = scaled - whole;
        squares += whole * whole;
        rests += rest * rest;
        const IntVec integers = __builtin_convertvector(whole, IntVec);
        sums += integers;
        *reinterpret_cast<UnalignedByteVec*>(q + d) = __builtin_convertvector(integers, ByteVec);
    }
    int32_t total = 0;
    for (size_t i = 0; i < LANES; ++i) total += sums[i];
    return {step, step * std::sqrt(sum(squares)), step * std::sqrt(sum(rests)), total, true};
}
SAEFAST_DISPATCH(Rounded, round_row,
                 (const float* row, size_t D, const float* signs, size_t width, size_t mixed, float* v, int8_t* q),
                 (row, D, signs, width, mixed, v, q))

}  // namespace

Mixing::Mixing(size_t D) : mixed_(1), signs_(2 * ((D + LANES - 1) / LANES * LANES)) {
    while (2 * mixed_ * LANES <= width()) mixed_ *= 2;
    const float scale = 1 / std::sqrt(static_cast<float>(mixed_));
    std::uint64_t state = 0;
    for (size_t i = 0; i < signs_.size(); ++i) {
        state = state * 6364136223846793005u + 1442695040888963407u;  // Knuth's MMIX generator
        const size_t d = i % width(), first = i < width() ? 0 : width() - mixed_ * LANES;
        const bool is_mixed = d >= first && d < first + mixed_ * LANES;
        signs_[i] = (is_mixed ? scale : 1.0f) * (state >> 63 ? -1.0f : 1.0f);
    }
}

Rounded round8(const float* row, size_t D, const Mixing& mixing, Isa isa, float* scratch, int8_t* q) {
    return SAEFAST_PICK(round_row, isa)(row, D, mixing.signs(), mixing.width(), mixing.mixed(), scratch, q);
}

}  // namespace saefast
