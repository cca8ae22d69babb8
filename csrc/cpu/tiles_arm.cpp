// Tiles of 64-bit Arm, by what multiplies bytes there. sdot adds four products to each of four sums, smmla eight to
// each of 2 x 2; both take signed bytes, so `offset` is 0, and neither rounds nor saturates: 127^2 MAX_D < 2^31.
//
// A tile of 6 x 16 keeps 24 of 32 registers for sums. For 16 columns of d_in, which are 1536 products, its loop executes
//     dotprod  96 sdot,  14 loads, 4 others:          13.5 products in an instruction
//     i8mm     48 smmla, 14 loads, 6 zips, 4 others:  21.3
// and spills nothing (tests/native/test_arm.py). By Arm's optimisation guides Neoverse N1 and N2 begin 2 vector
// instructions in a cycle, V1 and V2 4. So sdot gives at most 32 and 64 products in a cycle, smmla 57 on N2 and 114 on V1
// and V2, where fmla in fp32 gives 8 and 16. This is a model: the tiles ran in an emulator only, their speed is not measured.

#include "tiles.h"

#ifdef SAEFAST_ARM
#include <arm_neon.h>

#include <algorithm>
#include <cstring>

namespace saefast {
namespace {

using std::int32_t;
using std::int8_t;
using std::size_t;
using std::uint8_t;

constexpr size_t ROWS = 6, COLUMNS = 16;
constexpr size_t QUARTERS = COLUMNS / 4;  // registers of sums for a row
constexpr size_t BLOCK = 16 * COLUMNS;    // bytes of weights for 16 columns of d_in

// PANEL latents in blocks of COLUMNS, each packed [width / BYTES, COLUMNS, BYTES].
template <size_t BYTES>
void pack(const int8_t* rows, size_t width, int32_t, uint8_t* packed) {
    for (size_t first = 0; first < PANEL; first += COLUMNS) {
        for (size_t d = 0; d < width; d += BYTES) {
            for (size_t j = 0; j < COLUMNS; ++j, packed += BYTES) {
                std::memcpy(packed, rows + (first + j) * width + d, BYTES);
            }
        }
    }
}

// The instructions stand here by their names, and in this order: else gcc 12 loads the weights of a whole step ahead, and
// has no registers for the sums.
template <size_t OFFSET>
SAEFAST_INLINE void load_pair(const uint8_t* from, int8x16_t& a, int8x16_t& b) {
    asm volatile("ldp %q0, %q1, [%2, %c3]"
                 : "=w"(a), "=w"(b)
                 : "r"(from), "i"(OFFSET), "m"(*reinterpret_cast<const uint8_t(*)[BLOCK]>(from)));
}

// Writes what a row's sums stand for.
SAEFAST_INLINE void write(const int32x4_t* sums, float step, const float* w_step, const float* bias, float* out) {
#pragma GCC unroll 4
    for (size_t c = 0; c < QUARTERS; ++c) {
        const float32x4_t value = vmulq_f32(vcvtq_f32_s32(sums[c]), vld1q_f32(w_step + 4 * c));
        vst1q_f32(out + 4 * c, vfmaq_n_f32(vld1q_f32(bias + 4 * c), value, step));
    }
}

// The bytes 4 QUAD to 4 QUAD + 3 of each row with those of the latents 4 C to 4 C + 7.
template <size_t QUAD, size_t C, size_t N>
SAEFAST_DOTPROD SAEFAST_INLINE void add_quads(const uint8_t* w, const int8x16_t (&x)[N],
                                              int32x4_t (&sums)[N][QUARTERS]) {
    int8x16_t left, right;
    load_pair<4 * COLUMNS * QUAD + 16 * C>(w, left, right);
#pragma GCC unroll 6
    for (size_t r = 0; r < N; ++r) {
        asm volatile("sdot %0.4s, %1.16b, %2.4b[%c3]" : "+w"(sums[r][C]) : "w"(left), "w"(x[r]), "i"(QUAD));
        asm volatile("sdot %0.4s, %1.16b, %2.4b[%c3]" : "+w"(sums[r][C + 1]) : "w"(right), "w"(x[r]), "i"(QUAD));
    }
}

template <size_t N>
SAEFAST_DOTPROD void dotprod(const TileRows& rows, size_t width, const uint8_t* packed, size_t first,
                             const float* w_step, const float* bias) {
    const int8_t* q[N];
    std::copy(rows.q, rows.q + N, q);
    int32x4_t sums[N][QUARTERS] = {};
    const uint8_t* w = packed + first * width;
    for (size_t d = 0; d < width; d += 16, w += BLOCK) {
        int8x16_t x[N];
#pragma GCC unroll 6
        for (size_t r = 0; r < N; ++r) x[r] = vld1q_s8(q[r] + d);
        add_quads<0, 0>(w, x, sums), add_quads<0, 2>(w, x, sums);
        add_quads<1, 0>(w, x, sums), add_quads<1, 2>(w, x, sums);
        add_quads<2, 0>(w, x, sums), add_quads<2, 2>(w, x, sums);
        add_quads<3, 0>(w, x, sums), add_quads<3, 2>(w, x, sums);
    }
#pragma GCC unroll 6
    for (size_t r = 0; r < N; ++r) write(sums[r], rows.steps[r], w_step, bias, rows.out[r]);
}

// The bytes 8 HALF to 8 HALF + 7 of each pair of rows with those of the latents 2 C to 2 C + 3.
template <size_t HALF, size_t C, size_t PAIRS>
SAEFAST_I8MM SAEFAST_INLINE void add_squares(const uint8_t* w, const int8x16_t (&x)[2][PAIRS],
                                             int32x4_t (&sums)[PAIRS][COLUMNS / 2]) {
    int8x16_t left, right;
    load_pair<8 * COLUMNS * HALF + 16 * C>(w, left, right);
#pragma GCC unroll 3
    for (size_t p = 0; p < PAIRS; ++p) {
        asm volatile("smmla %0.4s, %1.16b, %2.16b" : "+w"(sums[p][C]) : "w"(x[HALF][p]), "w"(left));
        asm volatile("smmla %0.4s, %1.16b, %2.16b" : "+w"(sums[p][C + 1]) : "w"(x[HALF][p]), "w"(right));
    }
}

template <size_t N>
SAEFAST_I8MM void i8mm(const TileRows& rows, size_t width, const uint8_t* packed, size_t first,
                       const float* w_step, const float* bias) {
    constexpr size_t PAIRS = (N + 1) / 2;
    const int8_t* q[2 * PAIRS];
    std::copy(rows.q, rows.q + N, q);
    if (N % 2) q[2 * PAIRS - 1] = q[N - 1];  // twice
    int32x4_t sums[PAIRS][COLUMNS / 2] = {};  // of rows 2p, 2p, 2p + 1, 2p + 1 and latents 2c, 2c + 1, 2c, 2c + 1
    const uint8_t* w = packed + first * width;
    for (size_t d = 0; d < width; d += 16, w += BLOCK) {
        int8x16_t x[2][PAIRS];
#pragma GCC unroll 3
        for (size_t p = 0; p < PAIRS; ++p) {
            const int64x2_t one = vreinterpretq_s64_s8(vld1q_s8(q[2 * p] + d));
            const int64x2_t two = vreinterpretq_s64_s8(vld1q_s8(q[2 * p + 1] + d));
            x[0][p] = vreinterpretq_s8_s64(vzip1q_s64(one, two));
            x[1][p] = vreinterpretq_s8_s64(vzip2q_s64(one, two));
        }
        add_squares<0, 0>(w, x, sums), add_squares<0, 2>(w, x, sums);
        add_squares<0, 4>(w, x, sums), add_squares<0, 6>(w, x, sums);
        add_squares<1, 0>(w, x, sums), add_squares<1, 2>(w, x, sums);
        add_squares<1, 4>(w, x, sums), add_squares<1, 6>(w, x, sums);
    }
#pragma GCC unroll 6
    for (size_t r = 0; r < N; ++r) {
        int32x4_t row[QUARTERS];
#pragma GCC unroll 4
        for (size_t c = 0; c < QUARTERS; ++c) {
            const int64x2_t left = vreinterpretq_s64_s32(sums[r / 2][2 * c]);
            const int64x2_t right = vreinterpretq_s64_s32(sums[r / 2][2 * c + 1]);
            row[c] = vreinterpretq_s32_s64(r % 2 ? vzip2q_s64(left, right) : vzip1q_s64(left, right));
        }
        write(row, rows.steps[r], w_step, bias, rows.out[r]);
    }
}

constexpr void (*DOTPROD_RUN[])(const TileRows&, size_t, const uint8_t*, size_t, const float*, const float*) = {
    dotprod<1>, dotprod<2>, dotprod<3>, dotprod<4>, dotprod<5>, dotprod<ROWS>};
constexpr void (*I8MM_RUN[])(const TileRows&, size_t, const uint8_t*, size_t, const float*, const float*) = {
    i8mm<1>, i8mm<2>, i8mm<3>, i8mm<4>, i8mm<5>, i8mm<ROWS>};
constexpr Tiles DOTPROD{{127}, {127}, 0, ROWS, COLUMNS, pack<4>, DOTPROD_RUN};
constexpr Tiles I8MM{{127}, {127}, 0, ROWS, COLUMNS, pack<8>, I8MM_RUN};

}  // namespace

const Tiles& tiles_arm(Isa isa) { return isa == Isa::i8mm ? I8MM : DOTPROD; }

}  // namespace saefast
#endif
