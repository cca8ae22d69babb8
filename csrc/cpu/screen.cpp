#include "screen.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "hash.h"
#include "parallel.h"
#include "tiles.h"

namespace saefast {
namespace {

using std::int32_t;
using std::int8_t;
using std::size_t;
using std::uint64_t;

constexpr float ULP = 5.96e-8f;  // half a unit in the last place of fp32, relative

// Roundings that a product of rows passes through, in units of ULP ||x|| ||w||: at most D / 16 + 70 in the sum of fp32
// (up to 31 of its terms come one after another), 60 in mixing both (two transforms of up to 2^11 vectors), 20 in
// rounding and scaling.
float slack(size_t D) { return ULP * (static_cast<float>(D) / 16 + 192); }

constexpr float LARGE = 1e30f;      // of a bias
constexpr float ABOVE = 1 + 1e-5f;  // for norms and sums of bounds that were themselves rounded

}  // namespace

bool ScreenWeights::rounds(const float* W_enc, size_t latents, size_t dimensions) const {
    return source_ == W_enc && F == latents && D == dimensions;
}

uint64_t ScreenWeights::hash(size_t p, const float* W_enc) const {
    const size_t first = p * PANEL;
    return hash_rows(W_enc + first * D, std::min(PANEL, F - first), D, isa_);
}

void ScreenWeights::round_row(size_t f, const float* W_enc, RoundedPanel& panel) {
    const size_t width = mixing.width(), place = f % PANEL;
    if (place == 0) panel.scratch.resize(width), panel.q.resize(PANEL * width), panel.usable = true;
    const Rounded w = round8(W_enc + f * D, D, mixing, tiles_for(isa_).w, isa_, panel.scratch.data(),
                             &panel.q[place * width]);
    panel.usable = panel.usable && w.usable;
    step[f] = w.step, rest[f] = w.rest * ABOVE, norm[f] = (w.norm + w.rest) * ABOVE;
}

void ScreenWeights::finish(size_t p, const float* W_enc, RoundedPanel& panel) { pack(p, hash(p, W_enc), panel); }

void ScreenWeights::pack(size_t p, uint64_t hash, RoundedPanel& panel) {
    const size_t width = mixing.width(), rows = std::min(PANEL, F - p * PANEL);
    const Tiles& tiles = tiles_for(isa_);
    std::fill(panel.q.begin() + static_cast<std::ptrdiff_t>(rows * width), panel.q.end(), int8_t{0});
    tiles.pack(panel.q.data(), width, tiles.offset, &packed[p * PANEL * width]);
    panels_[p] = {hash, true, panel.usable};
}

bool ScreenWeights::set(const float* W_enc, const float* b_enc, size_t latents, size_t dimensions, int threads) {
    const size_t panels = chunks_of(latents, PANEL);
    if (F != latents || D != dimensions) {
        mixing = Mixing(dimensions);
        F = latents, D = dimensions;
        packed.resize(panels * PANEL * mixing.width());
        for (auto* values : {&step, &bias, &norm, &rest}) values->assign(panels * PANEL, 0.0f);
        panels_.assign(panels, {});
    }
    source_ = W_enc;
    std::vector<RoundedPanel> rounding(static_cast<size_t>(threads));
    std::atomic<size_t> changed{0};
    parallel_for(panels, threads, [&](size_t p, size_t thread) {
        const uint64_t now = hash(p, W_enc);
        if (panels_[p].known && panels_[p].hash == now) return;
        for (size_t f = p * PANEL; f < std::min(F, (p + 1) * PANEL); ++f) round_row(f, W_enc, rounding[thread]);
        pack(p, now, rounding[thread]);
        ++changed;
    });
    rounded_ = changed;

    std::copy(b_enc, b_enc + F, bias.begin());
    bool usable = std::all_of(panels_.begin(), panels_.end(), [](const Panel& panel) { return panel.usable; });
    mean_norm = mean_rest = bias_error = 0;
    for (size_t f = 0; f < F; ++f) {
        usable = usable && std::fabs(bias[f]) < LARGE;
        mean_norm += norm[f] / static_cast<float>(F), mean_rest += rest[f] / static_cast<float>(F);
        bias_error = std::max(bias_error, 4 * ULP * std::fabs(bias[f]));
    }
    bias_error += std::numeric_limits<float>::min();
    return usable;
}

void ScreenRows::set(const ScreenWeights& weights, const float* centred, size_t rows, Isa isa, float* scratch) {
    const size_t width = weights.mixing.width();
    for (size_t r = 0; r < rows; ++r) {
        info[r] = round8(centred + r * weights.D, weights.D, weights.mixing, tiles_for(isa).x, isa, scratch, &q[r * width]);
        by_rest[r] = info[r].norm * ABOVE;
        by_norm[r] = (info[r].rest + slack(weights.D) * (info[r].norm + info[r].rest)) * ABOVE;
    }
}

void screen(const ScreenWeights& weights, const ScreenRows& x, size_t rows, size_t first, size_t end, Isa isa,
            float* out, size_t stride) {
    const size_t width = weights.mixing.width();
    const Tiles& tiles = tiles_for(isa);
    for (size_t latent = first * PANEL; latent < end * PANEL; latent += tiles.columns) {
        const size_t p = latent / PANEL;
        for (size_t row = 0; row < rows; row += tiles.rows) {
            const size_t n = std::min(tiles.rows, rows - row);
            const int8_t* q[MOST_ROWS];
            int32_t starts[MOST_ROWS];
            float steps[MOST_ROWS], *to[MOST_ROWS];
            for (size_t r = 0; r < n; ++r) {
                q[r] = &x.q[(row + r) * width];
                starts[r] = -tiles.offset * x.info[row + r].sum;
                steps[r] = x.info[row + r].step;
                to[r] = out + (row + r) * stride + latent - first * PANEL;
            }
            tiles.run[n - 1]({q, starts, steps, to}, width, &weights.packed[p * PANEL * width], latent % PANEL,
                             &weights.step[latent], &weights.bias[latent]);
        }
    }
}

}  // namespace saefast
