// How a row of a weight matrix and of its moments is kept, as in `saefast.storage`; arithmetic is fp32.
#pragma once

#include "rows.h"

namespace saefast::update {

constexpr float TINY = 1.1754943508222875e-38f;

// The places in `numbers`, see `saefast.reference.Numbers`.
enum Number { LR, LR_BIAS, EPS, EPS_BIAS, BETA1, BETA1_REST, BETA2, BETA2_REST, CORRECTION1, CORRECTION2, L1, BIAS_NORM,
              LR_DEC, LR_B_DEC, UNIT, TIED, NUMBERS };

SAEFAST_DEVICE std::uint32_t mix(std::uint32_t bits) {
    bits ^= bits >> 16;
    bits *= 0x7FEB352Du;
    bits ^= bits >> 15;
    bits *= 0x846CA68Bu;
    return bits ^ bits >> 16;
}

SAEFAST_DEVICE void adam_moments(float grad, float& m, float& v, const float* n) {
    m += n[BETA1_REST] * (grad - m);
    v = n[BETA2] * v + n[BETA2_REST] * grad * grad;
}

SAEFAST_DEVICE float adam_value(float value, float m, float v, float lr, float eps, const float* n) {
    return value - quotient(lr * n[CORRECTION1] * m, root(v * n[CORRECTION2]) + eps);
}

SAEFAST_DEVICE void adam(float& value, float grad, float& m, float& v, float lr, float eps, const float* n) {
    adam_moments(grad, m, v, n);
    value = adam_value(value, m, v, lr, eps, n);
}

// magnitude >= 0 -> codes 0..levels with magnitude ~ scale * (code / levels)^2. The upper 16 bits decide between two.
SAEFAST_DEVICE float to_code(float magnitude, float scale, float levels, std::uint32_t bits) {
    const float inverse = quotient(1, scale < TINY ? TINY : scale);
    const float ratio = magnitude * inverse * (levels * levels);
    float below = static_cast<float>(static_cast<int>(root(ratio)));
    below = below < levels - 1 ? below : levels - 1;
    const float uniform = static_cast<float>(bits >> 16) * (1.0f / 65536);
    return below + (uniform * (2 * below + 1) < ratio - below * below ? 1.0f : 0.0f);
}

template <bool SPLIT, int V>
SAEFAST_DEVICE Row<V> load_weight(const unsigned char* slot, const Place& place) {
    Row<V> out = SPLIT ? load_bf16<V>(slot, place) : load_fp32<V>(slot, place);
    for (int s = 0; s < V; ++s) {
        if constexpr (SPLIT) {  // the high half; this is the low one
            const Half4 low = reinterpret_cast<const Half4*>(slot + 2 * place.D)[place.read(s)];
            const std::uint32_t both[2] = {low.low, low.high};
            for (int c = 0; c < VECTOR; ++c) {
                const auto signed_low = static_cast<std::int16_t>(both[c / 2] >> (c % 2 * 16));
                float& x = out.at[s].x[c];
                x = float_of(bits_of(x) + static_cast<std::uint32_t>(std::int32_t{signed_low}));
            }
        }
        for (int c = 0; c < VECTOR; ++c) {
            if (!place.within(s)) out.at[s].x[c] = 0;
            settle(out.at[s].x[c]);
        }
    }
    return out;
}

template <bool SPLIT, int V>
SAEFAST_DEVICE void store_weight(const Matrix& matrix, std::int64_t j, const Row<V>& row, const Place& place) {
    const std::int64_t at = j * place.D;
    if constexpr (!SPLIT) {
        store_fp32(static_cast<float*>(matrix.weight) + at, row, place);
        store_bf16(matrix.copy + at, row, place);
    } else {
        for (int s = 0; s < V; ++s) {
            if (!place.within(s)) continue;
            std::uint32_t high[2] = {0, 0}, low[2] = {0, 0};
            for (int c = 0; c < VECTOR; ++c) {
                const std::uint32_t bits = bits_of(row.at[s].x[c]), rounded = (bits + 0x8000u) >> 16;
                high[c / 2] |= rounded << (c % 2 * 16);
                low[c / 2] |= ((bits - (rounded << 16)) & 0xFFFFu) << (c % 2 * 16);
            }
            const std::int64_t four = (at + place.column(s)) / VECTOR;
            reinterpret_cast<Half4*>(matrix.weight)[four] = {high[0], high[1]};
            reinterpret_cast<Half4*>(matrix.low)[four] = {low[0], low[1]};
        }
    }
}

// Codes of one row of moments in a slot: D of exp_avg, D of exp_avg_sq -> fp32.
template <int V>
SAEFAST_DEVICE void load_codes(const unsigned char* slot, float scale_m, float scale_v, Row<V>& m, Row<V>& v,
                               const Place& place) {
    for (int s = 0; s < V; ++s) {
        const auto codes_m = reinterpret_cast<const std::uint32_t*>(slot)[place.read(s)];
        const auto codes_v = reinterpret_cast<const std::uint32_t*>(slot + place.D)[place.read(s)];
        for (int c = 0; c < VECTOR; ++c) {
            const auto code = static_cast<float>(static_cast<std::int8_t>(codes_m >> (8 * c)));
            const auto of_root = static_cast<float>(codes_v >> (8 * c) & 0xFF);
            const float v_root = of_root * of_root * (scale_v / 65025);
            m.at[s].x[c] = code * (code < 0 ? -code : code) * (scale_m / 16129);
            v.at[s].x[c] = v_root * v_root;
        }
    }
}

// A positive exp_avg_sq does not become 0.
template <int V>
SAEFAST_DEVICE void store_codes(const Matrix& matrix, std::int64_t j, const Row<V>& m, const Row<V>& v, std::uint32_t seed,
                                const Place& place, Exchange& exchange) {
    float largest[2] = {0, 0};
    for (int s = 0; s < V; ++s) {
        for (int c = 0; c < VECTOR && place.within(s); ++c) {
            const float x = m.at[s].x[c];
            largest[0] = Exchange::larger(largest[0], x < 0 ? -x : x);
            largest[1] = Exchange::larger(largest[1], v.at[s].x[c]);
        }
    }
    exchange.all<2, true>(largest, place);
    const float scale_m = largest[0], scale_v = root(largest[1]);
    for (int s = 0; s < V; ++s) {
        if (!place.within(s)) continue;
        std::uint32_t codes_m = 0, codes_v = 0;
        for (int c = 0; c < VECTOR; ++c) {
            const std::uint32_t bits = mix(static_cast<std::uint32_t>(place.column(s) + c) ^ seed);
            const float x = m.at[s].x[c], y = v.at[s].x[c];
            const int code = static_cast<int>(to_code(x < 0 ? -x : x, scale_m, 127, mix(bits)));
            int of_root = static_cast<int>(to_code(root(y), scale_v, 255, bits));
            if (y > 0 && of_root == 0) of_root = 1;
            codes_m |= static_cast<std::uint32_t>((x < 0 ? -code : code) & 0xFF) << (8 * c);
            codes_v |= static_cast<std::uint32_t>(of_root) << (8 * c);
        }
        const std::int64_t four = (j * place.D + place.column(s)) / VECTOR;
        static_cast<std::uint32_t*>(matrix.m)[four] = codes_m;
        static_cast<std::uint32_t*>(matrix.v)[four] = codes_v;
    }
    if (place.thread == 0) {
        matrix.scales[2 * j] = scale_m;
        matrix.scales[2 * j + 1] = scale_v;
    }
}

}  // namespace saefast::update
