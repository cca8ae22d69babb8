// One binary for every x86-64 processor (and others): a loop is written once with `Vec` and inlined into one function
// per instruction set, of which the fastest that the machine has is chosen at run time.
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
// NAME(ARGUMENTS) inlined into it. `SAEFAST_PICK(NAME, isa)` is the one for an instruction set.
#define SAEFAST_UNPACK(...) __VA_ARGS__
#define SAEFAST_DISPATCH_ONE(ATTRIBUTE, SUFFIX, RETURN, NAME, PARAMETERS, ARGUMENTS) \
    ATTRIBUTE RETURN NAME##_##SUFFIX(SAEFAST_UNPACK PARAMETERS) { return NAME(SAEFAST_UNPACK ARGUMENTS); }
#ifdef SAEFAST_X86
#define SAEFAST_DISPATCH(RETURN, NAME, PARAMETERS, ARGUMENTS)                              \
    SAEFAST_DISPATCH_ONE(SAEFAST_AVX512, avx512, RETURN, NAME, PARAMETERS, ARGUMENTS)      \
    SAEFAST_DISPATCH_ONE(SAEFAST_AVX2, avx2, RETURN, NAME, PARAMETERS, ARGUMENTS)          \
    SAEFAST_DISPATCH_ONE(, plain, RETURN, NAME, PARAMETERS, ARGUMENTS)
#define SAEFAST_PICK(NAME, ISA) ::saefast::pick(ISA, &NAME##_avx512, &NAME##_avx2, &NAME##_plain)
#else
#define SAEFAST_DISPATCH(RETURN, NAME, PARAMETERS, ARGUMENTS) \
    SAEFAST_DISPATCH_ONE(, plain, RETURN, NAME, PARAMETERS, ARGUMENTS)
#define SAEFAST_PICK(NAME, ISA) (&NAME##_plain)
#endif

// Sixteen floats: one register of AVX-512, two of AVX2, four of SSE or NEON.
constexpr std::size_t LANES = 16;
typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef float UnalignedVec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));


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
}  // namespace saefast
