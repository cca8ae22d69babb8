#include "device_buffer.h"

#include <algorithm>
#include <cstring>
#include <thread>

namespace saefast::cuda {

using std::size_t;
using std::uint64_t;
using std::uint8_t;
using stream::Mixed;
using stream::Status;
using Milliseconds = std::chrono::milliseconds;

namespace {

constexpr uint64_t PUT_BYTES = 16 << 20;  // of rows that go to their places at once while the buffer fills

size_t round_up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }
size_t plan_at(uint64_t batch, size_t row_bytes) { return round_up(batch * row_bytes, 4); }

Number number_of(stream::DType dtype) {
    if (dtype == stream::DType::f64) throw stream::SourceError("dtype: expected at most 32 bits, got float64");
    return dtype == stream::DType::f16    ? Number::f16
           : dtype == stream::DType::bf16 ? Number::bf16
                                          : Number::f32;
}

}  // namespace

// The rows that come [batch, row_bytes]; `Take::holes` and `Take::sources`.
size_t DeviceBuffer::stage_bytes(uint64_t batch, size_t row_bytes) {
    return round_up(plan_at(batch, row_bytes) + 2 * batch * sizeof(std::int32_t), 256);
}

DeviceBuffer::DeviceBuffer(stream::Files& files, const stream::Settings& settings, const Room& room)
    : ending_(room.device),
      settings_(settings),
      room_(room),
      row_bytes_(files.row_bytes()),
      stage_bytes_(stage_bytes(settings.batch, files.row_bytes())),
      pinned_(room.device),
      stages_(static_cast<size_t>(settings.ahead) + 1) {
    static_cast<void>(number_of(settings.dtype));
    buffer_ = std::make_unique<stream::ShuffleBuffer>(files, settings, this);
    ending_.reset();
}

DeviceBuffer::~DeviceBuffer() {
    buffer_->close();
    try {
        ending_.emplace(room_.device);
        static_cast<void>(cudaStreamSynchronize(copies_));
        if (used_) used_->wait();
    } catch (const CudaError&) {  // nothing runs any more then
    }
}

uint8_t* DeviceBuffer::stage_data(const Stage& stage) const {
    return room_.staging + static_cast<size_t>(&stage - stages_.data()) * stage_bytes_;
}

void DeviceBuffer::put(uint64_t first, const std::vector<const uint8_t*>& rows) {
    const Current current(room_.device, true);
    const uint64_t most = std::max<uint64_t>(1, PUT_BYTES / row_bytes_);
    for (uint64_t begin = 0; begin < rows.size(); begin += most) {
        const uint64_t n = std::min<uint64_t>(most, rows.size() - begin);
        Put& put = puts_[turn_++ % 2];
        if (!put.slab) put.slab.emplace(most * row_bytes_, &pinned_);
        put.copied.wait();
        stream::gather_rows(rows.data() + begin, n, settings_.d_in, settings_.dtype, false, put.slab->data());
        if (used_) used_->hold(copies_);
        require(cudaMemcpyAsync(room_.places + (first + begin) * row_bytes_, put.slab->data(), n * row_bytes_,
                                cudaMemcpyHostToDevice, copies_),
                "copy to the buffer");
        put.copied.record(copies_);
    }
}

// Puts the copy to the batch's stage into the copy stream, once; false while the stage is still being copied to.
bool DeviceBuffer::upload(const Mixed& mixed) {
    Stage& stage = stage_of(mixed);
    if (stage.next == mixed.before.batches + 1) return true;
    if (stage.host && !stage.copied.over()) return false;
    uint8_t* data = mixed.slab->data();
    const uint64_t n = settings_.batch;
    auto* holes = reinterpret_cast<std::int32_t*>(data + plan_at(n, row_bytes_));
    std::int32_t* sources = holes + n;
    auto move = mixed.moves.begin();  // in the order of the holes that `empty` had: ascending
    std::vector<std::pair<uint64_t, uint64_t>> empty;  // (hole, which one it is) that no row of the stream comes to
    for (uint64_t i = 0; i < n; ++i) {
        holes[i] = static_cast<std::int32_t>(mixed.holes[i]);
        sources[i] = i < mixed.n_rows ? COMES : NOTHING;
        if (i >= mixed.n_rows) empty.emplace_back(mixed.holes[i], i);
    }
    std::sort(empty.begin(), empty.end());
    for (const auto& [hole, i] : empty) {
        if (move == mixed.moves.end()) break;
        if (move->first == hole) sources[i] = static_cast<std::int32_t>((move++)->second);
    }
    stage.next = 0;
    stage.host.reset();
    stage.used.hold(copies_);
    require(cudaMemcpyAsync(stage_data(stage), data, stage_bytes_, cudaMemcpyHostToDevice, copies_),
            "copy of a batch");
    stage.copied.record(copies_);
    stage.host = mixed.slab;
    stage.next = mixed.before.batches + 1;
    return true;
}

void DeviceBuffer::launch(const Mixed& mixed, const Output& out) {
    Stage& stage = stage_of(mixed);
    uint8_t* data = stage_data(stage);
    const auto* holes = reinterpret_cast<const std::int32_t*>(data + plan_at(settings_.batch, row_bytes_));
    const Take take{room_.places, data,           holes,          holes + settings_.batch, out.b_dec,
                    out.data,     settings_.batch, settings_.d_in, number_of(settings_.dtype), out.type};
    stage.copied.hold(out.stream);
    if (used_) used_->hold(out.stream);  // it may be another stream than before
    broken_ = true;
    require(launch_take(take, out.stream), "kernel");
    stage.used.record(out.stream);
    broken_ = false;
    used_ = &stage.used;
}

Status DeviceBuffer::next(Milliseconds patience, const Output& out) {
    using Clock = std::chrono::steady_clock;
    const auto until = Clock::now() + patience;
    const Status status = buffer_->wait(patience);
    if (status != Status::ready) return status;
    if (broken_) throw CudaError("CUDA: an earlier batch failed on the device");
    const Current current(room_.device);
    while (!upload(*buffer_->peek(0))) {
        if (Clock::now() > until) return Status::waiting;
        std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    for (size_t i = 1; i < stages_.size(); ++i) {
        const Mixed* mixed = buffer_->peek(i);
        if (!mixed || !upload(*mixed)) break;
    }
    launch(*buffer_->peek(0), out);
    buffer_->pop();
    return Status::ready;
}

Status DeviceBuffer::fill(Milliseconds patience, cudaStream_t stream) {
    const Status status = buffer_->fill(patience);
    if (status == Status::ready) {
        const Current current(room_.device);
        filled_.record(copies_);
        filled_.hold(stream);
    }
    return status;
}

void DeviceBuffer::pause(cudaStream_t stream) {
    buffer_->halt();
    const Current current(room_.device);
    require(cudaStreamSynchronize(copies_), "copies");
    for (Stage& stage : stages_) {
        stage.next = 0;
        stage.host.reset();
    }
    if (used_) used_->hold(stream);
}

void DeviceBuffer::load(const stream::State& state, cudaStream_t stream) {
    const Current current(room_.device);
    loaded_.record(stream);
    used_ = &loaded_;
    broken_ = false;
    buffer_->load(state, nullptr);
}

}  // namespace saefast::cuda
