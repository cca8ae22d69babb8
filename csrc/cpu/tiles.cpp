#include "tiles.h"

#include <algorithm>

namespace saefast {
namespace {

using std::int32_t;
using std::int8_t;
using std::size_t;
using std::uint8_t;

constexpr size_t ROWS = 6;

// The specification of a tile; every other gives the same sums of integers.
void tile(size_t n, const TileRows& x, size_t width, const uint8_t* packed, const float* w_step, const float* bias) {
    for (size_t r = 0; r < n; ++r) {
        int32_t sums[PANEL];
        std::fill(sums, sums + PANEL, x.starts[r]);
        for (size_t d = 0; d < width; d += 4) {
            for (size_t j = 0; j < PANEL; ++j) {
                for (size_t i = 0; i < 4; ++i) sums[j] += packed[d * PANEL + j * 4 + i] * x.q[r][d + i];
            }
        }
        for (size_t j = 0; j < PANEL; ++j) {
            x.out[r][j] = x.steps[r] * (w_step[j] * static_cast<float>(sums[j])) + bias[j];
        }
    }
}

template <size_t N>
void run(const TileRows& x, size_t width, const uint8_t* packed, size_t, const float* w_step, const float* bias) {
    tile(N, x, width, packed, w_step, bias);
}

constexpr void (*RUN[])(const TileRows&, size_t, const uint8_t*, size_t, const float*, const float*) = {
    run<1>, run<2>, run<3>, run<4>, run<5>, run<ROWS>};
constexpr Tiles PLAIN{{127}, {127}, 128, ROWS, PANEL, pack_quads, RUN};

}  // namespace

void pack_quads(const int8_t* rows, size_t width, int32_t offset, uint8_t* packed) {
    for (size_t d = 0; d < width; d += 4) {
        for (size_t j = 0; j < PANEL; ++j) {
            for (size_t i = 0; i < 4; ++i) {
                packed[d * PANEL + 4 * j + i] = static_cast<uint8_t>(rows[j * width + d + i] + offset);
            }
        }
    }
}

const Tiles& tiles_for([[maybe_unused]] Isa isa) {
#ifdef SAEFAST_X86
    if (isa != Isa::plain) return tiles_x86(isa);
#elif defined(SAEFAST_ARM)
    if (isa != Isa::plain) return tiles_arm(isa);
#endif
    return PLAIN;
}

}  // namespace saefast
