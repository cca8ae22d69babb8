// A CUDA runtime without a device: device memory is memory of the host, a stream is a thread that does what was put
// into it in order, after random pauses, and kernels are loops. Order between streams is that of events alone, and
// ThreadSanitizer sees it: each stream and each event has a mutex of its own and nothing else is shared.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <random>
#include <set>
#include <string>
#include <thread>

#include "../../../csrc/cuda/launch.h"

namespace {

using Lock = std::unique_lock<std::mutex>;

std::atomic<int> alive{0}, waits{0}, delay{0};
std::atomic<bool> ignore_waits{false};
std::mutex settings;  // for what follows
std::map<std::string, int> failing;
std::set<void*> pinned;

bool fails(const char* function) {
    const Lock lock(settings);
    const auto found = failing.find(function);
    return found != failing.end() && found->second-- <= 0;
}

// A moment in a stream: passed or not yet.
struct Moment {
    std::mutex mutex;
    std::condition_variable changed;
    bool passed = false;
    void pass() {
        const Lock lock(mutex);
        passed = true;
        changed.notify_all();
    }
    void wait() {
        Lock lock(mutex);
        changed.wait(lock, [&] { return passed; });
    }
    bool is_passed() {
        const Lock lock(mutex);
        return passed;
    }
};

}  // namespace

struct CUevent_st {
    std::mutex mutex;
    std::shared_ptr<Moment> moment;  // recorded last
    std::shared_ptr<Moment> get() {
        const Lock lock(mutex);
        return moment;
    }
};

struct CUstream_st {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<std::function<void()>> todo;
    bool ending = false;
    std::thread thread;

    CUstream_st() : thread([this] { work(); }) {}
    ~CUstream_st() {
        {
            const Lock lock(mutex);
            ending = true;
            changed.notify_all();
        }
        thread.join();
    }
    void add(std::function<void()> what) {
        const Lock lock(mutex);
        todo.push_back(std::move(what));
        changed.notify_all();
    }
    void work() {
        std::minstd_rand random(static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(this) >> 4));
        Lock lock(mutex);
        while (true) {
            changed.wait(lock, [&] { return ending || !todo.empty(); });
            if (todo.empty()) return;
            const std::function<void()> what = std::move(todo.front());
            todo.pop_front();
            lock.unlock();
            const int most = delay;
            if (most > 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % static_cast<unsigned>(most)));
            what();
            lock.lock();
        }
    }
    void drain() {
        const auto moment = std::make_shared<Moment>();
        add([moment] { moment->pass(); });
        moment->wait();
    }
};

namespace {

CUstream_st* stream_of(cudaStream_t stream) {
    static CUstream_st* standard = new CUstream_st;  // for the whole program
    return stream ? stream : standard;
}

struct Loop {
    const saefast::cuda::Take& take;
    template <typename Row, typename Out, int N>
    int run() const {
        for (std::uint64_t i = 0; i < take.n; ++i) {
            for (std::uint64_t piece = 0; piece < take.d_in / N; ++piece) {
                saefast::cuda::take_piece<Row, Out, N>(take, i, piece);
            }
        }
        return 0;
    }
};

}  // namespace

namespace saefast::cuda {

cudaError_t launch_take(const Take& take, cudaStream_t stream) {
    if (fails("launch")) return cudaErrorLaunchFailure;
    stream_of(stream)->add([take] { with_types(take, Loop{take}); });
    return cudaSuccess;
}

cudaError_t check_kernels() { return cudaSuccess; }

}  // namespace saefast::cuda

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, fails("cudaGetDeviceCount") ? cudaErrorInvalidValue : cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidValue; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 9, cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorMemoryAllocation ? "out of memory" : error == cudaErrorLaunchFailure ? "launch failure" : "invalid value";
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
    thread_local cudaStreamCaptureMode now = cudaStreamCaptureModeGlobal;
    std::swap(now, *mode);
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() { return stream_of(nullptr)->drain(), cudaSuccess; }

cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned) {
    if (fails("cudaHostAlloc")) return cudaErrorMemoryAllocation;
    *memory = ::operator new(bytes, std::align_val_t{4096});
    const Lock lock(settings);
    pinned.insert(*memory);
    return ++alive, cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
    {
        const Lock lock(settings);
        if (pinned.erase(memory) == 0) return cudaErrorInvalidValue;
    }
    ::operator delete(memory, std::align_val_t{4096});
    return --alive, cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
    *attributes = {pointer ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered, 0, nullptr, nullptr};
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
    if (fails("cudaMemcpyAsync")) return cudaErrorLaunchFailure;
    return stream_of(stream)->add([=] { if (bytes) std::memcpy(to, from, bytes); }), cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
    if (fails("cudaStreamCreateWithFlags")) return cudaErrorMemoryAllocation;
    return *stream = new CUstream_st, ++alive, cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, --alive, cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return ++waits, stream_of(stream)->drain(), cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    if (ignore_waits) return cudaSuccess;
    if (auto moment = event->get()) stream_of(stream)->add([moment] { moment->wait(); });
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    if (fails("cudaEventCreateWithFlags")) return cudaErrorMemoryAllocation;
    return *event = new CUevent_st, ++alive, cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, --alive, cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    const auto moment = std::make_shared<Moment>();
    {
        const Lock lock(event->mutex);
        event->moment = moment;
    }
    return stream_of(stream)->add([moment] { moment->pass(); }), cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
    const auto moment = event->get();
    return !moment || moment->is_passed() ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    if (const auto moment = event->get()) {
        if (!moment->is_passed()) ++waits;
        moment->wait();
    }
    return cudaSuccess;
}

void fake_fail(const char* function, int after) {
    const Lock lock(settings);
    failing.clear();
    if (function) failing[function] = after;
}
void fake_ignore_waits(int ignore) { ignore_waits = ignore != 0; }
void fake_delay(int most_microseconds) { delay = most_microseconds; }
int fake_alive() { return alive; }
int fake_waits() { return waits; }
}
