// What the bindings of the shuffle buffers on the host and on a device share. Waits release the GIL and look for
// Ctrl-C every tenth of a second.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <string>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include "../checks.h"
#include "bind_parts.h"
#include "buffer.h"

namespace saefast::stream {

using std::uint64_t;
using std::uint8_t;

constexpr uint64_t MOST_BYTES = uint64_t{1} << 50;  // of anything: sums and products of a few have room in 64 bits

// The segment of a file. Nothing that its numbers add up to may wrap around.
inline Segment parse_file(const py::handle& item, std::size_t row_bytes) {
    Segment segment{};
    const auto fields = py::cast<py::dict>(item);
    segment.path = py::cast<std::string>(fields["path"]);
    if (segment.path.find('\0') != std::string::npos) throw py::value_error("path: expected one without a zero byte");
    segment.file_bytes = py::cast<uint64_t>(fields["file_bytes"]);
    segment.offset = py::cast<uint64_t>(fields["offset"]);
    segment.rows = py::cast<uint64_t>(fields["rows"]);
    if (fields.contains("sha256")) {
        segment.sha256 = py::cast<std::string>(fields["sha256"]);
        segment.meta = py::cast<std::string>(fields["meta"]);
        for (const auto& part : py::cast<py::list>(fields["parts"])) {
            auto [header, offset, bytes] = py::cast<std::tuple<std::string, uint64_t, uint64_t>>(part);
            segment.parts.push_back({std::move(header), offset, bytes});
        }
    }
    const auto within = [&](uint64_t offset, uint64_t bytes) {
        return offset <= segment.file_bytes && bytes <= segment.file_bytes - offset;
    };
    bool fits = segment.file_bytes <= MOST_BYTES;
    fits = fits && segment.rows <= segment.file_bytes / row_bytes && within(segment.offset, segment.rows * row_bytes);
    for (const Part& part : segment.parts) fits = fits && within(part.offset, part.bytes);
    bool covered = segment.sha256.empty();
    for (const Part& part : segment.parts) {
        covered |= part.offset == segment.offset && part.bytes == segment.rows * row_bytes;
    }
    if (!covered) throw py::value_error(segment.path + ": expected a checksum that covers its rows");
    if (!fits) {
        throw py::value_error(segment.path + ": expected rows and parts that lie in its " +
                              std::to_string(segment.file_bytes) + " bytes");
    }
    return segment;
}

// A dict {path, file_bytes, offset, rows} with {meta, parts: [(header, offset, bytes)], sha256} if it is
// verified, or an array of bytes [rows, row_bytes] in memory.
inline Segment parse_segment(const py::handle& item, std::size_t row_bytes) {
    Segment segment{};
    if (py::isinstance<py::array>(item)) {
        const auto rows = checked<uint8_t>(py::reinterpret_borrow<py::array>(item), "rows", 2);
        if (static_cast<std::size_t>(rows.shape(1)) != row_bytes) {
            throw py::value_error("rows: expected " + std::to_string(row_bytes) + " bytes in a row, got " +
                                  std::to_string(rows.shape(1)));
        }
        segment.rows = static_cast<uint64_t>(rows.shape(0));
        segment.memory = rows.data();
        return segment;
    }
    try {
        return parse_file(item, row_bytes);
    } catch (const py::cast_error&) {
        throw py::type_error("segments: expected a dict {path, file_bytes, offset, rows}, each of its kind, or an array");
    } catch (const py::error_already_set& error) {
        if (!error.matches(PyExc_KeyError)) throw;
        throw py::value_error("segments: expected {path, file_bytes, offset, rows}, one is missing");
    }
}

inline std::vector<Segment> parse_segments(const py::list& items, std::size_t row_bytes) {
    std::vector<Segment> segments;
    for (const auto& item : items) segments.push_back(parse_segment(item, row_bytes));
    return segments;
}

// An opened source and its buffer, which belongs to the process that opened it.
class Opened {
  public:
    Opened(const py::list& segments, const Settings& settings, bool direct)
        : keep_(segments),
          settings_(settings),
          pid_(getpid()),
          files_(parse_segments(segments, settings.d_in * size_of(settings.dtype)), settings.d_in,
                 settings.dtype, direct) {}
    virtual ~Opened() = default;

    py::dict numbers() {
        const Numbers n = mixer().numbers();
        py::dict out;
        out["held"] = n.held, out["passes"] = n.passes, out["next_row"] = n.next_row;
        out["skipped"] = n.skipped, out["batches"] = n.batches, out["carried"] = n.carried;
        return out;
    }

    py::array_t<std::int64_t> row_of() {
        const State state = mixer().state();
        return py::array_t<std::int64_t>(static_cast<py::ssize_t>(state.row_of.size()), state.row_of.data());
    }

    void close() {
        if (is_forked()) return;
        const py::gil_scoped_release release;
        mixer().close();
    }

  protected:
    virtual ShuffleBuffer& mixer() = 0;

    State checked_state(const py::array& row_of_any, uint64_t passes, uint64_t next_row, uint64_t skipped,
                        uint64_t batches, uint64_t carried) const {
        const auto row_of = checked<std::int64_t>(row_of_any, "row_of", 1);
        const auto held = static_cast<uint64_t>(row_of.shape(0));
        if (held > std::min(settings_.capacity, files_.rows() + settings_.batch) || next_row > files_.rows()) {
            throw py::value_error("row_of: expected the state of a buffer of this size over this source");
        }
        if (carried > held || carried >= settings_.batch) {
            throw py::value_error("carried: expected fewer rows than a batch has, of those in row_of, got " +
                                  std::to_string(carried));
        }
        State state{{held, passes, next_row, skipped, batches, carried}, {row_of.data(), row_of.data() + held}};
        for (const std::int64_t row : state.row_of) {
            if (row < 0 || static_cast<uint64_t>(row) >= files_.rows()) {
                throw py::value_error("row_of: expected rows below " + std::to_string(files_.rows()) + ", got " +
                                      std::to_string(row));
            }
        }
        return state;
    }

    bool is_forked() const { return getpid() != pid_; }

    void check_process() const {
        if (is_forked()) {
            throw py::value_error("source: expected the process that opened the buffer, this one was forked from it");
        }
    }

    template <typename Try>
    Status wait(double timeout, Try attempt) {
        using Clock = std::chrono::steady_clock;
        const auto begin = Clock::now();
        while (true) {
            Status status;
            try {
                const py::gil_scoped_release release;
                status = attempt(std::chrono::milliseconds(100));
            } catch (const SourceError& error) {
                throw py::value_error(error.what());
            } catch (const std::system_error& error) {
                throw py::value_error(std::string("readers: no more threads can be started (") + error.what() + ")");
            }
            if (status != Status::waiting) return status;
            if (PyErr_CheckSignals() != 0) throw py::error_already_set();
            if (!(std::chrono::duration<double>(Clock::now() - begin).count() <= timeout)) {  // a timeout may be NaN
                PyErr_SetString(PyExc_TimeoutError, "");
                throw py::error_already_set();
            }
        }
    }

    py::list keep_;  // memory that segments point to
    const Settings settings_;
    const pid_t pid_;
    Files files_;
};

inline Settings checked_settings(uint64_t d_in, const std::string& dtype, uint64_t batch, uint64_t capacity,
                                 uint64_t seed, bool widen, bool skip, int readers, int mixers, int ahead,
                                 uint64_t ring_bytes, uint64_t chunk_bytes) {
    if (d_in < 1 || batch < 1 || capacity < batch || readers < 1 || mixers < 1 || ahead < 1 || chunk_bytes < 1) {
        throw py::value_error("stream: expected positive sizes and capacity >= batch");
    }
    if (readers > 64 || mixers > 64) throw py::value_error("stream: expected at most 64 readers and mixers");
    if (d_in > MOST_BYTES / 8 || batch > MOST_BYTES / (8 * d_in)) {  // more capacity than there are rows is never used
        throw py::value_error("batch: expected rows of " + std::to_string(d_in) + " numbers that fit into memory, got " +
                              std::to_string(batch));
    }
    if (ring_bytes > MOST_BYTES || chunk_bytes > MOST_BYTES) {
        throw py::value_error("ring_bytes, chunk_bytes: expected what fits into memory, got " +
                              std::to_string(std::max(ring_bytes, chunk_bytes)));
    }
    const Settings settings{batch, capacity, seed,      d_in,  parse_dtype(dtype), widen,
                            skip,  readers,  mixers, ahead, ring_bytes,         chunk_bytes};
    return settings;
}

}  // namespace saefast::stream
