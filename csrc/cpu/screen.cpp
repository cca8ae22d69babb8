#include "screen.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "parallel.h"

#ifdef SAEFAST_X86
#include <immintrin.h>
#endif

namespace saefast {
namespace {

using std::int32_t;
using std::int8_t;
using std::size_t;
using std::uint8_t;

constexpr float ULP = 5.96e-8f;  // half a unit in the last place of fp32, relative
constexpr size_t TILE = 6;       // rows at a time: 6 x 4 registers of sums, 4 of weights and one of x

// Roundings that a product of rows passes through, in units of ULP ||x|| ||w||: at most D / 16 + 70 in the sum of fp32
// (up to 31 of its terms come one after another), 60 in mixing both (two transforms of up to 2^11 vectors), 20 in
// rounding and scaling.
float slack(size_t D) { return ULP * (static_cast<float>(D) / 16 + 192); }

constexpr float LARGE = 1e30f;      // of a bias
constexpr float ABOVE = 1 + 1e-5f;  // for norms and sums of bounds that were themselves rounded

// Products of N <= TILE rows with a panel, as pre-activations.
template <size_t N>
SAEFAST_INLINE void tile_plain(const int8_t* const* q, const int32_t* starts, const float* steps, size_t width,
                               const uint8_t* panel, const float* w_step, const float* bias, float* const* out) {
    for (size_t r = 0; r < N; ++r) {
        int32_t sums[PANEL];
        std::fill(sums, sums + PANEL, starts[r]);
        for (size_t d = 0; d < width; d += 4) {
            for (size_t j = 0; j < PANEL; ++j) {
                for (size_t i = 0; i < 4; ++i) sums[j] += panel[d * PANEL + j * 4 + i] * q[r][d + i];
            }
        }
        for (size_t j = 0; j < PANEL; ++j) out[r][j] = steps[r] * (w_step[j] * static_cast<float>(sums[j])) + bias[j];
    }
}

#ifdef SAEFAST_X86
template <size_t N>
SAEFAST_VNNI inline void tile_vnni(const int8_t* const* q, const int32_t* starts, const float* steps, size_t width,
                                   const uint8_t* panel, const float* w_step, const float* bias, float* const* out) {
    constexpr size_t COLUMNS = PANEL / 16;
    __m512i sums[N][COLUMNS];
#pragma GCC unroll 8
    for (size_t r = 0; r < N; ++r) {
#pragma GCC unroll 8
        for (size_t c = 0; c < COLUMNS; ++c) sums[r][c] = _mm512_set1_epi32(starts[r]);
    }
    for (size_t d = 0; d < width; d += 4, panel += 4 * PANEL) {
        __m512i w[COLUMNS];
#pragma GCC unroll 8
        for (size_t c = 0; c < COLUMNS; ++c) w[c] = _mm512_loadu_si512(panel + 64 * c);
#pragma GCC unroll 8
        for (size_t r = 0; r < N; ++r) {
            int32_t four;
            std::memcpy(&four, q[r] + d, sizeof four);
            const __m512i x = _mm512_set1_epi32(four);
#pragma GCC unroll 8
            for (size_t c = 0; c < COLUMNS; ++c) {
                // as an intrinsic gcc 12 copies and spills the sums: 2.3 times as slow
                asm("vpdpbusd %2, %1, %0" : "+v"(sums[r][c]) : "v"(w[c]), "v"(x));
            }
        }
    }
#pragma GCC unroll 8
    for (size_t c = 0; c < COLUMNS; ++c) {
        const __m512 scale = _mm512_loadu_ps(w_step + 16 * c), add = _mm512_loadu_ps(bias + 16 * c);
#pragma GCC unroll 8
        for (size_t r = 0; r < N; ++r) {
            const __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r][c]), scale);
            _mm512_storeu_ps(out[r] + 16 * c, _mm512_fmadd_ps(_mm512_set1_ps(steps[r]), value, add));
        }
    }
}
#endif

using Tile = void (*)(const int8_t* const*, const int32_t*, const float*, size_t, const uint8_t*, const float*,
                      const float*, float* const*);

#define SAEFAST_TILES(NAME) {NAME<1>, NAME<2>, NAME<3>, NAME<4>, NAME<5>, NAME<6>}
constexpr Tile tiles_plain[TILE] = SAEFAST_TILES(tile_plain);
#ifdef SAEFAST_X86
constexpr Tile tiles_vnni[TILE] = SAEFAST_TILES(tile_vnni);
#endif

const Tile* tiles_for([[maybe_unused]] Isa isa) {
#ifdef SAEFAST_X86
    if (isa == Isa::vnni) return tiles_vnni;
#endif
    return tiles_plain;
}

}  // namespace

bool ScreenWeights::set(const float* W_enc, const float* b_enc, size_t latents, size_t dimensions, int threads,
                        Isa isa) {
    if (D != dimensions) mixing = Mixing(dimensions);
    F = latents, D = dimensions;
    const size_t width = mixing.width(), panels = (F + PANEL - 1) / PANEL;
    packed.resize(panels * PANEL * width);
    for (auto* values : {&step, &bias, &norm, &rest}) values->assign(panels * PANEL, 0.0f);
    std::vector<float> scratch(static_cast<size_t>(threads) * width);
    std::vector<int8_t> q(static_cast<size_t>(threads) * PANEL * width);
    std::vector<char> usable(panels, 1);

    parallel_for(panels, threads, [&](size_t p, size_t thread) {
        int8_t* rows = &q[thread * PANEL * width];
        for (size_t j = 0; j < PANEL; ++j) {
            const size_t f = p * PANEL + j;
            if (f >= F) {
                std::fill(rows + j * width, rows + (j + 1) * width, int8_t{0});
                continue;
            }
            const Rounded w = round8(W_enc + f * D, D, mixing, isa, &scratch[thread * width], rows + j * width);
            usable[p] = usable[p] && w.usable && std::fabs(b_enc[f]) < LARGE;
            step[f] = w.step, bias[f] = b_enc[f], rest[f] = w.rest * ABOVE, norm[f] = (w.norm + w.rest) * ABOVE;
        }
        uint8_t* out = &packed[p * PANEL * width];
        for (size_t d = 0; d < width; d += 4) {
            for (size_t j = 0; j < PANEL; ++j) {
                uint32_t four;
                std::memcpy(&four, rows + j * width + d, sizeof four);
                four ^= 0x80808080u;  // + 128 in each byte
                std::memcpy(out + d * PANEL + 4 * j, &four, sizeof four);
            }
        }
    });
    mean_norm = mean_rest = bias_error = 0;
    for (size_t f = 0; f < F; ++f) {
        mean_norm += norm[f] / static_cast<float>(F), mean_rest += rest[f] / static_cast<float>(F);
        bias_error = std::max(bias_error, 4 * ULP * std::fabs(bias[f]));
    }
    bias_error += std::numeric_limits<float>::min();
    return std::all_of(usable.begin(), usable.end(), [](char ok) { return ok; });
}

void ScreenRows::set(const ScreenWeights& weights, const float* centred, size_t rows, Isa isa, float* scratch) {
    const size_t width = weights.mixing.width();
    for (size_t r = 0; r < rows; ++r) {
        info[r] = round8(centred + r * weights.D, weights.D, weights.mixing, isa, scratch, &q[r * width]);
        by_rest[r] = info[r].norm * ABOVE;
        by_norm[r] = (info[r].rest + slack(weights.D) * (info[r].norm + info[r].rest)) * ABOVE;
    }
}

void screen(const ScreenWeights& weights, const ScreenRows& x, size_t rows, size_t first, size_t end, Isa isa,
            float* out, size_t stride) {
    const size_t width = weights.mixing.width();
    const Tile* const tiles = tiles_for(isa);
    for (size_t p = first; p < end; ++p) {
        for (size_t row = 0; row < rows; row += TILE) {
            const size_t n = std::min(TILE, rows - row);
            const int8_t* q[TILE];
            int32_t starts[TILE];
            float steps[TILE], *to[TILE];
            for (size_t r = 0; r < n; ++r) {
                q[r] = &x.q[(row + r) * width];
                starts[r] = -128 * x.info[row + r].sum;  // the weights are stored with 128 added
                steps[r] = x.info[row + r].step;
                to[r] = out + (row + r) * stride + (p - first) * PANEL;
            }
            tiles[n - 1](q, starts, steps, width, &weights.packed[p * PANEL * width], &weights.step[p * PANEL],
                         &weights.bias[p * PANEL], to);
        }
    }
}

}  // namespace saefast
