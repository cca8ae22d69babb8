#include "readers.h"

#include <utility>

namespace saefast::stream {

using Lock = std::unique_lock<std::mutex>;

Readers::Readers(Files& files, int threads, std::uint64_t budget, std::uint64_t chunk_bytes)
    : files_(files), budget_(budget), chunk_bytes_(chunk_bytes), pool_(static_cast<std::size_t>(2 * threads + 2)) {
    try {
        for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
    } catch (...) {  // no more threads to be had: those that started must end first
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
    std::map<std::uint64_t, std::shared_ptr<Chunk>> dropped;  // goes after the lock, which it takes
    const Lock lock(mutex_);
    ++generation_;
    done_.swap(dropped);
    issued_ = taken_ = 0;
    row_ = row;
    seeking_ = failed_ = false;
    room_.notify_all();
}

bool Readers::may_start(const Files::Piece& piece) const {
    return issued_ == taken_ || in_use_ + piece.bytes <= budget_;  // what is wanted next always may
}

void Readers::work() {
    // pieces ahead of the consumer, for sources whose pieces take no memory
    constexpr std::uint64_t AHEAD = 64;
    while (true) {
        Ticket ticket;
        {
            Lock lock(mutex_);
            room_.wait(lock, [&] {
                if (stop_) return true;
                if (seeking_ || failed_ || issued_ - taken_ >= AHEAD) return false;
                ticket.piece = files_.piece(row_, chunk_bytes_);
                if (ticket.piece.verify && verifying_.count(ticket.piece.segment)) return false;  // not twice
                return may_start(ticket.piece);
            });
            if (stop_) return;
            ticket.number = issued_++;
            ticket.generation = generation_;
            in_use_ += ticket.piece.bytes;
            if (ticket.piece.verify) verifying_.insert(ticket.piece.segment);
            row_ = ticket.piece.first + ticket.piece.count;
            if (row_ == files_.rows()) row_ = 0;
        }
        std::shared_ptr<Chunk> chunk = counted(files_.read(ticket.piece, pool_, stop_), ticket.piece.bytes);
        Lock lock(mutex_);
        if (ticket.piece.verify) {
            verifying_.erase(ticket.piece.segment);
            room_.notify_all();
        }
        if (stop_ || ticket.generation != generation_) {
            lock.unlock();
            chunk.reset();
            continue;
        }
        if (!chunk->error.empty()) failed_ = true;
        done_.emplace(ticket.number, std::move(chunk));
        ready_.notify_all();
    }
}

// The same chunk, whose bytes count as in use until its last reference goes. Chunks do not outlive the Readers.
std::shared_ptr<Chunk> Readers::counted(std::shared_ptr<Chunk> chunk, std::uint64_t bytes) {
    Chunk* raw = chunk.get();
    return std::shared_ptr<Chunk>(raw, [this, bytes, owner = std::move(chunk)](Chunk*) mutable {
        owner.reset();
        give_back(bytes);
    });
}

void Readers::give_back(std::uint64_t bytes) {
    const Lock lock(mutex_);
    in_use_ -= bytes;
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
    room_.notify_all();
    return chunk;
}

}  // namespace saefast::stream
