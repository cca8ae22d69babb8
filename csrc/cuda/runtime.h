// What is used of the CUDA runtime, with owners for its objects, and exceptions for its errors.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <stdexcept>
#include <string>

#include "../stream/slab.h"

namespace saefast::cuda {

struct CudaError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline void require(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    static_cast<void>(cudaGetLastError());  // clears the error, which is reported here
    throw CudaError(std::string("CUDA: ") + what + ": " + cudaGetErrorString(error));
}

// While this object lives, its thread works on `device`, also while another thread records a CUDA graph. A thread of our
// own stays on the device: going back to device 0 would create a context there.
class Current {
  public:
    explicit Current(int device, bool stays = false) : device_(device), stays_(stays) {
        require(cudaGetDevice(&before_), "get device");
        if (before_ != device) require(cudaSetDevice(device), "set device");
        require(cudaThreadExchangeStreamCaptureMode(&mode_), "capture mode");
    }
    ~Current() {
        static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode_));
        if (!stays_ && before_ != device_) static_cast<void>(cudaSetDevice(before_));
    }
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;

  private:
    const int device_;
    const bool stays_;
    int before_ = 0;
    cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

class Event {
  public:
    Event() { require(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming | cudaEventBlockingSync), "event"); }
    ~Event() { static_cast<void>(cudaEventDestroy(event_)); }
    Event(const Event&) = delete;
    Event& operator=(const Event&) = delete;

    void record(cudaStream_t stream) { require(cudaEventRecord(event_, stream), "record"); }
    void hold(cudaStream_t stream) const { require(cudaStreamWaitEvent(stream, event_, 0), "wait"); }  // until it is over
    void wait() const { require(cudaEventSynchronize(event_), "copy or kernel"); }
    bool over() const {
        const cudaError_t error = cudaEventQuery(event_);
        if (error == cudaErrorNotReady) {
            static_cast<void>(cudaGetLastError());
            return false;
        }
        require(error, "copy or kernel");
        return true;
    }

  private:
    cudaEvent_t event_ = nullptr;
};

// A stream that does not wait for the legacy default stream, and that stream does not wait for this one.
class Stream {
  public:
    Stream() { require(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream"); }
    ~Stream() { static_cast<void>(cudaStreamDestroy(stream_)); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    operator cudaStream_t() const { return stream_; }

  private:
    cudaStream_t stream_ = nullptr;
};

// Page-locked memory, because only copies from there run beside everything else. Threads of our own allocate it.
class Pinned final : public stream::Memory {
  public:
    explicit Pinned(int device) : device_(device) {}
    void* take(std::size_t bytes) override {
        const Current current(device_, true);
        void* memory = nullptr;
        const std::string what = "page-locked host memory, " + std::to_string(bytes) + " bytes";
        require(cudaHostAlloc(&memory, bytes, cudaHostAllocPortable), what.c_str());
        return memory;
    }
    void give_back(void* memory) override { static_cast<void>(cudaFreeHost(memory)); }

  private:
    int device_;
};

}  // namespace saefast::cuda
