// Threads that read ahead: chunks come in order, in bounded memory.
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
    // `budget`: bytes that chunks may take up, unless a single one is larger. `chunk_bytes`: of one.
    Readers(Files& files, int threads, std::uint64_t budget, std::uint64_t chunk_bytes);
    ~Readers();  // whatever they are doing

    // Begin a pass at `row` < files.rows(). What was read ahead is dropped.
    void seek(std::uint64_t row);

    // The next chunk of the pass, passes following each other without end; null after `stop`. An error ends
    // the stream there until `seek`.
    std::shared_ptr<Chunk> next();

    void stop();  // from any thread: `next` returns, the threads end

  private:
    struct Ticket {
        std::uint64_t number, generation;
        Files::Piece piece;
    };
    void work();
    bool may_start(const Files::Piece& piece) const;
    std::shared_ptr<Chunk> counted(std::shared_ptr<Chunk> chunk, std::uint64_t bytes);
    void give_back(std::uint64_t bytes);

    Files& files_;
    const std::uint64_t budget_, chunk_bytes_;
    SlabPool pool_;
    std::atomic<bool> stop_{false};
    std::mutex mutex_;  // for what follows
    std::condition_variable room_, ready_;
    std::map<std::uint64_t, std::shared_ptr<Chunk>> done_;
    std::set<std::size_t> verifying_;  // segments
    std::uint64_t generation_ = 0, issued_ = 0, taken_ = 0, row_ = 0, in_use_ = 0;
    bool seeking_ = true, failed_ = false;  // before the first `seek` and after an error nothing is read
    std::vector<std::thread> threads_;
};

}  // namespace saefast::stream
