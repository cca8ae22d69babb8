#include "buffer.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "draw.h"

namespace saefast::stream {

using std::size_t;
using std::uint64_t;
using std::uint8_t;
using Lock = std::unique_lock<std::mutex>;

struct ShuffleBuffer::Rows {
    std::vector<const uint8_t*> data;
    std::vector<std::int64_t> numbers;
    std::vector<std::shared_ptr<Chunk>> chunks;  // that `data` points into
    uint64_t next_row, skipped;
};

ShuffleBuffer::ShuffleBuffer(Files& files, const Settings& settings)
    : files_(files),
      settings_(settings),
      row_bytes_(files.row_bytes()),
      out_row_bytes_(settings.widen ? 4 * settings.d_in : files.row_bytes()),
      // more is never held: a new pass begins with less than a batch in the buffer
      capacity_(std::min(settings.capacity, files.rows() + settings.batch)),
      places_(capacity_ * row_bytes_),
      batches_(static_cast<size_t>(settings.ahead) + 2),
      row_of_(capacity_) {}

ShuffleBuffer::~ShuffleBuffer() { close(); }

void ShuffleBuffer::start() {
    if (mixer_.joinable()) return;
    readers_ = std::make_unique<Readers>(files_, settings_.readers, settings_.ring_bytes, settings_.chunk_bytes);
    in_step_ = false;
    stop_ = false;
    mixer_ = std::thread([this] { work(); });
}

void ShuffleBuffer::halt() {
    const Lock one_at_a_time(halting_);
    {
        const Lock lock(mutex_);
        stop_ = true;
        wake_.notify_all();
    }
    if (readers_) readers_->stop();
    if (mixer_.joinable()) mixer_.join();
    chunk_.reset();
    readers_.reset();
}

void ShuffleBuffer::close() {
    {
        const Lock lock(mutex_);
        closed_ = true;
        changed_.notify_all();
    }
    halt();
}

void ShuffleBuffer::work() {
    Lock lock(mutex_);
    while (true) {
        wake_.wait(lock, [&] {
            const bool room = wanted_ == Wanted::fill || ready_.size() < static_cast<size_t>(settings_.ahead);
            return stop_ || (wanted_ != Wanted::nothing && room);
        });
        if (stop_) return;
        const Wanted wanted = wanted_;
        lock.unlock();
        try {
            const bool some = fill_up();
            if (some && wanted == Wanted::batches) draw();
            lock.lock();
            ended_ = !some;
            filled_ = some;
            if (wanted == Wanted::fill) drawn_ = numbers_;
            if (!some || wanted == Wanted::fill) wanted_ = Wanted::nothing;
        } catch (const Stopped&) {
            return;
        } catch (...) {
            lock.lock();
            error_ = std::current_exception();
            wanted_ = Wanted::nothing;
        }
        changed_.notify_all();
    }
}

// As `ShuffleBuffer._fill`.
bool ShuffleBuffer::fill_up() {
    top_up();
    while (numbers_.held < settings_.batch) {
        chunk_.reset();
        {
            const Lock lock(mutex_);
            ++numbers_.passes;
            numbers_.next_row = 0;
        }
        if (top_up() == 0) return false;
    }
    return true;
}

uint64_t ShuffleBuffer::top_up() {
    constexpr uint64_t STEP = 8192;  // rows whose chunks are in memory at a time
    uint64_t came = 0;
    while (numbers_.held < capacity_ && numbers_.next_row < files_.rows()) {
        {  // batches mixed ahead could not be taken back any more
            Lock lock(mutex_);
            wake_.wait(lock, [&] { return stop_ || ready_.empty(); });
            if (stop_) throw Stopped{};
        }
        const Rows rows = collect(std::min(STEP, capacity_ - numbers_.held));
        for (size_t i = 0; i < rows.data.size(); ++i) {
            std::memcpy(place(numbers_.held + i), rows.data[i], row_bytes_);
        }
        const Lock lock(mutex_);
        std::copy(rows.numbers.begin(), rows.numbers.end(),
                  row_of_.begin() + static_cast<std::ptrdiff_t>(numbers_.held));
        numbers_.held += rows.data.size();
        numbers_.next_row = rows.next_row, numbers_.skipped = rows.skipped;
        came += rows.data.size();
    }
    return came;
}

// As `ShuffleBuffer._draw`. What can fail comes first.
void ShuffleBuffer::draw() {
    const uint64_t n = settings_.batch, held = numbers_.held;
    std::vector<uint64_t> holes(n);
    const Draw draw(settings_.seed, numbers_.batches, held);
    for (uint64_t i = 0; i < n; ++i) holes[i] = draw(i);
    const Rows rows = collect(n);
    const uint64_t filled = rows.data.size(), left = held - (n - filled);
    Mixed mixed{batches_.get(n * out_row_bytes_), {}, {}};
    std::vector<uint64_t> low, empty(holes.begin() + static_cast<std::ptrdiff_t>(filled), holes.end());
    std::sort(empty.begin(), empty.end());
    for (const uint64_t hole : empty) {
        if (hole < left) low.push_back(hole);
    }
    mixed.undo.reserve(filled + low.size());

    constexpr uint64_t SOON = 8;  // rows ahead that are asked of memory
    for (uint64_t i = 0; i < n; ++i) {
#ifdef __GNUC__
        if (i + SOON < n) {
            for (size_t byte = 0; byte < std::min<size_t>(row_bytes_, 512); byte += 64) {
                __builtin_prefetch(place(holes[i + SOON]) + byte);
            }
        }
#endif
        uint8_t* row = place(holes[i]);
        uint8_t* out = mixed.slab->data() + i * out_row_bytes_;
        if (settings_.widen) {
            files_.ops().widen(row, settings_.d_in, out);
        } else {
            std::memcpy(out, row, row_bytes_);
        }
        if (i < filled) std::memcpy(row, rows.data[i], row_bytes_);  // while it is in the cache
    }
    // Where the stream could not fill a hole, the last rows move down into it.
    std::vector<std::pair<uint64_t, uint64_t>> moves;
    uint64_t last = left;
    for (const uint64_t hole : low) {
        while (std::binary_search(empty.begin(), empty.end(), last)) ++last;
        std::memcpy(place(hole), place(last), row_bytes_);
        moves.emplace_back(hole, last++);
    }

    const Lock lock(mutex_);
    mixed.before = drawn_;
    const auto set = [&](uint64_t where, std::int64_t row) {
        mixed.undo.emplace_back(where, row_of_[where]);
        row_of_[where] = row;
    };
    for (uint64_t i = 0; i < filled; ++i) set(holes[i], rows.numbers[i]);
    for (const auto& [to, from] : moves) set(to, row_of_[from]);
    numbers_.held = left, numbers_.next_row = rows.next_row, numbers_.skipped = rows.skipped;
    ++numbers_.batches;
    drawn_ = numbers_;
    ready_.push_back(std::move(mixed));
}

// The next n finite rows of the pass, fewer at its end. Where it throws, the stream stays where it was.
ShuffleBuffer::Rows ShuffleBuffer::collect(uint64_t n) {
    Rows rows{{}, {}, {}, numbers_.next_row, numbers_.skipped};
    uint64_t& next = rows.next_row;
    if (next == files_.rows()) return rows;
    rows.data.reserve(n);
    rows.numbers.reserve(n);
    try {
        if (!in_step_) {
            chunk_.reset();
            readers_->seek(next);
            in_step_ = true;
        }
        while (rows.data.size() < n && next < files_.rows()) {
            if (!chunk_ || next >= chunk_->first + chunk_->count) {
                chunk_.reset();
                chunk_ = readers_->next();
                if (!chunk_) throw Stopped{};
                if (!chunk_->error.empty()) throw SourceError(chunk_->error);
            }
            const Chunk& chunk = *chunk_;
            rows.chunks.push_back(chunk_);
            auto bad = std::lower_bound(chunk.bad.begin(), chunk.bad.end(), next);
            for (; rows.data.size() < n && next < chunk.first + chunk.count; ++next) {
                if (bad != chunk.bad.end() && *bad == next) {
                    if (!settings_.skip) {
                        throw SourceError("source: row " + std::to_string(next) +
                                          " holds NaN or Inf; nonfinite = 'skip' (--nonfinite skip) drops such rows");
                    }
                    ++bad, ++rows.skipped;
                    continue;
                }
                rows.data.push_back(chunk.data + (next - chunk.first) * row_bytes_);
                rows.numbers.push_back(static_cast<std::int64_t>(next));
            }
        }
    } catch (...) {
        in_step_ = false;
        chunk_.reset();
        throw;
    }
    return rows;
}

}  // namespace saefast::stream
