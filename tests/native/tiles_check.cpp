// Whether the tiles of every instruction set of this machine give the sums that integers have, at the largest bytes that
// `Levels` allows too, and whether rows are rounded to within these. Exits with 1 if not.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "cpu/tiles.h"

using namespace saefast;
using Bytes = std::vector<std::int8_t>;

static std::mt19937 rng{7};

static int among(int low, int high) { return low + static_cast<int>(rng() % static_cast<unsigned>(high - low + 1)); }

// Whether both halves of each vector are within `levels`.
static bool within(const Levels& levels, const std::int8_t* q, std::size_t width) {
    for (std::size_t d = 0; d < width; d += LANES) {
        int sizes[2] = {}, sums[2] = {};
        for (std::size_t i = 0; i < LANES; ++i) {
            if (std::abs(q[d + i]) > levels.most) return false;
            sizes[i % 4 / 2] += std::abs(q[d + i]), sums[i % 4 / 2] += q[d + i];
        }
        for (std::size_t half : {0, 1}) {
            if (sizes[half] + std::abs(sums[half]) > levels.sum) return false;
        }
    }
    return true;
}

enum Kind { few, few_negative, equal, equal_negative, alternating, random_ones, KINDS };

static int sign_at(std::size_t d) { return d % 2 ? -1 : 1; }

// A row at the bounds: in few large entries or in equal ones, of one sign or of both in turn. Or a random one.
static void fill(const Levels& levels, int kind, std::int8_t* q, std::size_t width) {
    for (std::size_t d = 0; d < width; d += LANES) {
        // those of one sign count twice: in the sum of sizes and in the size of the sum
        const int room = kind == alternating ? levels.sum : levels.sum / 2;
        int left[2] = {room, room};
        for (std::size_t i = 0; i < LANES; ++i) {
            int& rest = left[i % 4 / 2];
            const bool is_even = kind == equal || kind == equal_negative || kind == alternating;
            const int size = std::min({is_even ? room / 8 : levels.most, rest, levels.most});
            const int value = kind == random_ones                              ? among(-size, size)
                              : kind == alternating                            ? sign_at(i) * size
                              : kind == few_negative || kind == equal_negative ? -size
                                                                               : size;
            q[d + i] = static_cast<std::int8_t>(value);
            rest -= std::abs(value);
        }
    }
}

static bool tiles_are_exact(Isa isa, std::size_t width) {
    const Tiles& tiles = tiles_for(isa);
    for (std::size_t n = 1; n <= tiles.rows; ++n) {
        Bytes x(n * width), w(PANEL * width);
        std::vector<std::uint8_t> packed(PANEL * width);
        for (std::size_t r = 0; r < n; ++r) {
            fill(tiles.x, static_cast<int>((n + r) % KINDS), &x[r * width], width);
            if (!within(tiles.x, &x[r * width], width)) return false;
        }
        for (std::size_t j = 0; j < PANEL; ++j) {
            for (std::size_t d = 0; d < width; ++d) {
                const int most = tiles.w.most;
                const int value = j % 4 == 0   ? most
                                  : j % 4 == 1 ? -most
                                  : j % 4 == 2 ? sign_at(d) * most
                                               : among(-most, most);
                w[j * width + d] = static_cast<std::int8_t>(value);
            }
        }
        tiles.pack(w.data(), width, tiles.offset, packed.data());
        std::vector<float> out(n * PANEL, -1.0f), w_step(PANEL), bias(PANEL);
        std::vector<const std::int8_t*> q(n);
        std::vector<std::int32_t> starts(n);
        std::vector<float> steps(n);
        std::vector<float*> to(n);
        for (std::size_t j = 0; j < PANEL; ++j) w_step[j] = std::ldexp(1.0f, among(-3, 3));
        for (std::size_t r = 0; r < n; ++r) {
            q[r] = &x[r * width], to[r] = &out[r * PANEL], steps[r] = std::ldexp(1.0f, among(-3, 3));
            for (std::size_t d = 0; d < width; ++d) starts[r] -= tiles.offset * x[r * width + d];
        }
        for (std::size_t first = 0; first < PANEL; first += tiles.columns) {
            for (std::size_t r = 0; r < n; ++r) to[r] = &out[r * PANEL + first];
            tiles.run[n - 1]({q.data(), starts.data(), steps.data(), to.data()}, width, packed.data(), first,
                             &w_step[first], &bias[first]);
        }
        for (std::size_t r = 0; r < n; ++r) {
            for (std::size_t j = 0; j < PANEL; ++j) {
                std::int32_t sum = 0;
                for (std::size_t d = 0; d < width; ++d) sum += x[r * width + d] * w[j * width + d];
                if (out[r * PANEL + j] != steps[r] * w_step[j] * static_cast<float>(sum)) return false;
            }
        }
    }
    return true;
}

static bool rows_are_within(Isa isa, std::size_t D) {
    const Mixing mixing(D);
    std::vector<float> row(D), scratch(mixing.width());
    Bytes q(mixing.width());
    std::normal_distribution<float> normal;
    for (int kind = 0; kind < 40; ++kind) {
        for (std::size_t d = 0; d < D; ++d) {
            const float value = normal(rng);
            // random, constant, of heavy tails, a few entries, all of it at the end
            row[d] = kind % 5 == 0   ? value
                     : kind % 5 == 1 ? 1.0f
                     : kind % 5 == 2 ? std::pow(value, 7.0f)
                     : kind % 5 == 3 ? static_cast<float>(rng() % 20 == 0)
                                     : static_cast<float>(d + 1 == D);
        }
        for (const Levels& levels : {tiles_for(isa).x, tiles_for(isa).w}) {
            round8(row.data(), D, mixing, levels, isa, scratch.data(), q.data());
            if (!within(levels, q.data(), q.size())) return false;
        }
    }
    return true;
}

int main() {
    for (const Isa isa : supported_isas()) {
        for (const std::size_t width : {16, 48, 576, 2064}) {
            if (!tiles_are_exact(isa, width)) {
                std::printf("instruction set %d, width %zu: a sum is not that of the integers\n", static_cast<int>(isa), width);
                return 1;
            }
        }
        for (const std::size_t D : {16, 33, 200, 576}) {
            if (!rows_are_within(isa, D)) {
                std::printf("instruction set %d, d_in %zu: a row is rounded to more than its levels\n", static_cast<int>(isa), D);
                return 1;
            }
        }
    }
    std::puts("ok");
}
