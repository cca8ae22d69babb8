// Which places of the shuffle buffer a batch takes. The specification is `saefast.buffer.draw`: the same bits.
#pragma once

#include <cmath>
#include <cstdint>

namespace saefast::stream {

inline std::uint64_t mix64(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

// A permutation of [0, held): a Feistel network over a grid of rows x columns >= held places, walked on
// until it lands below held.
class Draw {
  public:
    Draw(std::uint64_t seed, std::uint64_t batch, std::uint64_t held) : held_(held) {
        rows_ = static_cast<std::uint64_t>(std::sqrt(static_cast<double>(held)));
        while (rows_ * rows_ < held) ++rows_;
        while (rows_ > 1 && (rows_ - 1) * (rows_ - 1) >= held) --rows_;
        columns_ = (held + rows_ - 1) / rows_;
        const std::uint64_t base = mix64(mix64(seed) + batch * GOLDEN);
        for (int r = 0; r < ROUNDS; ++r) {
            keys_[r] = static_cast<std::uint32_t>(mix64(base + static_cast<std::uint64_t>(r + 1) * GOLDEN) >> 32);
        }
    }

    std::uint64_t operator()(std::uint64_t i) const {
        do i = once(i);
        while (i >= held_);
        return i;
    }

  private:
    static constexpr int ROUNDS = 8;
    static constexpr std::uint64_t GOLDEN = 0x9E3779B97F4A7C15u;

    // A number below m < 2^32 from a half of the place and a key.
    static std::uint64_t hash(std::uint64_t half, std::uint32_t key, std::uint64_t m) {
        std::uint32_t h = static_cast<std::uint32_t>(half) ^ key;
        h = (h ^ (h >> 16)) * 0x21F0AAADu;
        h = (h ^ (h >> 15)) * 0x735A2D97u;
        return ((h ^ (h >> 15)) * m) >> 32;
    }

    std::uint64_t once(std::uint64_t i) const {
        std::uint64_t row = i / columns_, column = i % columns_;
        for (int r = 0; r < ROUNDS; r += 2) {
            row += hash(column, keys_[r], rows_);
            if (row >= rows_) row -= rows_;
            column += hash(row, keys_[r + 1], columns_);
            if (column >= columns_) column -= columns_;
        }
        return row * columns_ + column;
    }

    std::uint64_t held_, rows_, columns_;
    std::uint32_t keys_[ROUNDS];
};

}  // namespace saefast::stream
