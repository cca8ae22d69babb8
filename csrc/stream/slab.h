// Large pieces of memory that are used again, because fresh memory costs a page fault every 4 KiB.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace saefast::stream {

// A place to take memory from, other than the heap. It must outlive what was taken. `take` throws if there is no memory.
class Memory {
  public:
    virtual ~Memory() = default;
    virtual void* take(std::size_t bytes) = 0;
    virtual void give_back(void* memory) = 0;
};

// Aligned memory from the heap, in huge pages if the kernel has them, or from `memory`. Throws std::bad_alloc.
class Slab {
  public:
    explicit Slab(std::size_t bytes, Memory* memory = nullptr);
    ~Slab();
    Slab(const Slab&) = delete;
    Slab& operator=(const Slab&) = delete;
    std::uint8_t* data() const { return data_; }
    std::size_t bytes() const { return bytes_; }

  private:
    std::size_t bytes_;
    Memory* memory_;
    std::uint8_t* data_;
};

// Hands out slabs and takes them back with their last reference, which may be dropped after the pool was destroyed.
class SlabPool {
  public:
    explicit SlabPool(std::size_t keep, Memory* memory = nullptr) : shared_(std::make_shared<Shared>()) {
        shared_->keep = keep, shared_->memory = memory;
    }
    std::shared_ptr<Slab> get(std::size_t bytes);

  private:
    struct Shared {
        std::mutex mutex;
        std::size_t keep;  // free ones at most
        Memory* memory;
        std::vector<std::unique_ptr<Slab>> free;
    };
    std::shared_ptr<Shared> shared_;
};

}  // namespace saefast::stream
