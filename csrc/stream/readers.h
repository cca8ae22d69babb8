// Threads that read ahead and deliver chunks in order, with a bounded amount of memory.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "files.h"

namespace saefast::stream {

class Readers {
  public:
    // `places`: memory for single rows, which the threads read into. Whoever takes a row out of a chunk (and puts null
    // there) owns its place until `give_back`. There must be enough places for the largest piece, beside those that are
    // owned for long. `chunk_bytes`: how much is read at once.
    Readers(Files& files, int threads, std::vector<std::uint8_t*> places, std::uint64_t chunk_bytes);
    ~Readers();  // stops the threads

    // Begin a pass at `row` < files.rows(). Chunks that were read ahead are dropped.
    void seek(std::uint64_t row);

    // The next chunk; after the last one of a pass the next pass begins. Null after `stop`. After a chunk with an error
    // there are no more until `seek`. Chunks must not outlive the Readers.
    std::shared_ptr<Chunk> next();

    // May be called from any thread. Null and rows of a source in memory are ignored.
    void give_back(const std::vector<const std::uint8_t*>& rows);
    void stop();  // may be called from any thread: `next` returns, the threads end

  private:
    struct Ticket {
        std::uint64_t number, generation;
        Files::Piece piece;
        std::shared_ptr<Chunk> chunk;
    };
    void work(Slab& scratch);
    bool may_start(const Files::Piece& piece) const;
    std::shared_ptr<Chunk> chunk_for(const Files::Piece& piece);

    Files& files_;
    const std::uint64_t chunk_bytes_;
    const std::uint8_t *lowest_ = nullptr, *highest_ = nullptr;  // of all places
    std::atomic<bool> stop_{false};
    std::mutex mutex_;  // for what follows
    std::condition_variable room_, ready_;
    std::vector<std::uint8_t*> free_;
    std::map<std::uint64_t, std::shared_ptr<Chunk>> done_;
    std::set<std::size_t> verifying_;  // segments
    std::uint64_t generation_ = 0, issued_ = 0, taken_ = 0, row_ = 0;
    bool seeking_ = true, failed_ = false;  // before the first `seek` and after an error nothing is read
    std::vector<std::unique_ptr<Slab>> scratch_;  // of each thread
    std::vector<std::thread> threads_;
};

}  // namespace saefast::stream
