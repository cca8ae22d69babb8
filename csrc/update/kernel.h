// What a block does: one warp fills the ring, the others make the step of one latent after the other. The same source is
// compiled for the device and, with `tests/native/emulated`, for the host, where it is compared with the reference.
#pragma once

#ifdef __CUDACC__
#include "device.h"
#else
#include <emulated_device.h>
#endif

#include "fetch.h"
#include "format.h"

namespace saefast::update {

constexpr int COLUMNS = 8, LANES = 32;  // of a block that finishes

SAEFAST_DEVICE bool is_number(float x) { return x == x; }

template <int V, bool SPLIT, bool INT8, bool WINDOWS>
struct Compute {
    const Update& u;
    Emptying ring;
    Place place;
    Exchange exchange;
    const float* numbers;  // in shared memory
    float scale, squares;
    std::uint32_t of_step[2];
    Row<V> partial;  // of the gradient of b_dec

    struct Grads {
        Row<V> enc, dec;
        float b;
    };

    // Entries are taken some at a time: their products with W_dec are summed together, by one meeting.
    SAEFAST_DEVICE void add_entries(int entries, const Row<V>& W_dec, Grads& grads) {
#pragma unroll 1
        for (int begin = 0; begin < entries; begin += TOGETHER) {
            float dots[TOGETHER];
            Cursor ahead = ring.cursor;
#pragma unroll
            for (int r = 0; r < TOGETHER; ++r) {
                dots[r] = 0;
                if (begin + r >= entries) continue;
                const Row<V> error = load_bf16<V>(ring.slot(ahead), place);
                dots[r] = part_of_dot(error, W_dec);
                add(grads.dec, scale * ring.note(ahead).values[0], error);
                ahead.next(ring.stages);
            }
            exchange.all(dots, place);
#pragma unroll
            for (int r = 0; r < TOGETHER; ++r) {
                if (begin + r >= entries) continue;
                const float grad_pre = scale * dots[r] + numbers[L1];
                grads.b += grad_pre;
                add(grads.enc, grad_pre, load_bf16<V>(ring.here() + 2 * place.D, place));
                ring.release(place);
            }
        }
    }

    SAEFAST_DEVICE void add_windows(int windows, Grads& grads) {
#pragma unroll 1
        for (int i = 0; i < windows; ++i) {
            add(grads.dec, 1, load_fp32<V>(ring.slot(), place));
            ring.release(place);
            add(grads.enc, 1, load_fp32<V>(ring.slot(), place));
            grads.b += ring.note().values[0];
            ring.release(place);
        }
    }

    // Moments out of the ring, and back to memory after the step; value: without the unit norm.
    SAEFAST_DEVICE void adam_row(const Matrix& matrix, std::int64_t j, Row<V>& value, const Row<V>& grad, float lr, int salt) {
        Row<V> m, v;
        if (INT8) {
            const unsigned char* slot = ring.slot();
            load_codes(slot, ring.note().values[0], ring.note().values[1], m, v, place);
            ring.release(place);
        } else {
            m = load_fp32<V>(ring.slot(), place);
            ring.release(place);
            v = load_fp32<V>(ring.slot(), place);
            ring.release(place);
        }
        for (int s = 0; s < V; ++s) {
            for (int c = 0; c < VECTOR; ++c) {
                float& x = value.at[s].x[c];
                adam(x, grad.at[s].x[c], m.at[s].x[c], v.at[s].x[c], lr, numbers[EPS], numbers);
                if (!place.within(s)) x = 0;  // with an eps of 0 it is 0 / 0
                settle(x);                    // in this order: all at once take too many registers
            }
        }
        if (INT8) {
            store_codes(matrix, j, m, v, mix(static_cast<std::uint32_t>(j) ^ of_step[salt]), place, exchange);
        } else {
            store_fp32(static_cast<float*>(matrix.m) + j * place.D, m, place);
            store_fp32(static_cast<float*>(matrix.v) + j * place.D, v, place);
        }
    }

    SAEFAST_DEVICE void step(std::int64_t j, Row<V>& W_dec, Grads& grads) {
        const bool unit = numbers[UNIT] != 0;
        if (unit) add(grads.dec, -exchange.sum(part_of_dot(grads.dec, W_dec), place), W_dec);
        squares += part_of_squares(grads.enc, place) + part_of_squares(grads.dec, place);
        adam_row(u.dec, j, W_dec, grads.dec, numbers[LR_DEC], 1);
        if (unit) {
            const float norm = root(exchange.sum(part_of_dot(W_dec, W_dec), place));
            const float inverse = quotient(1, norm < TINY ? TINY : norm);
            for (int s = 0; s < V; ++s)
                for (int c = 0; c < VECTOR; ++c) W_dec.at[s].x[c] *= inverse;
        }
        store_weight<SPLIT>(u.dec, j, W_dec, place);

        Row<V> W_enc = load_weight<SPLIT, V>(ring.slot(), place);
        float bias[3] = {ring.note().values[0], ring.note().values[1], ring.note().values[2]};
        ring.release(place);
        if (numbers[TIED] != 0) add(partial, -grads.b, W_enc);
        adam_row(u.enc, j, W_enc, grads.enc, numbers[LR], 0);
        store_weight<SPLIT>(u.enc, j, W_enc, place);
        if (place.thread == 0) {
            const float of_norm = numbers[BIAS_NORM] * grads.b;
            squares += of_norm * of_norm;
            adam(bias[0], grads.b, bias[1], bias[2], numbers[LR_BIAS], numbers[EPS_BIAS], numbers);
            u.b_enc.value[j] = bias[0];
            u.b_enc.m[j] = bias[1];
            u.b_enc.v[j] = bias[2];
        }
    }

    SAEFAST_DEVICE void add_errors(std::int64_t block) {
#pragma unroll 1
        for (std::int64_t b = block; b < u.B; b += u.blocks) {
            add(partial, 1, load_bf16<V>(ring.slot(), place));
            ring.release(place);
        }
        for (int s = 0; s < V; ++s)
            for (int c = 0; c < VECTOR; ++c) partial.at[s].x[c] *= scale;
    }

    SAEFAST_DEVICE void run(std::int64_t block) {
        partial = zeros<V>();
        squares = 0;
        if (!WINDOWS) add_errors(block);
        for (;;) {
            const unsigned char* slot = ring.slot();
            const Note note = ring.note();
            if (note.latent < 0) break;
            Row<V> W_dec = load_weight<SPLIT, V>(slot, place);
            ring.release(place);
            Grads grads{zeros<V>(), zeros<V>(), 0};
            add_entries(note.entries, W_dec, grads);
            if (WINDOWS) {
                const std::int64_t w = note.windows;
                store_fp32(u.window_enc + w * place.D, grads.enc, place);
                store_fp32(u.window_dec + w * place.D, grads.dec, place);
                if (place.thread == 0) u.window_b[w] = grads.b;
            } else {
                add_windows(note.windows, grads);
                step(note.latent, W_dec, grads);
            }
        }
        if (WINDOWS) return;
        store_fp32(u.partial + block * place.D, partial, place);
        squares = exchange.sum(squares, place);
        if (place.thread == 0) u.squares[block] = squares;
    }
};

// memory: Shared::FIXED + stages * (4 D + Shared::OF_STAGE) bytes at a multiple of 16. The last warp fills the ring.
template <int V, bool SPLIT, bool INT8, bool WINDOWS>
SAEFAST_DEVICE void run_block(const Update& u, unsigned char* memory, int thread, int threads, int block) {
    const int D = static_cast<int>(u.D), stages = static_cast<int>(u.stages), computing = threads - WARP;
    const Shared shared(memory, stages, D);
    if (thread == 0) {
        for (int i = 0; i < stages; ++i) {
            init(shared.full + i, 1);
            init(shared.empty + i, computing / WARP);
        }
    }
    if (thread < NUMBERS) shared.numbers[thread] = u.numbers[thread];
    publish_barriers();
    const float scale = *u.grad_scale;
    if (thread >= computing) {
        const std::int64_t all = WINDOWS ? (u.N + u.window - 1) / u.window : u.F;
        const std::int64_t jobs = is_number(scale) && all > block ? (all - block + u.blocks - 1) / u.blocks : 0;
        const Filling filling{shared, stages, 4 * D, {}};
        Fetch<SPLIT, INT8, WINDOWS>{u, filling, thread - computing, block, static_cast<int>(jobs)}.run();
        return;
    }
    const auto twice = static_cast<std::uint32_t>(2 * *u.step);
    Compute<V, SPLIT, INT8, WINDOWS> compute{u, {shared, stages, 4 * D, {}}, {thread, computing, D}, {shared.room, 0},
                                          shared.numbers, scale, 0, {mix(twice), mix(twice + 1)}, {}};
    compute.run(block);
}

// b_dec: the sums over the blocks, in order, then Adam. memory: COLUMNS * (LANES + 1) floats; COLUMNS * LANES threads.
SAEFAST_DEVICE void finish_block(const Update& u, float* memory, int thread, int block) {
    const int column = thread % COLUMNS, lane = thread / COLUMNS;
    const std::int64_t d = static_cast<std::int64_t>(block) * COLUMNS + column;
    float sum = 0;
#pragma unroll 8
    for (std::int64_t p = lane; p < u.blocks; p += LANES) sum += u.partial[p * u.D + d];
    memory[lane * COLUMNS + column] = sum;
    meet(COLUMNS * LANES);
    if (lane == 0) {
        float grad = 0;
        for (int i = 0; i < LANES; ++i) grad += memory[i * COLUMNS + column];
        const float scale = *u.grad_scale, of_norm = u.numbers[BIAS_NORM] * grad;
        if (is_number(scale)) {
            float value = u.b_dec.value[d], m = u.b_dec.m[d], v = u.b_dec.v[d];
            adam(value, grad, m, v, u.numbers[LR_B_DEC], u.numbers[EPS_BIAS], u.numbers);
            u.b_dec.value[d] = value;
            u.b_dec.m[d] = m;
            u.b_dec.v[d] = v;
        }
        memory[LANES * COLUMNS + column] = of_norm * of_norm;
    }
    meet(COLUMNS * LANES);
    if (thread == 0) {
        float squares = 0;
        for (int i = 0; i < COLUMNS; ++i) squares += memory[LANES * COLUMNS + i];
        u.squares[u.blocks + block] = squares;
    }
}

}  // namespace saefast::update
