// The inner product of the screen, for each instruction set: a few rows of bytes with a few latents at a time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"
#include "round8.h"

namespace saefast {

constexpr std::size_t PANEL = 64;     // latents that are packed together
constexpr std::size_t MOST_ROWS = 8;  // of a tile

// Rows q and where they go, of which a tile takes a few: pre-activations steps[r] * w_step * <q[r], w> + bias.
struct TileRows {
    const std::int8_t* const* q;  // [rows][width]
    const std::int32_t* starts;   // of the sums: less `offset` for each unit of q
    const float* steps;
    float* const* out;            // [rows][columns]
};

struct Tiles {
    Levels x, w;          // what rows and weights may be rounded to
    std::int32_t offset;  // stored weights are this much more: the instructions take one factor without a sign
    std::size_t rows, columns;  // of a tile: up to so many rows, this many latents, which divide PANEL

    // [PANEL, width] -> packed [width / 4, PANEL, 4], or as `run` reads it
    void (*pack)(const std::int8_t* rows, std::size_t width, std::int32_t offset, std::uint8_t* packed);
    // run[n - 1]: n rows with the latents from `first` of a panel
    void (*const* run)(const TileRows& rows, std::size_t width, const std::uint8_t* packed, std::size_t first,
                       const float* w_step, const float* bias);
};

const Tiles& tiles_for(Isa isa);

// For `tiles_for`: those of tiles_x86.cpp, which all pack as the plain ones do, and of tiles_arm.cpp.
void pack_quads(const std::int8_t* rows, std::size_t width, std::int32_t offset, std::uint8_t* packed);
const Tiles& tiles_x86(Isa isa);
const Tiles& tiles_arm(Isa isa);

}  // namespace saefast
