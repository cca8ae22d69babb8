#include "slab.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

namespace saefast::stream {
namespace {

constexpr std::size_t HUGE_PAGE = std::size_t{1} << 21, PAGE = 4096;

std::size_t round_up(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }

}  // namespace

Slab::Slab(std::size_t bytes, Memory* memory)
    : bytes_(round_up(std::max<std::size_t>(bytes, 1), PAGE)), memory_(memory) {
    if (memory_) {
        data_ = static_cast<std::uint8_t*>(memory_->take(bytes_));
        return;
    }
    const std::size_t alignment = bytes_ >= HUGE_PAGE ? HUGE_PAGE : PAGE;
    if (bytes_ >= HUGE_PAGE) bytes_ = round_up(bytes_, HUGE_PAGE);
    data_ = static_cast<std::uint8_t*>(::operator new(bytes_, std::align_val_t{alignment}));
#ifdef MADV_HUGEPAGE
    if (bytes_ >= HUGE_PAGE) madvise(data_, bytes_, MADV_HUGEPAGE);  // a wish: without it all works, slower
#endif
}

Slab::~Slab() {
    if (memory_) {
        memory_->give_back(data_);
        return;
    }
    ::operator delete(data_, std::align_val_t{bytes_ >= HUGE_PAGE ? HUGE_PAGE : PAGE});
}

std::shared_ptr<Slab> SlabPool::get(std::size_t bytes) {
    std::unique_ptr<Slab> slab;
    {
        const std::lock_guard<std::mutex> lock(shared_->mutex);
        auto& free = shared_->free;
        // a much larger one is left for those who need it
        const auto fits = [bytes](const auto& s) { return s->bytes() >= bytes && s->bytes() / 4 <= bytes + PAGE; };
        const auto found = std::find_if(free.begin(), free.end(), fits);
        if (found != free.end()) {
            slab = std::move(*found);
            free.erase(found);
        }
    }
    if (!slab) slab = std::make_unique<Slab>(bytes, shared_->memory);
    const std::shared_ptr<Shared> shared = shared_;
    return std::shared_ptr<Slab>(slab.release(), [shared](Slab* returned) {
        std::unique_ptr<Slab> owned(returned), oldest;  // what is too much is freed outside the lock
        const std::lock_guard<std::mutex> lock(shared->mutex);
        shared->free.push_back(std::move(owned));
        if (shared->free.size() > shared->keep) {
            oldest = std::move(shared->free.front());
            shared->free.erase(shared->free.begin());
        }
    });
}

}  // namespace saefast::stream
