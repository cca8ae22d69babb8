// Copies the rows that were drawn into their batches.
#include <algorithm>

#include "buffer.h"

namespace saefast::stream {

using std::uint64_t;
using std::uint8_t;

void gather_rows(const uint8_t* const* rows, uint64_t n, uint64_t d_in, DType dtype, bool widen, uint8_t* out) {
    constexpr uint64_t SOON = 9216;  // how many bytes ahead are prefetched
    const std::size_t row_bytes = d_in * size_of(dtype), out_bytes = widen ? 4 * d_in : row_bytes;
    const auto wide = row_ops(dtype).widen;
    const bool aligned = reinterpret_cast<std::uintptr_t>(out) % 64 == 0;
    const CopyRow copy = copy_row(aligned ? row_bytes : 1);
    const uint64_t soon = std::max<uint64_t>(1, SOON / row_bytes);
    for (uint64_t i = 0; i < n; ++i, out += out_bytes) {
        if (i + soon < n) prefetch_row(rows[i + soon], row_bytes);
        if (widen) {
            wide(rows[i], d_in, out);
        } else {
            copy(rows[i], row_bytes, out);
        }
    }
    copies_done();
}

Mixed* ShuffleBuffer::uncopied() {
    const auto found = std::find_if(ready_.begin(), ready_.end(),
                                    [](const Mixed& mixed) { return mixed.begun < mixed.n_rows; });
    return found == ready_.end() ? nullptr : &*found;
}

// Copies the next rows of a batch, which stays where it is in the deque until it is done. `lock` is held except while
// rows are copied.
void ShuffleBuffer::copy_part(Mixed& mixed, std::unique_lock<std::mutex>& lock) {
    constexpr uint64_t PART = 256;  // rows that a thread copies before it looks around
    const uint64_t begin = mixed.begun, n = std::min(PART, mixed.n_rows - begin);
    mixed.begun += n;
    lock.unlock();
    gather_rows(mixed.rows.data() + begin, n, settings_.d_in, settings_.dtype, settings_.widen,
                mixed.slab->data() + begin * out_row_bytes_);
    lock.lock();
    if ((mixed.done += n) < mixed.n_rows) return;
    const std::vector<const uint8_t*> rows = std::move(mixed.rows);
    lock.unlock();
    changed_.notify_all();
    readers_->give_back(rows);
    lock.lock();
}

}  // namespace saefast::stream
