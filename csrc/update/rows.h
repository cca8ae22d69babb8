// A row of D numbers among the threads that compute: thread i has columns 4 i to 4 i + 3, and those 4 T further, of every
// row whatever its dtype, so that rows are added and converted without an exchange. Columns from D on are 0.
#pragma once

#include "update.h"

namespace saefast::update {

constexpr int VECTOR = 4, VECTORS = 2, WARP = 32, TOGETHER = 4;  // entries whose products are summed at once
constexpr int OF_THREAD = VECTOR * VECTORS;

struct Row {
    Float4 at[VECTORS];
};

// Where a thread stands among those that compute.
struct Place {
    int thread, threads, D;
    SAEFAST_DEVICE int column(int s) const { return VECTOR * (thread + s * threads); }
    SAEFAST_DEVICE bool within(int s) const { return column(s) < D; }
};

SAEFAST_DEVICE Row zeros() {
    Row row;
    for (int s = 0; s < VECTORS; ++s)
        for (int c = 0; c < VECTOR; ++c) row.at[s].x[c] = 0;
    return row;
}

struct alignas(8) Half4 {  // bf16 or int16
    std::uint32_t low, high;
};

SAEFAST_DEVICE float lower(std::uint32_t pair) { return float_of(pair << 16); }
SAEFAST_DEVICE float upper(std::uint32_t pair) { return float_of(pair & 0xFFFF0000u); }

SAEFAST_DEVICE Row load_fp32(const void* row, const Place& place) {
    Row out = zeros();
    for (int s = 0; s < VECTORS; ++s)
        if (place.within(s)) out.at[s] = reinterpret_cast<const Float4*>(row)[place.column(s) / VECTOR];
    return out;
}

SAEFAST_DEVICE Row load_bf16(const void* row, const Place& place) {
    Row out = zeros();
    for (int s = 0; s < VECTORS; ++s) {
        if (!place.within(s)) continue;
        const Half4 four = reinterpret_cast<const Half4*>(row)[place.column(s) / VECTOR];
        out.at[s] = {{lower(four.low), upper(four.low), lower(four.high), upper(four.high)}};
    }
    return out;
}

SAEFAST_DEVICE void store_fp32(float* row, const Row& values, const Place& place) {
    for (int s = 0; s < VECTORS; ++s)
        if (place.within(s)) store(row + place.column(s), values.at[s]);
}

SAEFAST_DEVICE void store_bf16(std::uint16_t* row, const Row& values, const Place& place) {
    for (int s = 0; s < VECTORS; ++s) {
        const float* x = values.at[s].x;
        if (place.within(s))
            reinterpret_cast<Half4*>(row)[place.column(s) / VECTOR] = {to_bf16(x[0], x[1]), to_bf16(x[2], x[3])};
    }
}

// row += scale * other
SAEFAST_DEVICE void add(Row& row, float scale, const Row& other) {
    for (int s = 0; s < VECTORS; ++s)
        for (int c = 0; c < VECTOR; ++c) row.at[s].x[c] += scale * other.at[s].x[c];
}

// What this thread has of the product.
SAEFAST_DEVICE float part_of_dot(const Row& left, const Row& right) {
    float sum = 0;
    for (int s = 0; s < VECTORS; ++s)
        for (int c = 0; c < VECTOR; ++c) sum += left.at[s].x[c] * right.at[s].x[c];
    return sum;
}

// Sums, or maxima, over all threads that compute, in a fixed order. `room` has two halves that take turns, so that one
// meeting is enough: who writes to a half has met all who read it.
struct Exchange {
    float* room;  // [2, WARP, TOGETHER]
    int turn;

    template <int N, bool MAXIMA = false>
    SAEFAST_DEVICE void all(float (&values)[N], const Place& place) {
        static_assert(N <= TOGETHER, "the room is for fewer numbers");
        for (int mask = WARP / 2; mask > 0; mask /= 2) {
            for (int n = 0; n < N; ++n) {
                const float other = from_lane_xor(values[n], mask);
                values[n] = MAXIMA ? larger(values[n], other) : values[n] + other;
            }
        }
        const int warps = place.threads / WARP;
        if (warps == 1) return;
        float* half = room + turn * WARP * TOGETHER;
        turn ^= 1;
        if (place.thread % WARP == 0)
            for (int n = 0; n < N; ++n) half[place.thread / WARP * TOGETHER + n] = values[n];
        meet(place.threads);
        for (int n = 0; n < N; ++n) values[n] = half[n];
        for (int warp = 1; warp < warps; ++warp) {
            for (int n = 0; n < N; ++n) {
                const float other = half[warp * TOGETHER + n];
                values[n] = MAXIMA ? larger(values[n], other) : values[n] + other;
            }
        }
    }

    SAEFAST_DEVICE static float larger(float x, float y) { return x < y ? y : x; }

    SAEFAST_DEVICE float sum(float value, const Place& place) {
        float values[1] = {value};
        all(values, place);
        return values[0];
    }
};

}  // namespace saefast::update
