// One binary for every x86-64 processor (and others): a loop is written once, for any type V of vectors where it needs
// one, and inlined into one function per instruction set, of which the fastest that the machine has is chosen at run time.
#pragma once

#include <cstddef>
#include <vector>

#if defined(__x86_64__)
#define SAEFAST_X86 1
#define SAEFAST_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")))
#define SAEFAST_VNNI \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,prefer-vector-width=512")))
#define SAEFAST_AVX2 __attribute__((target("avx2,fma")))
#endif
#define SAEFAST_INLINE inline __attribute__((always_inline))

namespace saefast {

// vnni is avx512 with products of bytes, which only screen.cpp has a use for.
enum class Isa { vnni, avx512, avx2, plain };

// What this machine can run, the fastest first.
inline std::vector<Isa> supported_isas() {
    std::vector<Isa> isas;
#ifdef SAEFAST_X86
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        if (__builtin_cpu_supports("avx512vnni")) isas.push_back(Isa::vnni);
        isas.push_back(Isa::avx512);
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) isas.push_back(Isa::avx2);
#endif
    isas.push_back(Isa::plain);
    return isas;
}

// The function for `isa` among those that SAEFAST_DISPATCH made.
template <typename Function>
Function* pick(Isa isa, Function* avx512, Function* avx2, Function* plain) {
    return isa == Isa::vnni || isa == Isa::avx512 ? avx512 : isa == Isa::avx2 ? avx2 : plain;
}

// Defines NAME_plain, NAME_avx512 and NAME_avx2 with the signature RETURN(PARAMETERS), each of which calls
// NAME(ARGUMENTS) inlined into it, or NAME<V>(ARGUMENTS) with its own type of vectors. `SAEFAST_PICK(NAME, isa)` is the
// one for an instruction set.
#define SAEFAST_UNPACK(...) __VA_ARGS__
#define SAEFAST_DISPATCH_ONE(ATTRIBUTE, SUFFIX, RETURN, NAME, CALLED, PARAMETERS, ARGUMENTS) \
    ATTRIBUTE RETURN NAME##_##SUFFIX(SAEFAST_UNPACK PARAMETERS) { return CALLED(SAEFAST_UNPACK ARGUMENTS); }
#ifdef SAEFAST_X86
#define SAEFAST_DISPATCH_AS(RETURN, NAME, AVX512, AVX2, PLAIN, PARAMETERS, ARGUMENTS)              \
    SAEFAST_DISPATCH_ONE(SAEFAST_AVX512, avx512, RETURN, NAME, AVX512, PARAMETERS, ARGUMENTS)      \
    SAEFAST_DISPATCH_ONE(SAEFAST_AVX2, avx2, RETURN, NAME, AVX2, PARAMETERS, ARGUMENTS)            \
    SAEFAST_DISPATCH_ONE(, plain, RETURN, NAME, PLAIN, PARAMETERS, ARGUMENTS)
#define SAEFAST_PICK(NAME, ISA) ::saefast::pick(ISA, &NAME##_avx512, &NAME##_avx2, &NAME##_plain)
#else
#define SAEFAST_DISPATCH_AS(RETURN, NAME, AVX512, AVX2, PLAIN, PARAMETERS, ARGUMENTS) \
    SAEFAST_DISPATCH_ONE(, plain, RETURN, NAME, PLAIN, PARAMETERS, ARGUMENTS)
#define SAEFAST_PICK(NAME, ISA) (&NAME##_plain)
#endif
#define SAEFAST_DISPATCH(RETURN, NAME, PARAMETERS, ARGUMENTS) \
    SAEFAST_DISPATCH_AS(RETURN, NAME, NAME, NAME, NAME, PARAMETERS, ARGUMENTS)
#define SAEFAST_DISPATCH_V(RETURN, NAME, PARAMETERS, ARGUMENTS)                                            \
    SAEFAST_DISPATCH_AS(RETURN, NAME, NAME<Floats<64>>, NAME<Floats<32>>, NAME<Floats<16>>, PARAMETERS, ARGUMENTS)

// Sixteen floats: one register of AVX-512, two of AVX2, four of SSE or NEON.
constexpr std::size_t LANES = 16;
typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef float UnalignedVec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));


// Sixteen floats in registers of BYTES: one of AVX-512, two of AVX2, four of SSE or NEON. Lane by lane the same as Vec,
// which gcc keeps in memory, not in registers, where no register holds all of it: up to 7 times as slow.
template <std::size_t BYTES>
struct Floats {
    typedef float Register __attribute__((vector_size(BYTES)));
    typedef float Unaligned __attribute__((vector_size(BYTES), aligned(4), may_alias));
    static constexpr std::size_t EACH = BYTES / 4, N = LANES / EACH;

    Register parts[N];

    static SAEFAST_INLINE Floats load(const float* from) {
        Floats v;
#pragma GCC unroll 4
        for (std::size_t i = 0; i < N; ++i) v.parts[i] = *reinterpret_cast<const Unaligned*>(from + i * EACH);
        return v;
    }
    SAEFAST_INLINE void store(float* to) const {
#pragma GCC unroll 4
        for (std::size_t i = 0; i < N; ++i) *reinterpret_cast<Unaligned*>(to + i * EACH) = parts[i];
    }
    // this += a * b
    SAEFAST_INLINE void add(const Floats& a, const Floats& b) {
#pragma GCC unroll 4
        for (std::size_t i = 0; i < N; ++i) parts[i] += a.parts[i] * b.parts[i];
    }
    SAEFAST_INLINE void add(float a, const Floats& b) {
#pragma GCC unroll 4
        for (std::size_t i = 0; i < N; ++i) parts[i] += a * b.parts[i];
    }
    SAEFAST_INLINE void operator+=(const Floats& b) {
#pragma GCC unroll 4
        for (std::size_t i = 0; i < N; ++i) parts[i] += b.parts[i];
    }
    SAEFAST_INLINE Floats operator-(const Floats& b) const {
        Floats v;
#pragma GCC unroll 4
        for (std::size_t i = 0; i < N; ++i) v.parts[i] = parts[i] - b.parts[i];
        return v;
    }
};

SAEFAST_INLINE Vec load(const float* from) { return *reinterpret_cast<const UnalignedVec*>(from); }
SAEFAST_INLINE void store(float* to, Vec value) { *reinterpret_cast<UnalignedVec*>(to) = value; }

// The sum of the lanes, always in the same order.
SAEFAST_INLINE float sum(Vec v) {
    float s[LANES];
    __builtin_memcpy(s, &v, sizeof s);
    for (std::size_t half = LANES / 2; half > 0; half /= 2) {
        for (std::size_t i = 0; i < half; ++i) s[i] += s[i + half];
    }
    return s[0];
}

template <std::size_t BYTES>
SAEFAST_INLINE float sum(const Floats<BYTES>& v) {
    float s[LANES];
    v.store(s);
    for (std::size_t half = LANES / 2; half > 0; half /= 2) {
        for (std::size_t i = 0; i < half; ++i) s[i] += s[i + half];
    }
    return s[0];
}
}  // namespace saefast
