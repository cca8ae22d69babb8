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

// STAGES of the Hadamard transform over n vectors, unscaled, in one pass: those from vectors that are `half` apart on.
// They are read from `from`, times `signs` where there are some.
template <typename V, size_t STAGES>
SAEFAST_INLINE void stages(const float* from, const float* signs, float* to, size_t n, size_t half) {
    typedef typename V::Register Register;
    typedef typename V::Unaligned Unaligned;
    constexpr size_t N = size_t{1} << STAGES;
    const size_t apart = half * LANES;
    for (size_t start = 0; start < n * LANES; start += N * apart) {
        for (size_t d = start; d < start + apart; d += V::EACH) {  // register by register: N of them are enough
            Register v[N];
#pragma GCC unroll 8
            for (size_t i = 0; i < N; ++i) {
                v[i] = *reinterpret_cast<const Unaligned*>(from + d + i * apart);
                if (signs) v[i] *= *reinterpret_cast<const Unaligned*>(signs + d + i * apart);
            }
#pragma GCC unroll 3
            for (size_t stage = 0; stage < STAGES; ++stage) {
#pragma GCC unroll 8
                for (size_t i = 0; i < N; ++i) {
                    if (i >> stage & 1) continue;
                    const Register a = v[i], b = v[i | size_t{1} << stage];
                    v[i] = a + b, v[i | size_t{1} << stage] = a - b;
                }
            }
#pragma GCC unroll 8
            for (size_t i = 0; i < N; ++i) *reinterpret_cast<Unaligned*>(to + d + i * apart) = v[i];
        }
    }
}

// The whole transform, n a power of two, of from * signs.
template <typename V>
SAEFAST_INLINE void hadamard(const float* from, const float* signs, float* to, size_t n) {
    if (n == 1) return stages<V, 0>(from, signs, to, 1, 1);
    if (n == 2) return stages<V, 1>(from, signs, to, 2, 1);
    if (n == 4) return stages<V, 2>(from, signs, to, 4, 1);
    stages<V, 3>(from, signs, to, n, 1);
    size_t half = 8;
    for (; 8 * half <= n; half *= 8) stages<V, 3>(to, nullptr, to, n, half);
    if (4 * half == n) stages<V, 2>(to, nullptr, to, n, half);
    if (2 * half == n) stages<V, 1>(to, nullptr, to, n, half);
}

// The largest of what `Levels::sum` bounds, of v.
SAEFAST_INLINE float largest_half(const float* v, size_t width) {
    float largest = 0;
    for (size_t d = 0; d < width; d += LANES) {
        float sizes[4] = {}, sums[4] = {};
        for (size_t i = 0; i < LANES; ++i) sizes[i % 4] += std::fabs(v[d + i]), sums[i % 4] += v[d + i];
        for (size_t i = 0; i < 4; i += 2) {
            largest = std::max(largest, sizes[i] + sizes[i + 1] + std::fabs(sums[i] + sums[i + 1]));
        }
    }
    return largest;
}

template <typename V>
SAEFAST_INLINE Rounded round_row(const float* row, size_t D, const float* signs, size_t width, size_t mixed,
                                 const Levels& levels, float* v, int8_t* q) {
    const float* from = row;
    if (D < width) {
        std::copy(row, row + D, v);
        std::fill(v + D, v + width, 0.0f);
        from = v;
    }
    const size_t n = mixed * LANES, left = width - n;
    hadamard<V>(from, signs, v, mixed);
    for (size_t d = n; d < width; ++d) v[d] = from[d] * signs[d];
    signs += width;
    for (size_t d = 0; d < left; ++d) v[d] *= signs[d];
    hadamard<V>(v + left, signs + left, v + left, mixed);

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
    if (levels.sum < 16 * levels.most) {  // rounding adds at most a half to each of eight sizes, and to each in their sum
        step = std::max(step, largest_half(v, width) / static_cast<float>(levels.sum - 8));
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
