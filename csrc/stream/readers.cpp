#include "readers.h"

#include <algorithm>
#include <utility>

namespace saefast::stream {

using std::uint8_t;
using Lock = std::unique_lock<std::mutex>;

Readers::Readers(Files& files, int threads, std::vector<uint8_t*> places, std::uint64_t chunk_bytes)
    : files_(files), chunk_bytes_(chunk_bytes), free_(std::move(places)) {
    if (!free_.empty()) {
        const auto [low, high] = std::minmax_element(free_.begin(), free_.end());
        lowest_ = *low, highest_ = *high;
    }
    for (int i = 0; i < threads; ++i) scratch_.push_back(std::make_unique<Slab>(files.scratch_bytes(chunk_bytes)));
    try {
        for (int i = 0; i < threads; ++i) threads_.emplace_back([this, i] { work(*scratch_[static_cast<size_t>(i)]); });
    } catch (...) {  // no more threads can be started: those that run must end first
        stop();
        for (std::thread& thread : threads_) thread.join();
        throw;
    }
}

Readers::~Readers() {
    stop();
    for (std::thread& thread : threads_) thread.join();
}

void Readers::stop() {
    const Lock lock(mutex_);
    stop_ = true;
    room_.notify_all();
    ready_.notify_all();
}

void Readers::seek(std::uint64_t row) {
    std::map<std::uint64_t, std::shared_ptr<Chunk>> dropped;  // destroyed after the lock, which it needs
    const Lock lock(mutex_);
    ++generation_;
    done_.swap(dropped);
    issued_ = taken_ = 0;
    row_ = row;
    seeking_ = failed_ = false;
    room_.notify_all();
}

namespace {
constexpr std::uint64_t AHEAD = 64;  // pieces ahead of the consumer, for sources whose pieces take no memory
}

bool Readers::may_start(const Files::Piece& piece) const {
    return issued_ - taken_ < AHEAD && (!piece.copied || piece.count <= free_.size());
}

void Readers::work(Slab& scratch) {
    while (true) {
        Ticket ticket;
        {
            Lock lock(mutex_);
            room_.wait(lock, [&] {
                if (stop_) return true;
                if (seeking_ || failed_ || files_.rows() == 0) return false;
                ticket.piece = files_.piece(row_, chunk_bytes_);
                if (ticket.piece.verify && verifying_.count(ticket.piece.segment)) return false;  // another thread does it
                return may_start(ticket.piece);
            });
            if (stop_) return;
            ticket.chunk = chunk_for(ticket.piece);
            ticket.number = issued_++;
            ticket.generation = generation_;
            if (ticket.piece.verify) verifying_.insert(ticket.piece.segment);
            row_ = ticket.piece.first + ticket.piece.count;
            if (row_ == files_.rows()) row_ = 0;
        }
        files_.read(ticket.piece, *ticket.chunk, scratch, stop_);
        Lock lock(mutex_);
        if (ticket.piece.verify) {
            verifying_.erase(ticket.piece.segment);
            room_.notify_all();
        }
        if (stop_ || ticket.generation != generation_) {
            lock.unlock();
            ticket.chunk.reset();
            continue;
        }
        if (!ticket.chunk->error.empty()) failed_ = true;
        done_.emplace(ticket.number, std::move(ticket.chunk));
        lock.unlock();
        ready_.notify_all();
    }
}

// A chunk with its places, which are given back with its last reference. The caller holds `mutex_`.
std::shared_ptr<Chunk> Readers::chunk_for(const Files::Piece& piece) {
    auto made = std::make_unique<Chunk>();
    made->rows.reserve(piece.count);
    std::shared_ptr<Chunk> chunk(made.release(), [this](Chunk* owned) {
        const std::unique_ptr<Chunk> goes(owned);
        give_back(goes->rows);
    });
    if (!piece.copied) return chunk;
    const auto n = static_cast<std::ptrdiff_t>(piece.count);
    chunk->rows.assign(free_.rbegin(), free_.rbegin() + n);
    free_.erase(free_.end() - n, free_.end());
    return chunk;
}

void Readers::give_back(const std::vector<const uint8_t*>& rows) {
    if (rows.empty() || !lowest_) return;
    Lock lock(mutex_);
    for (const uint8_t* row : rows) {
        const bool ours = row && lowest_ <= row && row <= highest_;
        if (ours) free_.push_back(const_cast<uint8_t*>(row));  // it came from there
    }
    lock.unlock();
    room_.notify_all();
}

std::shared_ptr<Chunk> Readers::next() {
    Lock lock(mutex_);
    ready_.wait(lock, [&] { return stop_ || done_.count(taken_); });
    if (stop_) return nullptr;
    auto found = done_.find(taken_);
    std::shared_ptr<Chunk> chunk = std::move(found->second);
    done_.erase(found);
    ++taken_;
    const bool few = issued_ - taken_ <= AHEAD / 2;  // threads are woken for several pieces
    lock.unlock();
    if (few) room_.notify_all();
    return chunk;
}

}  // namespace saefast::stream
