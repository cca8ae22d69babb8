// The shuffle buffer with its rows on a GPU. stream::ShuffleBuffer reads, draws and keeps the state, so batches and states
// are the same. For a batch, the rows that come are copied to the device, and one kernel swaps them with the rows that
// leave.
//
//   readers -> slots -> mixers -> pinned slab -> copy stream -> stage -> kernel on the consumer's stream
//                                                                            places <-> stage, places -> batch
//
// On the device, order is kept by events only. The host waits for the device only if the ring of stages is full, which
// means that a stage is still being copied to when its turn comes again.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "../stream/buffer.h"
#include "launch.h"
#include "runtime.h"

namespace saefast::cuda {

// Device memory that belongs to the caller and outlives the buffer.
struct Room {
    int device;
    std::uint8_t* places;   // [capacity, row bytes]
    std::uint8_t* staging;  // [ahead + 1, stage_bytes]
};

struct Output {
    std::uint8_t* data;  // [batch, d_in]
    Number type;
    const float* b_dec;  // [d_in] subtracted, or null
    cudaStream_t stream;
};

class DeviceBuffer final : public stream::Elsewhere {
  public:
    DeviceBuffer(stream::Files& files, const stream::Settings& settings, const Room& room);
    ~DeviceBuffer() override;

    static std::size_t stage_bytes(std::uint64_t batch, std::size_t row_bytes);

    // As `stream::ShuffleBuffer::next`; the kernel that writes `out` is then queued on out.stream.
    stream::Status next(std::chrono::milliseconds patience, const Output& out);

    // As `stream::ShuffleBuffer::fill`; work that is queued on `stream` afterwards sees the rows held.
    stream::Status fill(std::chrono::milliseconds patience, cudaStream_t stream);

    // To restore a state: call `pause`, write the rows held to their places on `stream`, call `load`.
    void pause(cudaStream_t stream);
    void load(const stream::State& state, cudaStream_t stream);

    stream::ShuffleBuffer& mixer() { return *buffer_; }

    stream::Memory* memory() override { return &pinned_; }
    std::size_t slab_bytes() const override { return stage_bytes_; }
    void put(std::uint64_t first, const std::vector<const std::uint8_t*>& rows) override;

  private:
    struct Stage {
        Event copied, used;
        std::shared_ptr<stream::Slab> host;  // what it is copied from
        std::uint64_t next = 0;              // number of its batch, and one; 0: none
    };
    struct Put {
        Event copied;
        std::optional<stream::Slab> slab;
    };
    std::uint8_t* stage_data(const Stage& stage) const;
    Stage& stage_of(const stream::Mixed& mixed) { return stages_[mixed.before.batches % stages_.size()]; }
    bool upload(const stream::Mixed& mixed);
    void launch(const stream::Mixed& mixed, const Output& out);

    std::optional<Current> ending_;  // while the members below are destroyed
    const stream::Settings settings_;
    const Room room_;
    const std::size_t row_bytes_, stage_bytes_;
    Pinned pinned_;
    Stream copies_;
    Event filled_, loaded_;
    std::vector<Stage> stages_;
    Put puts_[2];
    unsigned turn_ = 0;             // of `puts_`
    const Event* used_ = nullptr;   // after what was last done to the places in the consumer's stream
    bool broken_ = false;           // the places do not hold the rows that the mixer expects
    std::unique_ptr<stream::ShuffleBuffer> buffer_;
};

}  // namespace saefast::cuda
