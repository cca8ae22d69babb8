// The tiles of one instruction set; tiles_x86.cpp includes this once for each, in a namespace of its own, with
//     ATTRIBUTE   of the functions
//     BYTES       in a register
//     COLUMNS     of registers in a tile
//     DOT         the instruction that adds four products of bytes, or nothing where there is none
//
// Without one, vpmaddubsw adds two products in 16 bits. To widen each of these would take as long as to multiply, so what
// QUADS instructions give is added in 16 bits before. Such a sum has eight terms (w + LEVELS) q with |w| <= LEVELS, so its size is at
// most LEVELS times the sum of |q| and the size of the sum of q, which `Levels::sum` bounds for each row as it is rounded
// (round8.h): it fits into 16 bits, whatever the weights, and so does what is added on the way (both numbers are no larger for
// some of the eight, by the triangle inequality). 81 levels of both factors are typical then; to bound every |q| alone would
// leave 45.

typedef int32_t Ints __attribute__((vector_size(BYTES)));
typedef int16_t Shorts __attribute__((vector_size(BYTES)));
typedef float Reals __attribute__((vector_size(BYTES)));
constexpr size_t LATENTS = BYTES / 4;  // in a register, with four bytes each

template <typename To>
ATTRIBUTE inline To loaded(const void* from) {
    To value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

// The instructions stand here by their names: from intrinsics gcc 12 makes copies of the sums, or computes all products
// before it adds the first, and has no registers for them.
template <size_t N>
ATTRIBUTE inline void tile(const TileRows& x, size_t width, const uint8_t* packed, size_t first, const float* w_step,
                           const float* bias) {
    Ints sums[N][COLUMNS];
    packed += 4 * first;
#pragma GCC unroll 8
    for (size_t r = 0; r < N; ++r) {
#pragma GCC unroll 8
        for (size_t c = 0; c < COLUMNS; ++c) sums[r][c] = Ints{} + x.starts[r];
    }
#ifdef DOT
    for (size_t d = 0; d < width; d += 4, packed += 4 * PANEL) {
        Ints w[COLUMNS];
#pragma GCC unroll 8
        for (size_t c = 0; c < COLUMNS; ++c) w[c] = loaded<Ints>(packed + BYTES * c);
#pragma GCC unroll 8
        for (size_t r = 0; r < N; ++r) {
            const Ints four = Ints{} + loaded<int32_t>(x.q[r] + d);
#pragma GCC unroll 8
            for (size_t c = 0; c < COLUMNS; ++c) asm(DOT " %2, %1, %0" : "+v"(sums[r][c]) : "v"(w[c]), "v"(four));
        }
    }
#else
    const Shorts ones = Shorts{} + int16_t{1};
    for (size_t d = 0; d < width; d += 4 * QUADS) {
        Shorts parts[N][COLUMNS];
#pragma GCC unroll 8
        for (size_t s = 0; s < QUADS; ++s, packed += 4 * PANEL) {
            Ints w[COLUMNS];
#pragma GCC unroll 8
            for (size_t c = 0; c < COLUMNS; ++c) w[c] = loaded<Ints>(packed + BYTES * c);
#pragma GCC unroll 8
            for (size_t r = 0; r < N; ++r) {
                const Ints four = Ints{} + loaded<int32_t>(x.q[r] + d + 4 * s);
#pragma GCC unroll 8
                for (size_t c = 0; c < COLUMNS; ++c) {
                    if (s == 0) {
                        asm("vpmaddubsw %2, %1, %0" : "=v"(parts[r][c]) : "v"(w[c]), "v"(four));
                    } else {
                        Shorts two;
                        asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
                            : "+v"(parts[r][c]), "=&v"(two)
                            : "v"(w[c]), "v"(four));
                    }
                }
            }
        }
#pragma GCC unroll 8
        for (size_t r = 0; r < N; ++r) {
#pragma GCC unroll 8
            for (size_t c = 0; c < COLUMNS; ++c) {
                Ints wide;
                asm("vpmaddwd %2, %1, %0" : "=v"(wide) : "v"(parts[r][c]), "v"(ones));
                sums[r][c] += wide;
            }
        }
    }
#endif
#pragma GCC unroll 8
    for (size_t c = 0; c < COLUMNS; ++c) {
        const auto scale = loaded<Reals>(w_step + c * LATENTS), add = loaded<Reals>(bias + c * LATENTS);
#pragma GCC unroll 8
        for (size_t r = 0; r < N; ++r) {
            const Reals value = x.steps[r] * (scale * __builtin_convertvector(sums[r][c], Reals)) + add;
            std::memcpy(x.out[r] + c * LATENTS, &value, sizeof value);
        }
    }
}

constexpr Run RUN[] = {tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<ROWS>};

#undef ATTRIBUTE
#undef BYTES
#undef COLUMNS
#undef DOT
