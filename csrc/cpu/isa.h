// One binary for every x86-64 processor, one for every 64-bit Arm, and so on: a loop is written once, for any type V of
// vectors where it needs one, and inlined into one function per instruction set, of which the fastest that the machine has
// is chosen at run time.
#pragma once

#include <cstddef>
#include <vector>

#include "vec.h"

#if defined(__x86_64__)
#define SAEFAST_X86 1
#define SAEFAST_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")))
#define SAEFAST_VNNI \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,prefer-vector-width=512")))
#define SAEFAST_AVX2 __attribute__((target("avx2,fma")))
#if defined(__clang__) || __GNUC__ >= 11
#define SAEFAST_AVXVNNI 1  // older compilers do not know it
#endif
#elif defined(__aarch64__) && defined(__linux__)  // Apple's processors have a matrix unit, which torch's product uses
#define SAEFAST_ARM 1
#define SAEFAST_DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
#define SAEFAST_I8MM __attribute__((target("arch=armv8.2-a+i8mm")))
#include <sys/auxv.h>
#endif

namespace saefast {

// vnni is avx512, avxvnni is avx2, i8mm and dotprod are plain, with products of bytes, of which only tiles.h makes use.
enum class Isa { vnni, avx512, avxvnni, avx2, i8mm, dotprod, plain };

// What this machine can run, the fastest first.
inline std::vector<Isa> supported_isas() {
    std::vector<Isa> isas;
#ifdef SAEFAST_X86
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        if (__builtin_cpu_supports("avx512vnni")) isas.push_back(Isa::vnni);
        isas.push_back(Isa::avx512);
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
#ifdef SAEFAST_AVXVNNI
        if (__builtin_cpu_supports("avxvnni")) isas.push_back(Isa::avxvnni);
#endif
        isas.push_back(Isa::avx2);
    }
#elif defined(SAEFAST_ARM)
    constexpr unsigned long ASIMDDP = 1ul << 20, I8MM = 1ul << 13;  // of Linux's <asm/hwcap.h>, where it is new enough
    if (getauxval(AT_HWCAP2) & I8MM) isas.push_back(Isa::i8mm);
    if (getauxval(AT_HWCAP) & ASIMDDP) isas.push_back(Isa::dotprod);
#endif
    isas.push_back(Isa::plain);
    return isas;
}

// The function for `isa` among those that SAEFAST_DISPATCH made.
template <typename Function>
Function* pick(Isa isa, Function* avx512, Function* avx2, Function* plain) {
    return isa == Isa::vnni || isa == Isa::avx512 ? avx512 : isa == Isa::avxvnni || isa == Isa::avx2 ? avx2 : plain;
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
#define SAEFAST_PICK(NAME, ISA) (static_cast<void>(ISA), &NAME##_plain)
#endif
#define SAEFAST_DISPATCH(RETURN, NAME, PARAMETERS, ARGUMENTS) \
    SAEFAST_DISPATCH_AS(RETURN, NAME, NAME, NAME, NAME, PARAMETERS, ARGUMENTS)
#define SAEFAST_DISPATCH_V(RETURN, NAME, PARAMETERS, ARGUMENTS)                                            \
    SAEFAST_DISPATCH_AS(RETURN, NAME, NAME<Floats<64>>, NAME<Floats<32>>, NAME<Floats<16>>, PARAMETERS, ARGUMENTS)

}  // namespace saefast
