#include "hash.h"

#include <cstring>

namespace saefast {
namespace {

using std::size_t;
using std::uint32_t;
using std::uint64_t;

constexpr uint32_t ODD[2] = {0x9E3779B1u, 0x85EBCA77u};  // primes of xxHash
constexpr int ROTATION[2] = {13, 19};

// A chain in each of 16 lanes, in registers of V's size.
template <typename V>
struct Chains {
    typedef uint32_t Register __attribute__((vector_size(sizeof(typename V::Register))));
    Register chains[2][V::N];

    SAEFAST_INLINE void take_in(const float* sixteen) {
#pragma GCC unroll 4
        for (size_t i = 0; i < V::N; ++i) {
            Register bits;
            std::memcpy(&bits, sixteen + i * V::EACH, sizeof bits);
#pragma GCC unroll 2
            for (size_t c = 0; c < 2; ++c) {
                const Register mixed = (chains[c][i] ^ bits) * ODD[c];
                chains[c][i] = mixed << ROTATION[c] | mixed >> (32 - ROTATION[c]);
            }
        }
    }
};

template <typename V>
SAEFAST_INLINE uint64_t hash(const float* rows, size_t n, size_t D) {
    Chains<V> lanes{};
    for (size_t r = 0; r < n; ++r, rows += D) {
        size_t d = 0;
        for (; d + LANES <= D; d += LANES) lanes.take_in(rows + d);
        if (d == D) continue;
        float last[LANES] = {};
        std::memcpy(last, rows + d, (D - d) * sizeof(float));
        lanes.take_in(last);
    }
    uint32_t words[2 * LANES];
    std::memcpy(words, lanes.chains, sizeof words);
    uint64_t whole = 0;
    for (size_t i = 0; i < LANES; ++i) {  // a bijection of `whole` and of both words again
        whole = (whole ^ (static_cast<uint64_t>(words[i]) << 32 | words[LANES + i])) * 0x9FB21C651E98DF25u;
        whole ^= whole >> 29;
    }
    return whole;
}
SAEFAST_DISPATCH_V(uint64_t, hash, (const float* rows, size_t n, size_t D), (rows, n, D))

}  // namespace

uint64_t hash_rows(const float* rows, size_t n, size_t D, Isa isa) { return SAEFAST_PICK(hash, isa)(rows, n, D); }

}  // namespace saefast
