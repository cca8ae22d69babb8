// The warp that fills the ring: which rows come, in which order.
//
// For each latent: its row of W_dec; for each active entry the rows of error and centred of its token; for each window of a
// hot latent its two sums; then exp_avg and exp_avg_sq of W_dec, the row of W_enc, and its moments. What must be known for
// that (offsets, pairs, tokens, activations) is itself loaded ahead, a lane for each latent and for each entry.
#pragma once

#include "ring.h"

namespace saefast::update {

// A latent with more entries than a window is hot: what it has between multiples of `window` is summed by another block,
// as the window that begins there, and only what it has before the first multiple is summed where its step is made.
struct Job {
    std::int32_t latent, first, entries, window, windows;
    float bias[3], scales[4];  // scales: of the moments of W_dec, then W_enc
};

SAEFAST_DEVICE Job job_of_latent(const Update& u, std::int64_t j) {
    Job job{};
    job.latent = static_cast<std::int32_t>(j);
    job.first = u.offsets[j];
    job.entries = u.offsets[j + 1] - job.first;
    const auto window = static_cast<std::int32_t>(u.window);
    if (job.entries > window) {
        const std::int32_t end = job.first + job.entries;
        job.window = (job.first + window - 1) / window;
        job.windows = (end + window - 1) / window - job.window;
        job.entries = job.window * window - job.first;
    }
    job.bias[0] = u.b_enc.value[j];
    job.bias[1] = u.b_enc.m[j];
    job.bias[2] = u.b_enc.v[j];
    if (u.dec.scales != nullptr) {
        for (int i = 0; i < 2; ++i) {
            job.scales[i] = u.dec.scales[2 * j + i];
            job.scales[2 + i] = u.enc.scales[2 * j + i];
        }
    }
    return job;
}

SAEFAST_DEVICE Job job_of_window(const Update& u, std::int64_t w) {
    Job job{};
    job.latent = -1;
    job.window = static_cast<std::int32_t>(w);
    job.first = static_cast<std::int32_t>(w * u.window);
    if (job.first >= u.offsets[u.F]) return job;
    const std::int32_t latent = u.indices[u.pairs[job.first]], begin = u.offsets[latent], end = u.offsets[latent + 1];
    const auto window = static_cast<std::int32_t>(u.window);
    if (end - begin > window) {
        job.latent = latent;
        job.entries = end - job.first < window ? end - job.first : window;
    }
    return job;
}

// Up to as many entries of a job as a warp has lanes; the last three fields are of this lane's entry.
struct Part {
    Job job;
    int begin, count;  // from job.first; count -1: no more
    std::int32_t pair, token;
    float act;
};

template <bool SPLIT, bool INT8, bool WINDOWS>
struct Fetch {
    const Update& u;
    Filling filling;
    int lane, block, n_jobs;
    int k = 0, at = 0;  // the next part: of which job of this block, from which entry
    Job of_lane{};      // job k - k % WARP + lane

    SAEFAST_DEVICE Job job_at(int index) const {
        const std::int64_t number = block + static_cast<std::int64_t>(index) * u.blocks;
        Job none{};
        none.latent = -1;
        if (index >= n_jobs) return none;
        return WINDOWS ? job_of_window(u, number) : job_of_latent(u, number);
    }

    SAEFAST_DEVICE Part next() {
        Part part{};
        part.count = -1;
        while (k < n_jobs) {
            const int from = k % WARP;
            if (from == 0 && at == 0) of_lane = job_at(k + lane);
            part.job.latent = from_lane(of_lane.latent, from);
            if (part.job.latent >= 0) break;
            ++k;
        }
        if (k >= n_jobs) return part;
        const int from = k % WARP;
        part.job.first = from_lane(of_lane.first, from);
        part.job.entries = from_lane(of_lane.entries, from);
        part.job.window = from_lane(of_lane.window, from);
        part.job.windows = from_lane(of_lane.windows, from);
        for (int i = 0; i < 3; ++i) part.job.bias[i] = from_lane(of_lane.bias[i], from);
        if (INT8)
            for (int i = 0; i < 4; ++i) part.job.scales[i] = from_lane(of_lane.scales[i], from);
        part.begin = at;
        const int left = part.job.entries - at;
        part.count = left < WARP ? left : WARP;
        at += part.count;
        if (at == part.job.entries) {
            ++k;
            at = 0;
        }
        if (lane < part.count) {
            part.pair = u.pairs[part.job.first + part.begin + lane];
            part.token = u.tokens[part.job.first + part.begin + lane];
        }
        return part;
    }

    SAEFAST_DEVICE void load_acts(Part& part) const {
        if (lane < part.count) part.act = u.acts[part.pair];
    }

    SAEFAST_DEVICE Piece row(const void* matrix, std::int64_t j, int itemsize, Keep keep) const {
        const int bytes = static_cast<int>(u.D) * itemsize;
        return {static_cast<const unsigned char*>(matrix) + j * bytes, bytes, keep};
    }
    SAEFAST_DEVICE Piece state(const void* matrix, std::int64_t j, int itemsize) const {
        return row(matrix, j, itemsize, Keep::briefly);
    }

    SAEFAST_DEVICE void send_weight(const Matrix& matrix, const Note& note) {
        const std::int64_t j = note.latent;
        if (SPLIT) {
            filling.send(note, state(matrix.weight, j, 2), state(matrix.low, j, 2));
        } else {
            filling.send(note, state(matrix.weight, j, 4), {});
        }
    }

    SAEFAST_DEVICE void send_moments(const Matrix& matrix, Note note, float scale_m, float scale_v) {
        const std::int64_t j = note.latent;
        note.values[0] = scale_m;
        note.values[1] = scale_v;
        if (INT8) {
            filling.send(note, state(matrix.m, j, 1), state(matrix.v, j, 1));
        } else {
            filling.send(note, state(matrix.m, j, 4), {});
            filling.send(note, state(matrix.v, j, 4), {});
        }
    }

    SAEFAST_DEVICE void send_windows(const Part& part, Note note) {
#pragma unroll 1
        for (int i = 0; i < part.job.windows; ++i) {
            if (lane != 0) continue;
            const std::int64_t w = part.job.window + i;
            note.values[0] = u.window_b[w];
            filling.send(note, state(u.window_dec, w, 4), {});
            filling.send(note, state(u.window_enc, w, 4), {});
        }
    }

    SAEFAST_DEVICE void send(const Part& part) {
        Note note{part.job.latent, part.job.entries, WINDOWS ? part.job.window : part.job.windows, {}};
        if (lane == 0 && part.begin == 0) send_weight(u.dec, note);
#pragma unroll 1
        for (int i = 0; i < part.count; ++i) {
            const std::int32_t token = from_lane(part.token, i);
            note.values[0] = from_lane(part.act, i);
            if (lane == 0) filling.send(note, row(u.error, token, 2, Keep::long_), row(u.centred, token, 2, Keep::long_));
        }
        if (WINDOWS || part.begin + part.count < part.job.entries) return;
        send_windows(part, note);
        if (lane != 0) return;
        send_moments(u.dec, note, part.job.scales[0], part.job.scales[1]);
        for (int i = 0; i < 3; ++i) note.values[i] = part.job.bias[i];
        send_weight(u.enc, note);
        send_moments(u.enc, note, part.job.scales[2], part.job.scales[3]);
    }

    SAEFAST_DEVICE void run() {
        if (!WINDOWS && lane == 0)  // for the gradient of b_dec
#pragma unroll 1
            for (std::int64_t b = block; b < u.B; b += u.blocks) filling.send({}, row(u.error, b, 2, Keep::long_), {});
        Part now = next();
        load_acts(now);
        Part soon = next();
        while (now.count >= 0) {
            const Part later = next();
            load_acts(soon);
            send(now);
            now = soon;
            soon = later;
        }
        if (lane == 0) filling.end();
    }
};

}  // namespace saefast::update
