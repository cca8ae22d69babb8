// Exercises the buffer on a device under a sanitizer, with fake_cuda.cpp as the device: batches against those of the
// buffer on the host, bit for bit, states, failures, shutdown at any moment. With "ignore" as its second argument
// streams do not wait for each other, which must be found out.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "../../csrc/cuda/device_buffer.h"

using namespace saefast;
using stream::Status;
using Patience = std::chrono::milliseconds;

static void require(bool ok, const char* what) {
    if (ok) return;
    std::fprintf(stderr, "failed: %s\n", what);
    std::exit(1);
}

constexpr std::uint64_t D_IN = 8, BATCH = 8, AHEAD = 3;

// [n, D_IN] fp16, every row another one.
static std::vector<std::uint16_t> make_rows(std::uint64_t n) {
    std::vector<std::uint16_t> rows(n * D_IN);
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<std::uint16_t>(i * 7 % 0x7C00);
    return rows;
}

struct Both {
    std::vector<std::uint16_t> rows;
    stream::Settings settings;
    stream::Files files;
    stream::ShuffleBuffer host;
    std::vector<std::uint16_t> places;
    std::vector<std::uint8_t> staging;
    cuda::DeviceBuffer device;

    Both(std::uint64_t n, std::uint64_t capacity, const std::string& folder)
        : rows(make_rows(n)),
          settings{BATCH, capacity, 5, D_IN, stream::DType::f16, false, false, 3, 2, AHEAD, 2000, 64},
          files(segments(folder), D_IN, stream::DType::f16, false),
          host(files, settings),
          places(std::min(capacity, n + BATCH) * D_IN),
          staging((AHEAD + 1) * cuda::DeviceBuffer::stage_bytes(BATCH, 2 * D_IN) + 16),
          device(files, settings, {0, reinterpret_cast<std::uint8_t*>(places.data()), aligned(staging.data())}) {}

    static std::uint8_t* aligned(std::uint8_t* p) { return p + (16 - reinterpret_cast<std::uintptr_t>(p) % 16) % 16; }

    // A file of all rows, or (no folder) where they are.
    std::vector<stream::Segment> segments(const std::string& folder) const {
        stream::Segment segment{};
        segment.rows = rows.size() / D_IN;
        segment.memory = reinterpret_cast<const std::uint8_t*>(rows.data());
        if (!folder.empty()) {
            segment.memory = nullptr;
            segment.path = folder + "/rows", segment.file_bytes = 2 * rows.size();
            std::FILE* file = std::fopen(segment.path.c_str(), "wb");
            std::fwrite(rows.data(), 2, rows.size(), file);
            std::fclose(file);
        }
        return {segment};
    }

    std::vector<std::uint16_t> from_host() {
        std::shared_ptr<stream::Slab> slab;
        while (host.next(Patience(100), slab) == Status::waiting) {}
        std::vector<std::uint16_t> batch(BATCH * D_IN);
        std::memcpy(batch.data(), slab->data(), 2 * batch.size());
        return batch;
    }

    // Puts the next batch into `out` in `s`.
    void to(std::vector<std::uint16_t>& out, cudaStream_t s) {
        out.resize(BATCH * D_IN);
        const cuda::Output output{reinterpret_cast<std::uint8_t*>(out.data()), cuda::Number::f16, nullptr, s};
        while (device.next(Patience(100), output) == Status::waiting) {}
    }

    void same_state(stream::State (*of)(stream::ShuffleBuffer&)) {
        const stream::State a = of(host), b = of(device.mixer());
        require(a.row_of == b.row_of && a.numbers.batches == b.numbers.batches &&
                    a.numbers.next_row == b.numbers.next_row && a.numbers.passes == b.numbers.passes,
                "the same state");
    }
};

static stream::State state_of(stream::ShuffleBuffer& buffer) { return buffer.state(); }

static void batches(std::uint64_t n, std::uint64_t capacity, const std::string& folder, bool two_streams) {
    Both both(n, capacity, folder);
    cuda::Stream a, b;
    std::vector<std::vector<std::uint16_t>> want, got(60), written;
    for (std::size_t i = 0; i < got.size(); ++i) {
        want.push_back(both.from_host());
        both.to(got[i], two_streams && i % 3 == 1 ? b : a);
        if (i % 7 == 3) both.same_state(state_of);
        if (i % 5 == 3) {  // restored: the rows are written in a stream
            const stream::State state = both.device.mixer().state();
            both.device.pause(a);
            cudaStreamSynchronize(a);
            std::fill(both.places.begin(), both.places.end(), std::uint16_t{0});
            std::vector<std::uint16_t>& held = written.emplace_back(state.row_of.size() * D_IN);
            for (std::size_t j = 0; j < held.size(); ++j) {
                held[j] = both.rows[static_cast<std::size_t>(state.row_of[j / D_IN]) * D_IN + j % D_IN];
            }
            cudaMemcpyAsync(both.places.data(), held.data(), 2 * held.size(), cudaMemcpyHostToDevice, a);
            both.device.load(state, a);
        }
    }
    cudaStreamSynchronize(a);
    cudaStreamSynchronize(b);
    for (std::size_t i = 0; i < got.size(); ++i) require(want[i] == got[i], "the same batches");
}

static void no_waiting() {
    Both both(1000, 64, "");
    cuda::Stream s;
    std::vector<std::uint16_t> out;
    const auto some = [&] {
        for (int i = 0; i < 20; ++i) {
            both.to(out, s);
            std::this_thread::sleep_for(Patience(2));  // a step: the device keeps up
        }
    };
    some();
    const int before = fake_waits();
    some();
    require(fake_waits() == before, "the host does not wait for the device");
    cudaStreamSynchronize(s);
}

static void failures(const std::string& folder) {
    for (const char* function : {"cudaHostAlloc", "cudaMemcpyAsync", "launch", "cudaStreamCreateWithFlags",
                                 "cudaEventCreateWithFlags"}) {
        for (int after = 0; after < 12; ++after) {
            bool failed = false;
            fake_fail(function, after);
            try {
                Both both(200, 64, after % 2 ? folder : "");
                cuda::Stream s;
                std::vector<std::vector<std::uint16_t>> out(40);
                try {
                    for (auto& batch : out) both.to(batch, s);
                } catch (const cuda::CudaError& error) {
                    failed = std::strstr(error.what(), "CUDA: ") != nullptr;
                    both.device.mixer().state();  // can be saved
                }
                cudaStreamSynchronize(s);
            } catch (const cuda::CudaError&) {  // in the constructor
                failed = true;
            }
            fake_fail(nullptr, 0);
            const bool is_per_batch = std::strcmp(function, "cudaMemcpyAsync") == 0 || std::strcmp(function, "launch") == 0;
            require(failed || (after > 0 && !is_per_batch), function);  // other things are taken once, at the start
        }
    }
    require(fake_alive() == 0, "failures leave nothing behind");
}

int main(int n_arguments, char** arguments) {
    const std::string folder = arguments[1];
    fake_delay(300);
    if (n_arguments > 2) {
        fake_ignore_waits(1);
        batches(200, 64, folder, true);
        std::puts("nothing was noticed");
        return 0;
    }
    for (const std::string& where : {folder, std::string()}) {
        for (const bool two_streams : {false, true}) {
            batches(1000, 64, where, two_streams);  // the ring turns
            batches(67, 32, where, two_streams);    // passes end, rows move
            batches(13, 40, where, two_streams);    // hardly more than a batch
        }
    }
    require(fake_alive() == 0, "nothing is left");
    no_waiting();
    for (int round = 0; round < 100; ++round) {  // closed by the consumer, by another thread, by nobody
        cuda::Stream s;
        std::vector<std::vector<std::uint16_t>> out(static_cast<std::size_t>(round % 7));
        {
            Both both(200, 64, round % 2 ? folder : "");
            std::thread other;
            if (round % 3 == 2) other = std::thread([&] { both.device.mixer().close(); });
            try {
                for (auto& batch : out) both.to(batch, s);
            } catch (const stream::SourceError&) {  // closed
            }
            if (round % 3 == 1) both.device.mixer().close();
            if (other.joinable()) other.join();
            both.device.mixer().state();
        }  // kernels may be running
        cudaStreamSynchronize(s);
    }
    require(fake_alive() == 0, "closing leaves nothing behind");
    fake_delay(0);
    failures(folder);
    std::puts("ok");
}
