// saefast._cuda. Memory on the device comes as addresses; what the CUDA runtime can say about them is checked here.

#include <cuda_runtime_api.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../stream/boundary.h"
#include "device_buffer.h"

namespace saefast::cuda {
namespace {

using stream::ShuffleBuffer;
using stream::Status;
using std::uint64_t;
using std::uint8_t;
using std::uintptr_t;

template <typename T>
T* device_memory(uintptr_t address, int device, std::size_t alignment, const std::string& name) {
    cudaPointerAttributes found{};
    const auto* pointer = reinterpret_cast<const void*>(address);
    const bool known = cudaPointerGetAttributes(&found, pointer) == cudaSuccess;
    const bool ours = known && found.device == device &&
                      (found.type == cudaMemoryTypeDevice || found.type == cudaMemoryTypeManaged);
    if (!ours) throw py::value_error(name + ": expected memory of CUDA device " + std::to_string(device));
    if (address % alignment != 0) {
        throw py::value_error(name + ": expected an address that " + std::to_string(alignment) + " divides");
    }
    return reinterpret_cast<T*>(address);
}

Number parse_number(const std::string& name) {
    if (name == "float16") return Number::f16;
    if (name == "bfloat16") return Number::bf16;
    if (name == "float32") return Number::f32;
    throw py::value_error("dtype: expected float16, bfloat16 or float32, got '" + name + "'");
}

uint64_t places_of(const stream::Settings& settings, uint64_t rows) {
    return std::min(settings.capacity, rows + settings.batch);
}

class PyDeviceBuffer final : public stream::Opened {
  public:
    // places, staging: (address, bytes). `memory`: what owns them.
    using Memory = std::pair<uintptr_t, uint64_t>;
    PyDeviceBuffer(const py::list& segments, const stream::Settings& settings, bool direct, int device,
                   const Memory& places, const Memory& staging, py::object memory)
        : Opened(segments, settings, direct), device_(device), memory_(std::move(memory)) {
        if (places_of(settings, files_.rows()) >= uint64_t{1} << 31 || settings.batch >= uint64_t{1} << 31) {
            throw py::value_error("capacity: expected less than 2^31 rows on a device");
        }
        const uint64_t place_bytes = places_of(settings, files_.rows()) * files_.row_bytes();
        const uint64_t stage_bytes = DeviceBuffer::stage_bytes(settings.batch, files_.row_bytes());
        check_bytes("places", places.second, place_bytes);
        check_bytes("staging", staging.second, stage_bytes * (static_cast<uint64_t>(settings.ahead) + 1));
        const Room room{device, device_memory<uint8_t>(places.first, device, 16, "places"),
                        device_memory<uint8_t>(staging.first, device, 16, "staging")};
        buffer_ = std::make_unique<DeviceBuffer>(files_, settings, room);
    }

    ~PyDeviceBuffer() override {
        if (is_forked()) {
            static_cast<void>(buffer_.release());  // a fork has neither the threads nor the device
            static_cast<void>(memory_.release());
            return;
        }
        const py::gil_scoped_release release;
        buffer_.reset();
    }

    bool next(uintptr_t out, const std::vector<uint64_t>& shape, const std::string& dtype, uintptr_t b_dec,
              uintptr_t stream, double timeout) {
        check_process();
        if (shape != std::vector<uint64_t>{settings_.batch, settings_.d_in}) {
            throw py::value_error("out: expected shape [" + std::to_string(settings_.batch) + ", " +
                                  std::to_string(settings_.d_in) + "]");
        }
        const Number type = parse_number(dtype);
        const Output output{device_memory<uint8_t>(out, device_, type == Number::f32 ? 4 : 2, "out"), type,
                            b_dec ? device_memory<const float>(b_dec, device_, 4, "b_dec") : nullptr,
                            stream_of(stream)};
        return wait(timeout, [&](auto patience) { return buffer_->next(patience, output); }) == Status::ready;
    }

    uint64_t fill(uintptr_t stream, double timeout) {
        check_process();
        if (mixer().is_ahead()) throw py::value_error("sample: expected no batch taken yet");
        const Status status =
            wait(timeout, [&](auto patience) { return buffer_->fill(patience, stream_of(stream)); });
        return status == Status::ended ? 0 : mixer().numbers().held;
    }

    void pause(uintptr_t stream) {
        check_process();
        const py::gil_scoped_release release;
        buffer_->pause(stream_of(stream));
    }

    void load(const py::array& row_of, uintptr_t stream, uint64_t passes, uint64_t next_row, uint64_t skipped,
              uint64_t batches, uint64_t carried) {
        check_process();
        const stream::State state = checked_state(row_of, passes, next_row, skipped, batches, carried);
        buffer_->load(state, stream_of(stream));
    }

  private:
    ShuffleBuffer& mixer() override { return buffer_->mixer(); }

    static cudaStream_t stream_of(uintptr_t handle) { return reinterpret_cast<cudaStream_t>(handle); }

    static void check_bytes(const std::string& name, uint64_t got, uint64_t want) {
        if (got < want) {
            throw py::value_error(name + ": expected " + std::to_string(want) + " bytes, got " + std::to_string(got));
        }
    }

    const int device_;
    py::object memory_;  // goes after the buffer
    std::unique_ptr<DeviceBuffer> buffer_;
};

std::unique_ptr<PyDeviceBuffer> make(const py::list& segments, int device, const PyDeviceBuffer::Memory& places,
                                     const PyDeviceBuffer::Memory& staging, py::object memory, uint64_t d_in,
                                     const std::string& dtype, uint64_t batch, uint64_t capacity, uint64_t seed,
                                     bool skip, int readers, int mixers, int ahead, uint64_t ring_bytes,
                                     uint64_t chunk_bytes, bool direct) {
    const stream::Settings settings = stream::checked_settings(d_in, dtype, batch, capacity, seed, false, skip, readers,
                                                               mixers, ahead, ring_bytes, chunk_bytes);
    return std::make_unique<PyDeviceBuffer>(segments, settings, direct, device, places, staging, std::move(memory));
}

// Why `device` cannot be used; empty if it can.
std::string unusable(int device) {
    int n = 0, major = 0;
    try {
        require(cudaGetDeviceCount(&n), "driver");
        if (device < 0 || device >= n) return "there is no CUDA device " + std::to_string(device);
        require(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "compute capability");
        const Current current(device);
        require(check_kernels(), "the kernels");
    } catch (const CudaError& error) {
        return error.what();
    }
    return "";
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "The streaming buffer on a CUDA device (saefast.activations.device_buffer wraps it).";
    using Buffer = PyDeviceBuffer;
    py::class_<Buffer>(m, "DeviceBuffer", "See saefast.activations.device_buffer.DeviceBuffer.")
        .def(py::init(&make), py::arg("segments"), py::kw_only(), py::arg("device"), py::arg("places"),
             py::arg("staging"), py::arg("memory"), py::arg("d_in"), py::arg("dtype"), py::arg("batch"),
             py::arg("capacity"), py::arg("seed"), py::arg("skip"), py::arg("readers"), py::arg("mixers"),
             py::arg("ahead"), py::arg("ring_bytes"), py::arg("chunk_bytes"), py::arg("direct"))
        .def("next", &Buffer::next, py::arg("out"), py::arg("shape"), py::arg("dtype"), py::arg("b_dec"),
             py::arg("stream"), py::arg("timeout"),
             "Puts the kernel that writes the next batch to `out` into `stream`; False at the end. b_dec: fp32, or 0.")
        .def("fill", &Buffer::fill, py::arg("stream"), py::arg("timeout"),
             "Fills the places before any batch was taken, for what comes in `stream`; the number of rows held.")
        .def("numbers", &Buffer::numbers, "Counters as of the last batch.")
        .def("row_of", &Buffer::row_of, "Row numbers held as of the last batch, [held] int64.")
        .def("pause", &Buffer::pause, py::arg("stream"), "Ends the threads, for rows to be written to the places.")
        .def("load", &Buffer::load, py::arg("row_of"), py::arg("stream"), py::kw_only(), py::arg("passes"),
             py::arg("next_row"), py::arg("skipped"), py::arg("batches"), py::arg("carried"),
             "After `pause`, and after the rows were written in `stream`.")
        .def("close", &Buffer::close, "Ends the threads, at any moment. The state can still be read.");
    m.def("unusable", &unusable, py::arg("device"), "Why the device cannot be used; empty if it can.");
    m.def("stage_bytes", &DeviceBuffer::stage_bytes, py::arg("batch"), py::arg("row_bytes"));
}

}  // namespace saefast::cuda
