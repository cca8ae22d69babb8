// Approximate pre-activations from products of bytes (tiles.h), a fraction of the work of fp32, each with a bound of its error.
//
// For rows x and w, mixed and rounded (round8.h) to x = x' + dx and w = w' + dw,
//     |<x, w> - <x', w'>| = |<dx, w> + <x', dw>| <= ||dx|| ||w|| + ||x'|| ||dw||      (Cauchy-Schwarz)
// and what fp32 adds, here and in the product that this one stands for, is at most `slack` ||x|| ||w|| (screen.cpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "isa.h"
#include "round8.h"
#include "tiles.h"

namespace saefast {

// A panel that a thread is rounding.
struct RoundedPanel {
    std::vector<float> scratch;
    std::vector<std::int8_t> q;  // [PANEL, width]
    bool usable;
};

// W_enc and b_enc, rounded. Beyond F latents up to a whole panel there are zeros. Panels stay rounded from call to call:
// each has the hash of the rows that it was made of, and is made anew if that of its rows is another, whoever wrote them.
class ScreenWeights {
public:
    explicit ScreenWeights(Isa isa) : isa_(isa) {}

    // Returns false if some number is NaN, Inf or huge: nothing can be said then.
    bool set(const float* W_enc, const float* b_enc, std::size_t F, std::size_t D, int threads);

    // Whether the last `set` was for this W_enc: then whoever writes its rows may round them while they are in cache,
    // panel by panel: the rows in their order, then the whole.
    bool rounds(const float* W_enc, std::size_t F, std::size_t D) const;
    void round_row(std::size_t f, const float* W_enc, RoundedPanel& panel);
    void finish(std::size_t p, const float* W_enc, RoundedPanel& panel);

    Isa isa() const { return isa_; }
    std::size_t rounded() const { return rounded_; }  // panels that the last `set` had to round

    Mixing mixing{1};
    std::size_t F = 0, D = 0;
    std::vector<std::uint8_t> packed;          // [panels], as `Tiles::pack` has them
    std::vector<float> step, bias, norm, rest;  // [panels * PANEL]; norm >= ||w||
    float mean_norm = 0, mean_rest = 0, bias_error = 0;

private:
    struct Panel {
        std::uint64_t hash;
        bool known, usable;
    };
    std::uint64_t hash(std::size_t p, const float* W_enc) const;
    void pack(std::size_t p, std::uint64_t hash, RoundedPanel& panel);

    Isa isa_;
    const float* source_ = nullptr;
    std::vector<Panel> panels_;
    std::size_t rounded_ = 0;
};

// A few rows of x.
struct ScreenRows {
    ScreenRows(std::size_t rows, std::size_t width) : q(rows * width), info(rows), by_norm(rows), by_rest(rows) {}

    void set(const ScreenWeights& weights, const float* centred, std::size_t rows, Isa isa, float* scratch);

    std::vector<std::int8_t> q;  // [rows, width]
    std::vector<Rounded> info;
    std::vector<float> by_norm, by_rest;  // error <= by_norm * weights.norm + by_rest * weights.rest + bias_error
};

// Approximate pre-activations of `rows` rows and the latents of panels [first, end): out [rows, stride].
void screen(const ScreenWeights& weights, const ScreenRows& x, std::size_t rows, std::size_t first, std::size_t end,
            Isa isa, float* out, std::size_t stride);

}  // namespace saefast
