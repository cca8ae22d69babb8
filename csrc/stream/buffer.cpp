#include "buffer.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

#include "draw.h"

namespace saefast::stream {

using std::size_t;
using std::uint64_t;
using std::uint8_t;
using Lock = std::unique_lock<std::mutex>;

// The places of these rows are given back, unless the rows are put into the buffer.
struct ShuffleBuffer::Rows {
    Rows(Readers& from, const Numbers& now) : readers(from), next_row(now.next_row), skipped(now.skipped) {}
    Rows(const Rows&) = delete;
    Rows& operator=(const Rows&) = delete;
    ~Rows() { readers.give_back(data); }

    Readers& readers;
    std::vector<const uint8_t*> data;
    std::vector<std::int64_t> numbers;
    uint64_t next_row, skipped;
};

namespace {

constexpr uint64_t STEP = 8192;  // rows collected at a time

// The rows held, those of a batch, and those read ahead, which must be enough for the largest piece.
uint64_t slots_for(const Files& files, const Settings& settings, uint64_t capacity) {
    const uint64_t piece = files.largest_piece(settings.chunk_bytes);
    if (piece == 0) return 0;  // all rows are in memory
    const uint64_t ahead = std::max(piece, std::min(settings.ring_bytes / files.row_bytes(), files.rows()));
    return capacity + settings.batch + ahead;
}

}  // namespace

ShuffleBuffer::ShuffleBuffer(Files& files, const Settings& settings, Elsewhere* elsewhere)
    : files_(files),
      settings_(settings),
      elsewhere_(elsewhere),
      row_bytes_(files.row_bytes()),
      out_row_bytes_(settings.widen ? 4 * settings.d_in : files.row_bytes()),
      // more is never held: a new pass begins with less than a batch in the buffer
      capacity_(std::min(settings.capacity, files.rows() + settings.batch)),
      n_slots_(slots_for(files, settings, elsewhere ? STEP : capacity_)),
      slots_(n_slots_ * row_bytes_),
      batches_(static_cast<size_t>(settings.ahead) + 2, elsewhere ? elsewhere->memory() : nullptr),
      places_(capacity_) {}

ShuffleBuffer::~ShuffleBuffer() { close(); }

std::vector<uint8_t*> ShuffleBuffer::free_slots() const {
    std::vector<uint8_t*> free;
    const uint64_t used = elsewhere_ ? 0 : numbers_.held;
    for (uint64_t i = n_slots_; i > used; --i) free.push_back(slot(i - 1));  // the last one is taken first
    return free;
}

void ShuffleBuffer::start() {
    begun_ = true;
    if (mixers_.size() == static_cast<size_t>(settings_.mixers)) return;
    if (!readers_) {
        readers_ = std::make_unique<Readers>(files_, settings_.readers, free_slots(), settings_.chunk_bytes);
        in_step_ = stop_ = mixing_ = false;
    }
    while (mixers_.size() < static_cast<size_t>(settings_.mixers)) {
        mixers_.emplace_back([this] { work(); });
    }
}

void ShuffleBuffer::halt() {
    const Lock one_at_a_time(halting_);
    {
        const Lock lock(mutex_);
        stop_ = true;
        wake_.notify_all();
    }
    if (readers_) readers_->stop();
    for (std::thread& thread : mixers_) thread.join();
    mixers_.clear();
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
        Mixed* waiting = nullptr;
        bool room = false;
        wake_.wait(lock, [&] {
            waiting = uncopied();
            room = wanted_ == Wanted::fill ||
                   (wanted_ == Wanted::batches && ready_.size() < static_cast<size_t>(settings_.ahead));
            room = room && !mixing_;
            return stop_ || waiting || room;
        });
        if (stop_) return;
        // The thread that mixes may wait for places that become free when batches are copied: another thread must do that.
        if (waiting && !(room && settings_.mixers > 1)) {
            copy_part(*waiting, lock);
            continue;
        }
        const Wanted wanted = wanted_;
        mixing_ = true;
        lock.unlock();
        std::exception_ptr error;
        try {
            mix(wanted);
        } catch (const Stopped&) {
            return;
        } catch (...) {
            error = std::current_exception();
        }
        lock.lock();
        if (error) error_ = error, wanted_ = Wanted::nothing;
        mixing_ = false;
        const bool tell = wanted_ == Wanted::nothing;
        lock.unlock();
        wake_.notify_all();
        if (tell) changed_.notify_all();
        lock.lock();
    }
}

void ShuffleBuffer::mix(Wanted wanted) {
    const bool some = fill_up();
    if (some && wanted == Wanted::batches) draw();
    const Lock lock(mutex_);
    ended_ = !some;
    filled_ = some;
    if (wanted == Wanted::fill) drawn_ = numbers_;
    if (!some || wanted == Wanted::fill) wanted_ = Wanted::nothing;
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
            numbers_.carried = numbers_.held;
        }
        if (top_up() == 0) return false;
    }
    return true;
}

uint64_t ShuffleBuffer::top_up() {
    uint64_t came = 0;
    while (numbers_.held < capacity_ && numbers_.next_row < files_.rows()) {
        {  // batches that were mixed ahead could not be undone any more
            Lock lock(mutex_);
            wake_.wait(lock, [&] { return stop_ || ready_.empty(); });
            if (stop_) throw Stopped{};
        }
        Rows rows(*readers_, numbers_);
        collect(std::min(STEP, capacity_ - numbers_.held), rows);
        const size_t n = rows.data.size();
        if (elsewhere_) put_elsewhere(rows);
        const Lock lock(mutex_);
        for (size_t i = 0; i < n; ++i) places_[numbers_.held + i] = {rows.data[i], rows.numbers[i]};
        numbers_.held += n;
        numbers_.next_row = rows.next_row, numbers_.skipped = rows.skipped;
        came += n;
        if (!elsewhere_) rows.data.clear();
    }
    return came;
}

void ShuffleBuffer::put_elsewhere(const Rows& rows) {
    try {
        elsewhere_->put(numbers_.held, rows.data);
    } catch (...) {  // the stream has not moved
        in_step_ = false;
        throw;
    }
}

// As `ShuffleBuffer._draw`, but without the copying. What can fail comes first.
void ShuffleBuffer::draw() {
    const uint64_t n = settings_.batch, held = numbers_.held, carried = numbers_.carried;
    std::vector<uint64_t> holes = Draw(settings_.seed, numbers_.batches, held - carried)(n - carried);
    for (uint64_t& hole : holes) hole += carried;
    holes.insert(holes.begin(), carried, 0);
    std::iota(holes.begin(), holes.begin() + static_cast<std::ptrdiff_t>(carried), uint64_t{0});
    Mixed mixed;
    mixed.slab = batches_.get(elsewhere_ ? elsewhere_->slab_bytes() : n * out_row_bytes_);
    mixed.rows.resize(n);
    mixed.undo.reserve(2 * n);
    Rows rows(*readers_, numbers_);
    collect(n, rows);
    const uint64_t filled = rows.data.size(), left = held - (n - filled);
    std::vector<uint64_t> low, empty(holes.begin() + static_cast<std::ptrdiff_t>(filled), holes.end());
    std::sort(empty.begin(), empty.end());
    for (const uint64_t hole : empty) {
        if (hole < left) low.push_back(hole);
    }
    // The last rows move down into the holes that the stream could not fill.
    uint64_t last = left;
    for (const uint64_t hole : low) {
        while (std::binary_search(empty.begin(), empty.end(), last)) ++last;
        mixed.moves.emplace_back(hole, last++);
    }

    Lock lock(mutex_);
    mixed.before = drawn_;
    const auto set = [&](uint64_t where, const Place& place) {
        mixed.undo.emplace_back(where, places_[where].number);
        places_[where] = place;
    };
    constexpr uint64_t SOON = 16;  // how many places ahead are prefetched
    for (uint64_t i = 0; i < n; ++i) {
        if (i + SOON < n) prefetch_row(reinterpret_cast<const uint8_t*>(&places_[holes[i + SOON]]), 1);
        mixed.rows[i] = places_[holes[i]].row;
        if (i < filled) set(holes[i], {rows.data[i], rows.numbers[i]});
    }
    for (const auto& [to, from] : mixed.moves) set(to, places_[from]);
    if (elsewhere_) {
        mixed.rows.swap(rows.data);
        mixed.holes = std::move(holes);
    }
    mixed.n_rows = mixed.rows.size();
    numbers_.held = left, numbers_.next_row = rows.next_row, numbers_.skipped = rows.skipped;
    ++numbers_.batches;
    numbers_.carried = 0;
    drawn_ = numbers_;
    ready_.push_back(std::move(mixed));
    const bool is_done = ready_.back().n_rows == 0;  // there is nothing to copy
    lock.unlock();
    if (is_done) changed_.notify_all();
    rows.data.clear();
}

// The next n finite rows of the pass; fewer at its end. If it throws, the stream does not move.
void ShuffleBuffer::collect(uint64_t n, Rows& rows) {
    uint64_t& next = rows.next_row;
    if (next == files_.rows()) return;
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
            Chunk& chunk = *chunk_;
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
                rows.data.push_back(std::exchange(chunk.rows[next - chunk.first], nullptr));
                rows.numbers.push_back(static_cast<std::int64_t>(next));
            }
        }
    } catch (...) {
        in_step_ = false;
        chunk_.reset();
        throw;
    }
}

}  // namespace saefast::stream
