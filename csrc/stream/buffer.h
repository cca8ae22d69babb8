// The shuffle buffer. The specification is `saefast.activations.buffer.ShuffleBuffer`: the same batches, bit for bit.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "files.h"
#include "readers.h"
#include "slab.h"

namespace saefast::stream {

struct Settings {
    std::uint64_t batch, capacity, seed, d_in;
    DType dtype;
    bool widen;  // batches in fp32; else in the dtype of the source
    bool skip;   // rows with NaN or Inf are dropped and counted; else they are an error
    int readers, mixers, ahead;
    std::uint64_t ring_bytes, chunk_bytes;
};

struct Numbers {
    std::uint64_t held = 0, passes = 0, next_row = 0, skipped = 0, batches = 0;
    std::uint64_t carried = 0;  // from the passes before: the rows in the first places, all of which the next batch takes
};

struct State {
    Numbers numbers;
    std::vector<std::int64_t> row_of;  // [held]
};

enum class Status { ready, ended, waiting };

// Holds the rows of the buffer in another place: on a device. A batch is then a description of what changes there.
class Elsewhere {
  public:
    virtual ~Elsewhere() = default;
    virtual Memory* memory() = 0;                // in which the rows of a batch are collected
    virtual std::size_t slab_bytes() const = 0;  // how much of it a batch needs: its rows, and whatever else is wanted
    // Copy rows to the places from `first` on. The thread that mixes calls it, while no batch is mixed ahead. May throw.
    virtual void put(std::uint64_t first, const std::vector<const std::uint8_t*>& rows) = 0;
};

struct Mixed {
    std::shared_ptr<Slab> slab;  // the batch; elsewhere the rows that come, for the first of the holes
    std::vector<const std::uint8_t*> rows;                       // to be copied into it
    std::vector<std::pair<std::uint64_t, std::int64_t>> undo;    // (place, its row before)
    std::vector<std::uint64_t> holes;                            // elsewhere: the places drawn [batch]
    std::vector<std::pair<std::uint64_t, std::uint64_t>> moves;  // (hole, place whose row moves there) after it
    Numbers before;
    std::uint64_t n_rows = 0, begun = 0, done = 0;  // of `rows`
};

// Readers read ahead of the mixers, and those draw batches ahead of the consumer, one at a time, and copy the rows
// drawn, all at once; the threads begin with the first batch that is asked for. A row stays where a reader put it, or
// in the memory of the source, until it is copied into its batch. The methods are for one consumer thread; `close` is
// for any.
class ShuffleBuffer {
  public:
    ShuffleBuffer(Files& files, const Settings& settings, Elsewhere* elsewhere = nullptr);
    ~ShuffleBuffer();

    std::size_t out_row_bytes() const { return out_row_bytes_; }

    // Wait for the next batch [batch, out_row_bytes]. Throws what went wrong in making it; the state is then that of the
    // batch before, and the next call tries again.
    Status next(std::chrono::milliseconds patience, std::shared_ptr<Slab>& batch);

    // The same in steps, for rows that are elsewhere: wait for a batch; look at those mixed ahead (null if there is none
    // yet; the pointer is valid until `pop`); take the first of them.
    Status wait(std::chrono::milliseconds patience);
    const Mixed* peek(std::size_t ahead);
    void pop();

    // Top up without drawing; only while no batch was mixed ahead.
    Status fill(std::chrono::milliseconds patience);
    void read(std::uint64_t n, std::uint8_t* out) const;  // the first n <= held rows, after `fill`

    // A pass of the readers alone, whose rows are dropped and counted. Only before a batch or a sample was asked for.
    std::uint64_t read_through();

    bool is_ahead();
    Numbers numbers();  // as of the last batch that `next` returned
    State state();
    void load(const State& state, const std::uint8_t* rows);  // rows [held, d_in] as in the source; elsewhere null
    void halt();   // stop the threads until the next batch is asked for; from any thread
    void close();  // stop the threads for ever

  private:
    enum class Wanted { nothing, fill, batches };
    struct Rows;  // rows of the stream on their way into the buffer
    struct Stopped {};

    struct Place {
        const std::uint8_t* row;  // of no meaning where the rows are elsewhere
        std::int64_t number;  // of the row, in the stream
    };

    std::vector<std::uint8_t*> free_slots() const;
    void start();
    void work();
    void mix(Wanted wanted);
    void copy_part(Mixed& mixed, std::unique_lock<std::mutex>& lock);
    Mixed* uncopied();
    bool fill_up();
    std::uint64_t top_up();
    void put_elsewhere(const Rows& rows);
    void draw();
    void collect(std::uint64_t n, Rows& rows);
    std::uint8_t* slot(std::uint64_t i) const { return slots_.data() + i * row_bytes_; }
    bool is_ready() const { return !ready_.empty() && ready_.front().done == ready_.front().n_rows; }

    Files& files_;
    const Settings settings_;
    Elsewhere* const elsewhere_;
    const std::size_t row_bytes_, out_row_bytes_;
    const std::uint64_t capacity_, n_slots_;
    Slab slots_;  // [n_slots, row_bytes]: rows held, read ahead, and of the batch that is copied
    SlabPool batches_;
    std::unique_ptr<Readers> readers_;
    std::shared_ptr<Chunk> chunk_;  // of the thread that mixes, at numbers_.next_row
    bool in_step_ = false;          // the readers are

    std::mutex halting_;
    std::mutex mutex_;  // for what follows; only the thread that mixes writes places_ and numbers_
    std::condition_variable wake_, changed_;  // the mixers; the consumer
    std::vector<Place> places_;               // [capacity]
    Numbers numbers_, drawn_;  // now, and after the last draw: filling up after it is not part of the state
    std::deque<Mixed> ready_;  // or about to be
    Wanted wanted_ = Wanted::nothing;
    bool mixing_ = false, stop_ = false, closed_ = false, ended_ = false, filled_ = false, begun_ = false;
    std::exception_ptr error_;
    std::vector<std::thread> mixers_;
};

// Copies rows [n] to out [n, bytes of one], or widens them.
void gather_rows(const std::uint8_t* const* rows, std::uint64_t n, std::uint64_t d_in, DType dtype, bool widen,
                 std::uint8_t* out);

}  // namespace saefast::stream
