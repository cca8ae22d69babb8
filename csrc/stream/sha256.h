// SHA-256 (FIPS 180-4), with the processor's instructions for it where it has them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace saefast::stream {

class Sha256 {
  public:
    // `plain` does not use the processor's instructions, for tests.
    explicit Sha256(bool plain = false);
    void update(const void* data, std::size_t bytes);
    std::string hex();  // no `update` may follow

  private:
    using Compress = void (*)(std::uint32_t*, const std::uint8_t*, std::size_t);
    Compress compress_;
    std::array<std::uint32_t, 8> state_;
    std::uint8_t tail_[64];
    std::size_t in_tail_ = 0;
    std::uint64_t total_ = 0;
};

}  // namespace saefast::stream
