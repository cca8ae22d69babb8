// Which places of the shuffle buffer a batch takes. The specification is `saefast.activations.buffer.draw`: the same bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace saefast::stream {

inline std::uint64_t mix64(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

// A permutation of [0, held), held < 2^62: a Feistel network over a grid of rows x columns >= held places, which is
// applied again until the place is below held.
class Draw {
  public:
    Draw(std::uint64_t seed, std::uint64_t batch, std::uint64_t held);

    // The images of 0 to n - 1, n <= held.
    std::vector<std::uint64_t> operator()(std::uint64_t n, bool plain = false) const;

  private:
    static constexpr int ROUNDS = 8;
    static constexpr std::uint64_t GOLDEN = 0x9E3779B97F4A7C15u;
    static constexpr int LANES = 64;

    std::uint64_t once(std::uint64_t i) const;
    // LANES places at a time
    void permute_plain(std::uint32_t* rows, std::uint32_t* columns) const;
    void permute_avx2(std::uint32_t* rows, std::uint32_t* columns) const;

    std::uint64_t held_;
    std::uint32_t rows_, columns_;
    std::uint32_t keys_[ROUNDS];
};

}  // namespace saefast::stream
