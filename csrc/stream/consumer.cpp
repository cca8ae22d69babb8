// The shuffle buffer as its consumer sees it; the mixing itself is in buffer.cpp.
#include <algorithm>
#include <cstring>

#include "buffer.h"

namespace saefast::stream {

using std::uint64_t;
using std::uint8_t;
using Lock = std::unique_lock<std::mutex>;

Status ShuffleBuffer::next(std::chrono::milliseconds patience, std::shared_ptr<Slab>& batch) {
    const Status status = wait(patience);
    if (status == Status::ready) {
        batch = peek(0)->slab;
        pop();
    }
    return status;
}

Status ShuffleBuffer::wait(std::chrono::milliseconds patience) {
    Lock lock(mutex_);
    if (closed_) throw SourceError("source: expected an open buffer, this one was closed");
    if (!error_ && !ended_) {
        wanted_ = Wanted::batches;
        start();
        wake_.notify_all();
    }
    const auto done = [&] { return closed_ || (ready_.empty() ? error_ || ended_ : is_ready()); };
    if (!changed_.wait_for(lock, patience, done)) return Status::waiting;
    if (closed_) throw SourceError("source: expected an open buffer, this one was closed");
    if (!ready_.empty()) return Status::ready;
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    return Status::ended;
}

const Mixed* ShuffleBuffer::peek(std::size_t ahead) {
    const Lock lock(mutex_);
    return ahead < ready_.size() && ready_[ahead].done == ready_[ahead].n_rows ? &ready_[ahead] : nullptr;
}

void ShuffleBuffer::pop() {
    Mixed popped;  // destroyed after the lock is released
    {
        const Lock lock(mutex_);
        popped = std::move(ready_.front());
        ready_.pop_front();
    }
    wake_.notify_all();
}

Status ShuffleBuffer::fill(std::chrono::milliseconds patience) {
    Lock lock(mutex_);
    if (closed_) throw SourceError("source: expected an open buffer, this one was closed");
    if (filled_) return Status::ready;
    if (!error_ && !ended_) {
        wanted_ = Wanted::fill;
        start();
        wake_.notify_all();
    }
    if (!changed_.wait_for(lock, patience, [&] { return closed_ || filled_ || error_ || ended_; })) {
        return Status::waiting;
    }
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    return filled_ ? Status::ready : Status::ended;
}

void ShuffleBuffer::read(uint64_t n, uint8_t* out) const {
    for (uint64_t i = 0; i < n; ++i) std::memcpy(out + i * row_bytes_, places_[i].row, row_bytes_);
}

uint64_t ShuffleBuffer::read_through() {
    {
        const Lock lock(mutex_);
        if (closed_) throw SourceError("source: expected an open buffer, this one was closed");
        // other readers have the same places, and would write where this pass does
        if (begun_) throw SourceError("read_through: expected that no batch and no sample was asked for yet");
    }
    Readers readers(files_, settings_.readers, free_slots(), settings_.chunk_bytes);
    readers.seek(0);
    for (uint64_t rows = 0; rows < files_.rows();) {
        const std::shared_ptr<Chunk> chunk = readers.next();
        if (!chunk->error.empty()) throw SourceError(chunk->error);
        rows += chunk->count;
    }
    return files_.rows();
}

bool ShuffleBuffer::is_ahead() {
    const Lock lock(mutex_);
    return wanted_ == Wanted::batches || !ready_.empty();
}

Numbers ShuffleBuffer::numbers() {
    const Lock lock(mutex_);
    return ready_.empty() ? drawn_ : ready_.front().before;
}

State ShuffleBuffer::state() {
    const Lock lock(mutex_);
    State state{ready_.empty() ? drawn_ : ready_.front().before, std::vector<std::int64_t>(places_.size())};
    for (std::size_t i = 0; i < places_.size(); ++i) state.row_of[i] = places_[i].number;
    for (auto mixed = ready_.rbegin(); mixed != ready_.rend(); ++mixed) {
        for (auto change = mixed->undo.rbegin(); change != mixed->undo.rend(); ++change) {
            state.row_of[change->first] = change->second;
        }
    }
    state.row_of.resize(state.numbers.held);
    return state;
}

void ShuffleBuffer::load(const State& state, const uint8_t* rows) {
    halt();
    const Lock lock(mutex_);
    ready_.clear();
    error_ = nullptr;
    wanted_ = Wanted::nothing;
    ended_ = filled_ = begun_ = false;
    numbers_ = drawn_ = state.numbers;
    for (uint64_t i = 0; i < state.numbers.held; ++i) {
        const uint8_t* row = elsewhere_ ? nullptr : files_.in_memory(static_cast<uint64_t>(state.row_of[i]));
        if (!row && !elsewhere_) row = static_cast<uint8_t*>(std::memcpy(slot(i), rows + i * row_bytes_, row_bytes_));
        places_[i] = {row, state.row_of[i]};
    }
}

}  // namespace saefast::stream
