// The bindings of the streaming buffer.

#include "../bindings.h"

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "bind_parts.h"
#include "boundary.h"

namespace saefast {
namespace {

using namespace stream;

class PyShuffleBuffer final : public Opened {
  public:
    PyShuffleBuffer(const py::list& segments, const Settings& settings, bool direct)
        : Opened(segments, settings, direct), buffer_(std::make_unique<ShuffleBuffer>(files_, settings)) {}

    ~PyShuffleBuffer() override {
        if (is_forked()) {
            static_cast<void>(buffer_.release());  // a fork has no threads to join
            return;
        }
        const py::gil_scoped_release release;
        buffer_.reset();
    }

    py::object next(double timeout) {
        check_process();
        std::shared_ptr<Slab> slab;
        const Status status = wait(timeout, [&](auto patience) {
            const std::lock_guard<std::mutex> alone(consuming_);
            return buffer_->next(patience, slab);
        });
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
        const Status status = wait(timeout, [&](auto patience) {
            const std::lock_guard<std::mutex> alone(consuming_);
            return buffer_->fill(patience);
        });
        if (status == Status::ended) return py::none();
        const std::lock_guard<std::mutex> alone(consuming_);
        if (buffer_->is_ahead()) throw py::value_error("sample: expected no batch taken yet");
        const auto rows = std::min(static_cast<uint64_t>(n), buffer_->numbers().held);
        py::array_t<uint8_t> out({static_cast<py::ssize_t>(rows), static_cast<py::ssize_t>(files_.row_bytes())});
        buffer_->read(rows, out.mutable_data());
        return out;
    }

    uint64_t read_through() {
        check_process();
        try {
            const py::gil_scoped_release release;
            const std::lock_guard<std::mutex> alone(consuming_);
            return buffer_->read_through();
        } catch (const SourceError& error) {
            throw py::value_error(error.what());
        }
    }

    void load(const py::array& row_of, const py::array& rows_any, uint64_t passes, uint64_t next_row,
              uint64_t skipped, uint64_t batches, uint64_t carried) {
        check_process();
        const State state = checked_state(row_of, passes, next_row, skipped, batches, carried);
        const auto rows = checked<uint8_t>(rows_any, "rows", 2);
        const uint64_t given = files_.largest_piece(1) == 0 ? 0 : state.numbers.held;  // rows in memory are there
        const bool fits = static_cast<uint64_t>(rows.shape(0)) == given &&
                          static_cast<std::size_t>(rows.shape(1)) == files_.row_bytes();
        if (!fits) throw py::value_error("rows: expected those of row_of, in the dtype of the source");
        const uint8_t* data = rows.data();
        const py::gil_scoped_release release;
        const std::lock_guard<std::mutex> alone(consuming_);
        buffer_->load(state, data);
    }

  private:
    ShuffleBuffer& mixer() override { return *buffer_; }

    std::unique_ptr<ShuffleBuffer> buffer_;
    std::mutex consuming_;  // of several threads that ask, one at a time; `close` may come at any moment
};

std::unique_ptr<PyShuffleBuffer> make(const py::list& segments, uint64_t d_in, const std::string& dtype,
                                      uint64_t batch, uint64_t capacity, uint64_t seed, bool widen, bool skip,
                                      int readers, int mixers, int ahead, uint64_t ring_bytes, uint64_t chunk_bytes,
                                      bool direct) {
    const Settings settings = checked_settings(d_in, dtype, batch, capacity, seed, widen, skip, readers, mixers, ahead,
                                               ring_bytes, chunk_bytes);
    return std::make_unique<PyShuffleBuffer>(segments, settings, direct);
}

}  // namespace

void bind_stream(py::module_& m) {
    py::module_ s = m.def_submodule("stream", "The streaming activation buffer (saefast.activations.native_buffer wraps it).");
    using Buffer = PyShuffleBuffer;
    py::class_<Buffer>(s, "ShuffleBuffer", "See saefast.activations.native_buffer.NativeBuffer.")
        .def(py::init(&make), py::arg("segments"), py::kw_only(), py::arg("d_in"), py::arg("dtype"),
             py::arg("batch"), py::arg("capacity"), py::arg("seed"), py::arg("widen"), py::arg("skip"),
             py::arg("readers"), py::arg("mixers"), py::arg("ahead"), py::arg("ring_bytes"),
             py::arg("chunk_bytes"), py::arg("direct"))
        .def("next", &Buffer::next, py::arg("timeout"),
             "The next batch [batch, row bytes] uint8, None at the end. ValueError: bad data. TimeoutError.")
        .def("sample", &Buffer::sample, py::arg("n"), py::arg("timeout"),
             "The first rows [up to n, row bytes] uint8, before any batch was taken; None if there are none.")
        .def("read_through", &Buffer::read_through,
             "A pass of the readers alone, before a batch or a sample was asked for: reads, verifies, drops the rows, counts them.")
        .def("numbers", &Buffer::numbers, "Counters as of the last batch.")
        .def("row_of", &Buffer::row_of, "Row numbers held as of the last batch, [held] int64.")
        .def("load", &Buffer::load, py::arg("row_of"), py::arg("rows"), py::kw_only(), py::arg("passes"),
             py::arg("next_row"), py::arg("skipped"), py::arg("batches"), py::arg("carried"),
             "row_of [held] int64 and those rows [held, row bytes] uint8, none of a source in memory.")
        .def("close", &Buffer::close, "Ends the threads, at any moment. The state can still be read.");
    bind_stream_parts(s);
}

}  // namespace saefast
