#include "round8.h"

#include <algorithm>
#include <cmath>

namespace saefast {
namespace {

using std::int32_t;
using std::int8_t;
using std::size_t;

constexpr float TINY = 1e-30f;  // below this a step would not have full precision
constexpr float LARGE = 1e15f;   // above this a product of norms might overflow

// The Hadamard transform over n vectors, a power of two, unscaled; two of its stages in one pass where there are two.
template <typename V>
SAEFAST_INLINE void hadamard(float* row, size_t n) {
    size_t half = 1;
    for (; 4 * half <= n; half *= 4) {
        for (size_t i = 0; i < n; i += 4 * half) {
            for (float *v = row + i * LANES, *end = v + half * LANES; v < end; v += LANES) {
                const V a = V::load(v), b = V::load(v + half * LANES);
                const V c = V::load(v + 2 * half * LANES), d = V::load(v + 3 * half * LANES);
                const V a_b = a + b, ab = a - b, c_d = c + d, cd = c - d;
                (a_b + c_d).store(v);
                (ab + cd).store(v + half * LANES);
                (a_b - c_d).store(v + 2 * half * LANES);
                (ab - cd).store(v + 3 * half * LANES);
            }
        }
    }
    if (half == n) return;
    for (float *v = row, *end = row + half * LANES; v < end; v += LANES) {
        const V a = V::load(v), b = V::load(v + half * LANES);
        (a + b).store(v);
        (a - b).store(v + half * LANES);
    }
}

// The largest sum of |v| over half of a vector, as in `Levels`.
SAEFAST_INLINE float largest_half(const float* v, size_t width) {
    float largest = 0;
    for (size_t d = 0; d < width; d += LANES) {
        float sums[4] = {};
        for (size_t i = 0; i < LANES; ++i) sums[i % 4] += std::fabs(v[d + i]);
        largest = std::max({largest, sums[0] + sums[1], sums[2] + sums[3]});
    }
    return largest;
}

template <typename V>
SAEFAST_INLINE Rounded round_row(const float* row, size_t D, const float* signs, size_t width, size_t mixed,
                                 const Levels& levels, float* v, int8_t* q) {
    std::copy(row, row + D, v);
    std::fill(v + D, v + width, 0.0f);
    for (size_t round = 0; round < 2; ++round) {
        for (size_t d = 0; d < width; ++d) v[d] *= signs[round * width + d];
        hadamard<V>(v + round * (width - mixed * LANES), mixed);
    }

    V sizes{}, no_numbers{};  // the latter gets NaN where something is Inf or NaN, else 0
    for (size_t d = 0; d < width; d += LANES) {
        const V value = V::load(v + d);
        sizes.raise_to_size_of(value);
        no_numbers += value - value;
    }
    float lanes[LANES];
    sizes.store(lanes);
    const float largest = *std::max_element(lanes, lanes + LANES), nothing = sum(no_numbers);
    if (!(nothing == 0) || largest > LARGE) return {0, 0, 0, 0, false};
    if (largest < TINY) {
        std::fill(q, q + width, int8_t{0});
        return {0, 0, largest * std::sqrt(static_cast<float>(width)), 0, true};
    }
    float step = largest / static_cast<float>(levels.most);
    if (levels.sum < 8 * levels.most) {  // rounding adds at most a half to each of the eight
        step = std::max(step, largest_half(v, width) / static_cast<float>(levels.sum - 4));
    }
    std::fill(lanes, lanes + LANES, 1 / step);
    const V per_step = V::load(lanes);
    std::fill(lanes, lanes + LANES, 12582912.0f);  // adding 1.5 * 2^23 rounds to an integer
    const V rounds = V::load(lanes);
    V squares{}, rests{}, sums{};  // that of whole numbers is exact: it is below 2^24
    for (size_t d = 0; d < width; d += LANES) {
        const V scaled = V::load(v + d) * per_step, whole = scaled + rounds - rounds, rest = scaled - whole;
        squares.add(whole, whole);
        rests.add(rest, rest);
        sums += whole;
        whole.store(v + d);
    }
    for (size_t d = 0; d < width; ++d) q[d] = static_cast<int8_t>(v[d]);
    return {step, step * std::sqrt(sum(squares)), step * std::sqrt(sum(rests)), static_cast<int32_t>(sum(sums)), true};
}
SAEFAST_DISPATCH_V(Rounded, round_row,
                 (const float* row, size_t D, const float* signs, size_t width, size_t mixed, const Levels& levels,
                  float* v, int8_t* q),
                 (row, D, signs, width, mixed, levels, v, q))

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

Rounded round8(const float* row, size_t D, const Mixing& mixing, const Levels& levels, Isa isa, float* scratch,
               int8_t* q) {
    return SAEFAST_PICK(round_row, isa)(row, D, mixing.signs(), mixing.width(), mixing.mixed(), levels, scratch, q);
}

}  // namespace saefast
