// A row of D numbers among the threads that compute: thread i has columns 4 i to 4 i + 3, and those 4 T, 8 T, ... further, V
// times in all, of every row whatever its dtype, so that rows are added and converted without an exchange. What a thread has
// beyond D reads the first columns and counts nowhere: it is 0 in weights, and not in sums of squares, maxima and stores.
#pragma once

#include "update.h"

namespace saefast::update {

constexpr int VECTOR = 4, WARP = 32, TOGETHER = 4;  // entries whose products are summed at once

template <int V>
struct Row {
    Float4 at[V];
};

// Where a thread stands among those that compute.
struct Place {
    int thread, threads, D;
    SAEFAST_DEVICE int column(int s) const { return VECTOR * (thread + s * threads); }
    SAEFAST_DEVICE bool within(int s) const { return column(s) < D; }
    SAEFAST_DEVICE int read(int s) const { return within(s) ? thread + s * threads : 0; }  // the vector to read
};

template <int V>
SAEFAST_DEVICE Row<V> zeros() {
    Row<V> row;
    for (int s = 0; s < V; ++s)
        for (int c = 0; c < VECTOR; ++c) row.at[s].x[c] = 0;
    return row;
}

struct alignas(8) Half4 {  // bf16 or int16
    std::uint32_t low, high;
};

SAEFAST_DEVICE float lower(std::uint32_t pair) { return float_of(pair << 16); }
SAEFAST_DEVICE float upper(std::uint32_t pair) { return float_of(pair & 0xFFFF0000u); }

template <int V>
SAEFAST_DEVICE Row<V> load_fp32(const void* row, const Place& place) {
    Row<V> out;
    for (int s = 0; s < V; ++s) out.at[s] = static_cast<const Float4*>(row)[place.read(s)];
    return out;
}

template <int V>
SAEFAST_DEVICE Row<V> load_bf16(const void* row, const Place& place) {
    Row<V> out;
    for (int s = 0; s < V; ++s) {
        const Half4 four = static_cast<const Half4*>(row)[place.read(s)];
        out.at[s] = {{lower(four.low), upper(four.low), lower(four.high), upper(four.high)}};
    }
    return out;
}

template <int V>
SAEFAST_DEVICE void store_fp32(float* row, const Row<V>& values, const Place& place) {
    for (int s = 0; s < V; ++s)
        if (place.within(s)) store(row + place.column(s), values.at[s]);
}

template <int V>
SAEFAST_DEVICE void store_bf16(std::uint16_t* row, const Row<V>& values, const Place& place) {
    for (int s = 0; s < V; ++s) {
        const float* x = values.at[s].x;
        if (place.within(s))
            reinterpret_cast<Half4*>(row)[place.column(s) / VECTOR] = {to_bf16(x[0], x[1]), to_bf16(x[2], x[3])};
    }
}

// row += scale * other
template <int V>
SAEFAST_DEVICE void add(Row<V>& row, float scale, const Row<V>& other) {
    for (int s = 0; s < V; ++s)
        for (int c = 0; c < VECTOR; ++c) row.at[s].x[c] += scale * other.at[s].x[c];
}

// What this thread has of the product.
template <int V>
SAEFAST_DEVICE float part_of_dot(const Row<V>& left, const Row<V>& right) {
    float sum = 0;
    for (int s = 0; s < V; ++s)
        for (int c = 0; c < VECTOR; ++c) sum += left.at[s].x[c] * right.at[s].x[c];
    return sum;
}

template <int V>
SAEFAST_DEVICE float part_of_squares(const Row<V>& row, const Place& place) {
    float sum = 0;
    for (int s = 0; s < V; ++s)
        for (int c = 0; c < VECTOR; ++c) sum += place.within(s) ? row.at[s].x[c] * row.at[s].x[c] : 0;
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
        const int lane = place.thread % WARP;
        float* half = room + turn * WARP * TOGETHER;
        float* of_warp = half + place.thread / WARP * TOGETHER;
        turn ^= 1;
        if constexpr (N == 4 && !MAXIMA) {
            // Half of the lanes go on with two of the numbers, then a quarter with one: 6 shuffles in place of 20.
            float two[2], one;
            for (int i = 0; i < 2; ++i) {
                const float kept = lane & 16 ? values[2 + i] : values[i], sent = lane & 16 ? values[i] : values[2 + i];
                two[i] = kept + from_lane_xor(sent, 16);
            }
            one = (lane & 8 ? two[1] : two[0]) + from_lane_xor(lane & 8 ? two[0] : two[1], 8);
            for (int mask = 4; mask > 0; mask /= 2) one += from_lane_xor(one, mask);
            if (lane % 8 == 0) of_warp[lane / 8] = one;
        } else {
            for (int mask = WARP / 2; mask > 0; mask /= 2)
                for (int n = 0; n < N; ++n) values[n] = both<MAXIMA>(values[n], from_lane_xor(values[n], mask));
            if (lane == 0)
                for (int n = 0; n < N; ++n) of_warp[n] = values[n];
        }
        meet(place.threads);
        for (int warp = 0; warp < place.threads / WARP; ++warp) {
            const Float4 four = reinterpret_cast<const Float4*>(half)[warp];
            for (int n = 0; n < N; ++n) values[n] = warp == 0 ? four.x[n] : both<MAXIMA>(values[n], four.x[n]);
        }
    }

    template <bool MAXIMA>
    SAEFAST_DEVICE static float both(float x, float y) {
        return MAXIMA ? larger(x, y) : x + y;
    }

    SAEFAST_DEVICE static float larger(float x, float y) { return x < y ? y : x; }

    SAEFAST_DEVICE float sum(float value, const Place& place) {
        float values[1] = {value};
        all(values, place);
        return values[0];
    }
};

}  // namespace saefast::update
