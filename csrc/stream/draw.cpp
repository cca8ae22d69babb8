#include "draw.h"

#include <algorithm>

#if defined(__x86_64__) && defined(__GNUC__)
#define SAEFAST_X86 1
#endif
#ifdef __GNUC__
#define SAEFAST_INLINE inline __attribute__((always_inline))
#else
#define SAEFAST_INLINE inline
#endif

namespace saefast::stream {

using std::uint32_t;
using std::uint64_t;

namespace {

// half plus a hash of `other` and the key, modulo m < 2^31.
SAEFAST_INLINE uint32_t turned(uint32_t half, uint32_t other, uint32_t key, uint32_t m) {
    uint32_t h = other ^ key;
    h = (h ^ (h >> 16)) * 0x21F0AAADu;
    h = (h ^ (h >> 15)) * 0x735A2D97u;
    half += static_cast<uint32_t>((uint64_t{h ^ (h >> 15)} * m) >> 32);
    return std::min(half, half - m);  // the smaller one is below m, because the difference wraps around
}

}  // namespace

Draw::Draw(uint64_t seed, uint64_t batch, uint64_t held) : held_(held) {
    auto rows = static_cast<uint64_t>(std::sqrt(static_cast<double>(held)));
    while (rows * rows < held) ++rows;
    while (rows > 1 && (rows - 1) * (rows - 1) >= held) --rows;
    rows_ = static_cast<uint32_t>(rows), columns_ = static_cast<uint32_t>((held + rows - 1) / rows);
    const uint64_t base = mix64(mix64(seed) + batch * GOLDEN);
    for (int r = 0; r < ROUNDS; ++r) {
        keys_[r] = static_cast<uint32_t>(mix64(base + static_cast<uint64_t>(r + 1) * GOLDEN) >> 32);
    }
}

uint64_t Draw::once(uint64_t i) const {
    auto row = static_cast<uint32_t>(i / columns_), column = static_cast<uint32_t>(i % columns_);
    for (int r = 0; r < ROUNDS; r += 2) {
        row = turned(row, column, keys_[r], rows_);
        column = turned(column, row, keys_[r + 1], columns_);
    }
    return uint64_t{row} * columns_ + column;
}

// A loop that compilers vectorise.
#define SAEFAST_PERMUTE                                                                                        \
    for (int r = 0; r < ROUNDS; r += 2) {                                                                      \
        for (int i = 0; i < LANES; ++i) rows[i] = turned(rows[i], columns[i], keys_[r], rows_);                \
        for (int i = 0; i < LANES; ++i) columns[i] = turned(columns[i], rows[i], keys_[r + 1], columns_);      \
    }
void Draw::permute_plain(uint32_t* __restrict rows, uint32_t* __restrict columns) const { SAEFAST_PERMUTE }
#ifdef SAEFAST_X86
__attribute__((target("avx2")))
void Draw::permute_avx2(uint32_t* __restrict rows, uint32_t* __restrict columns) const { SAEFAST_PERMUTE }
#endif

std::vector<uint64_t> Draw::operator()(uint64_t n, bool plain) const {
    auto permute = &Draw::permute_plain;
#ifdef SAEFAST_X86
    if (!plain && __builtin_cpu_supports("avx2")) permute = &Draw::permute_avx2;
#else
    static_cast<void>(plain);
#endif
    std::vector<uint64_t> out(n);
    uint32_t row = 0, column = 0;
    for (uint64_t begin = 0; begin < n; begin += LANES) {
        uint32_t rows[LANES], columns[LANES];
        for (int i = 0; i < LANES; ++i) {
            rows[i] = row, columns[i] = column;
            if (++column == columns_) ++row, column = 0;
        }
        (this->*permute)(rows, columns);
        for (uint64_t i = 0; i < std::min<uint64_t>(LANES, n - begin); ++i) {
            uint64_t place = uint64_t{rows[i]} * columns_ + columns[i];
            while (place >= held_) place = once(place);
            out[begin + i] = place;
        }
    }
    return out;
}

}  // namespace saefast::stream
