// One batch out of the shuffle buffer on the device: its rows leave, and others come to their places. What a thread
// of the kernel does, as code that also runs on the host, where it is tested.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_fp16.h>
#define SAEFAST_BOTH __host__ __device__ inline
#else
#define SAEFAST_BOTH inline
#endif

namespace saefast::cuda {

enum class Number { f16, bf16, f32 };

constexpr std::int32_t COMES = -1, NOTHING = -2;  // what comes to a place: row i of those that come; no row

struct Take {
    std::uint8_t* places;        // [capacity, d_in] row_type
    const std::uint8_t* coming;  // [up to n, d_in] row_type
    const std::int32_t* holes;   // [n] places whose rows make up the batch
    const std::int32_t* sources;  // [n] what comes there: COMES, NOTHING, or the place whose row moves there
    const float* b_dec;          // [d_in] subtracted in fp32, or null
    std::uint8_t* out;           // [n, d_in] out_type
    std::uint64_t n, d_in;
    Number row_type, out_type;
};

// The numbers as fp32 and, rounded to the nearest even, back. Rows are finite.
struct F32 {
    float bits;
    SAEFAST_BOTH float get() const { return bits; }
    SAEFAST_BOTH static F32 of(float value) { return {value}; }
};

SAEFAST_BOTH std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

SAEFAST_BOTH float float_of(std::uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

struct BF16 {
    std::uint16_t bits;
    SAEFAST_BOTH float get() const { return float_of(std::uint32_t{bits} << 16); }
    SAEFAST_BOTH static BF16 of(float value) {
        const std::uint32_t all = bits_of(value);
        return {static_cast<std::uint16_t>((all + 0x7FFF + (all >> 16 & 1)) >> 16)};
    }
};

struct F16 {
    std::uint16_t bits;
#ifdef __CUDA_ARCH__
    __device__ float get() const { return __half2float(__ushort_as_half(bits)); }
    __device__ static F16 of(float value) { return {__half_as_ushort(__float2half_rn(value))}; }
#else
    SAEFAST_BOTH float get() const {
        const std::uint32_t sign = std::uint32_t{bits} >> 15 << 31, exponent = bits >> 10 & 31, fraction = bits & 1023;
        if (exponent == 0) {  // zero or subnormal: fraction * 2^-24 is exact
            return float_of(sign | bits_of(static_cast<float>(fraction) * 5.9604644775390625e-8f));
        }
        return float_of(sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13);
    }
    SAEFAST_BOTH static F16 of(float value) {
        const std::uint32_t all = bits_of(value), sign = all >> 31 << 15, size = all & 0x7FFFFFFF;
        std::uint32_t half;
        if (size >= 0x477FF000) {  // 65520 and more round to infinity
            half = 0x7C00;
        } else if (size < 0x38800000) {  // below 2^-14: adding 0.5 rounds to multiples of 2^-24
            half = bits_of(float_of(size) + 0.5f) - 0x3F000000;
        } else {
            half = (size - 0x38000000 + 0xFFF + (size >> 13 & 1)) >> 13;
        }
        return {static_cast<std::uint16_t>(sign | half)};
    }
#endif
};

// N numbers that are read or written at once; with N = 8 in 16-byte pieces.
template <typename T, int N>
struct alignas(N == 8 ? 16 : sizeof(T)) Pack {
    T numbers[N];
};

// Piece `piece` of N numbers of row i. Holes are all different, and the places that rows move from are none of
// them, so no two calls meet in memory.
template <typename Row, typename Out, int N>
SAEFAST_BOTH void take_piece(const Take& take, std::uint64_t i, std::uint64_t piece) {
    using In = Pack<Row, N>;
    const std::uint64_t pieces = take.d_in / N;
    In* places = reinterpret_cast<In*>(take.places);
    In& place = places[static_cast<std::uint64_t>(take.holes[i]) * pieces + piece];
    const std::int32_t source = take.sources[i];
    const In row = place;
    if (source == COMES) {
        place = reinterpret_cast<const In*>(take.coming)[i * pieces + piece];
    } else if (source != NOTHING) {
        place = places[static_cast<std::uint64_t>(source) * pieces + piece];
    }
    Pack<Out, N> out;
    for (int j = 0; j < N; ++j) {
        float value = row.numbers[j].get();
        if (take.b_dec) value -= take.b_dec[piece * N + static_cast<std::uint64_t>(j)];
        out.numbers[j] = Out::of(value);
    }
    reinterpret_cast<Pack<Out, N>*>(take.out)[i * pieces + piece] = out;
}

// Calls f.run<Row, Out, N>() for the types of `take` and the widest pieces that its rows and addresses allow.
template <typename Row, typename Out, typename F>
auto with_pieces(const Take& take, const F& f) {
    std::uintptr_t addresses = reinterpret_cast<std::uintptr_t>(take.out) |
                               reinterpret_cast<std::uintptr_t>(take.places) |
                               reinterpret_cast<std::uintptr_t>(take.coming);
    const bool wide = take.d_in % 8 == 0 && addresses % 16 == 0;
    return wide ? f.template run<Row, Out, 8>() : f.template run<Row, Out, 1>();
}

template <typename Row, typename F>
auto with_out(const Take& take, const F& f) {
    if (take.out_type == Number::f16) return with_pieces<Row, F16>(take, f);
    if (take.out_type == Number::bf16) return with_pieces<Row, BF16>(take, f);
    return with_pieces<Row, F32>(take, f);
}

template <typename F>
auto with_types(const Take& take, const F& f) {
    if (take.row_type == Number::f16) return with_out<F16>(take, f);
    if (take.row_type == Number::bf16) return with_out<BF16>(take, f);
    return with_out<F32>(take, f);
}

}  // namespace saefast::cuda
