// The bindings of the streaming buffer. Waits release the GIL and look for Ctrl-C every tenth of a second.

#include "../bindings.h"

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "../checks.h"
#include "buffer.h"
#include "bind_parts.h"

namespace saefast {
namespace {

using namespace stream;
using std::uint64_t;
using std::uint8_t;

// A dict {path, file_bytes, offset, rows} with {meta, parts: [(header, offset, bytes)], sha256} if it is
// verified, or an array of bytes [rows, row_bytes] in memory. Ranges were checked against the file by the caller.
Segment parse_segment(const py::handle& item, std::size_t row_bytes) {
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
    const auto fields = py::cast<py::dict>(item);
    segment.path = py::cast<std::string>(fields["path"]);
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
    uint64_t end = segment.offset + segment.rows * row_bytes;
    bool covered = segment.sha256.empty();
    for (const Part& part : segment.parts) {
        end = std::max(end, part.offset + part.bytes);
        covered |= part.offset == segment.offset && part.bytes == segment.rows * row_bytes;
    }
    if (!covered) throw py::value_error(segment.path + ": expected a checksum that covers its rows");
    if (end > segment.file_bytes) {
        throw py::value_error(segment.path + ": expected at least " + std::to_string(end) + " bytes, found " +
                              std::to_string(segment.file_bytes));
    }
    return segment;
}

std::vector<Segment> parse_segments(const py::list& items, std::size_t row_bytes) {
    std::vector<Segment> segments;
    for (const auto& item : items) segments.push_back(parse_segment(item, row_bytes));
    return segments;
}

class PyShuffleBuffer {
  public:
    PyShuffleBuffer(const py::list& segments, const Settings& settings, bool direct)
        : keep_(segments),
          settings_(settings),
          pid_(getpid()),
          files_(parse_segments(segments, settings.d_in * size_of(settings.dtype)), settings.d_in,
                 settings.dtype, direct),
          buffer_(std::make_unique<ShuffleBuffer>(files_, settings)) {}

    ~PyShuffleBuffer() {
        if (getpid() != pid_) {
            static_cast<void>(buffer_.release());  // a fork has no threads to join
            return;
        }
        const py::gil_scoped_release release;
        buffer_.reset();
    }

    py::object next(double timeout) {
        check_process();
        std::shared_ptr<Slab> slab;
        const Status status = wait(timeout, [&](auto patience) { return buffer_->next(patience, slab); });
        if (status == Status::ended) return py::none();
        auto* owner = new std::shared_ptr<Slab>(std::move(slab));
        const py::capsule capsule(owner, [](void* p) { delete static_cast<std::shared_ptr<Slab>*>(p); });
        const auto shape = std::vector<py::ssize_t>{static_cast<py::ssize_t>(settings_.batch),
                                                    static_cast<py::ssize_t>(buffer_->out_row_bytes())};
        return py::array_t<uint8_t>(shape, (*owner)->data(), capsule);
    }

    py::object sample(py::ssize_t n, double timeout) {
        check_process();
        if (n < 0) throw py::value_error("n: expected 0 or more, got " + std::to_string(n));
        if (buffer_->is_ahead()) throw py::value_error("sample: expected no batch taken yet");
        const Status status = wait(timeout, [&](auto patience) { return buffer_->fill(patience); });
        if (status == Status::ended) return py::none();
        const auto rows = std::min(static_cast<uint64_t>(n), buffer_->numbers().held);
        py::array_t<uint8_t> out({static_cast<py::ssize_t>(rows), static_cast<py::ssize_t>(files_.row_bytes())});
        buffer_->read(rows, out.mutable_data());
        return out;
    }

    uint64_t read_through() {
        check_process();
        if (buffer_->is_ahead()) throw py::value_error("read_through: expected no batch taken yet");
        try {
            const py::gil_scoped_release release;
            return buffer_->read_through();
        } catch (const SourceError& error) {
            throw py::value_error(error.what());
        }
    }

    py::dict numbers() {
        const Numbers n = buffer_->numbers();
        py::dict out;
        out["held"] = n.held, out["passes"] = n.passes, out["next_row"] = n.next_row;
        out["skipped"] = n.skipped, out["batches"] = n.batches;
        return out;
    }

    py::array_t<std::int64_t> row_of() {
        const State state = buffer_->state();
        return py::array_t<std::int64_t>(static_cast<py::ssize_t>(state.row_of.size()), state.row_of.data());
    }

    void load(const py::array& row_of_any, const py::array& rows_any, uint64_t passes, uint64_t next_row,
              uint64_t skipped, uint64_t batches) {
        check_process();
        const auto row_of = checked<std::int64_t>(row_of_any, "row_of", 1);
        const auto rows = checked<uint8_t>(rows_any, "rows", 2);
        const auto held = static_cast<uint64_t>(row_of.shape(0));
        const bool in_memory = files_.largest_piece(1) == 0;
        const bool fits = held <= std::min(settings_.capacity, files_.rows() + settings_.batch) &&
                          static_cast<uint64_t>(rows.shape(0)) == (in_memory ? 0 : held) &&
                          static_cast<std::size_t>(rows.shape(1)) == files_.row_bytes() &&
                          next_row <= files_.rows();
        if (!fits) throw py::value_error("row_of: expected the state of a buffer of this size over this source");
        const State state{{held, passes, next_row, skipped, batches}, {row_of.data(), row_of.data() + held}};
        for (const std::int64_t row : state.row_of) {
            if (row < 0 || static_cast<uint64_t>(row) >= files_.rows()) {
                throw py::value_error("row_of: expected rows below " + std::to_string(files_.rows()) + ", got " +
                                      std::to_string(row));
            }
        }
        const uint8_t* data = rows.data();
        const py::gil_scoped_release release;
        buffer_->load(state, data);
    }

    void close() {
        if (getpid() != pid_) return;
        const py::gil_scoped_release release;
        buffer_->close();
    }

  private:
    void check_process() const {
        if (getpid() != pid_) {
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
            if (std::chrono::duration<double>(Clock::now() - begin).count() > timeout) {
                PyErr_SetString(PyExc_TimeoutError, "");
                throw py::error_already_set();
            }
        }
    }

    py::list keep_;  // memory that segments point to
    Settings settings_;
    pid_t pid_;
    Files files_;
    std::unique_ptr<ShuffleBuffer> buffer_;
};

std::unique_ptr<PyShuffleBuffer> make(const py::list& segments, uint64_t d_in, const std::string& dtype,
                                      uint64_t batch, uint64_t capacity, uint64_t seed, bool widen, bool skip,
                                      int readers, int mixers, int ahead, uint64_t ring_bytes, uint64_t chunk_bytes,
                                      bool direct) {
    if (d_in < 1 || batch < 1 || capacity < batch || readers < 1 || mixers < 1 || ahead < 1 || chunk_bytes < 1) {
        throw py::value_error("stream: expected positive sizes and capacity >= batch");
    }
    const Settings settings{batch, capacity, seed,      d_in,  parse_dtype(dtype), widen,
                            skip,  readers,  mixers, ahead, ring_bytes,         chunk_bytes};
    return std::make_unique<PyShuffleBuffer>(segments, settings, direct);
}

}  // namespace

void bind_stream(py::module_& m) {
    py::module_ s = m.def_submodule("stream", "The streaming activation buffer (saefast.stream wraps it).");
    using Buffer = PyShuffleBuffer;
    py::class_<Buffer>(s, "ShuffleBuffer", "See saefast.stream.NativeBuffer.")
        .def(py::init(&make), py::arg("segments"), py::kw_only(), py::arg("d_in"), py::arg("dtype"),
             py::arg("batch"), py::arg("capacity"), py::arg("seed"), py::arg("widen"), py::arg("skip"),
             py::arg("readers"), py::arg("mixers"), py::arg("ahead"), py::arg("ring_bytes"),
             py::arg("chunk_bytes"), py::arg("direct"))
        .def("next", &Buffer::next, py::arg("timeout"),
             "The next batch [batch, row bytes] uint8, None at the end. ValueError: bad data. TimeoutError.")
        .def("sample", &Buffer::sample, py::arg("n"), py::arg("timeout"),
             "The first rows [up to n, row bytes] uint8, before any batch was taken; None if there are none.")
        .def("read_through", &Buffer::read_through,
             "A pass of the readers alone, before any batch was taken: reads, verifies, drops the rows, counts them.")
        .def("numbers", &Buffer::numbers, "Counters as of the last batch.")
        .def("row_of", &Buffer::row_of, "Row numbers held as of the last batch, [held] int64.")
        .def("load", &Buffer::load, py::arg("row_of"), py::arg("rows"), py::kw_only(), py::arg("passes"),
             py::arg("next_row"), py::arg("skipped"), py::arg("batches"),
             "row_of [held] int64 and those rows [held, row bytes] uint8, none of a source in memory.")
        .def("close", &Buffer::close, "Ends the threads, at any moment. The state can still be read.");
    bind_stream_parts(s);
}

}  // namespace saefast
