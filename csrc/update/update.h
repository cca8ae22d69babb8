// The update of `saefast.reference.update_` on a GPU of compute capability 9 or later: what a launch is told. No CUDA type
// stands here, so that the binding and the tests without a GPU share it.
#pragma once

#include <cstdint>

namespace saefast::update {

// `saefast.storage.Matrix`: weight fp32 with a copy in bf16, or split; moments fp32, or int8 with scales.
struct Matrix {
    void* weight;         // [F, D] fp32, or bf16: the high half
    std::int16_t* low;    // [F, D] the low half, or null
    std::uint16_t* copy;  // [F, D] bf16, or null: weight is in bf16
    void *m, *v;          // [F, D] fp32, or int8 and uint8
    float* scales;        // [F, 2], or null: moments in fp32
};

struct Vector {
    float *value, *m, *v;
};

struct Update {
    Matrix enc, dec;
    Vector b_enc, b_dec;  // [F], [D]
    const std::uint16_t *centred, *error;  // [B, D] bf16
    const float* acts;                     // [N]
    const std::int32_t* indices;           // [N]
    // of group_by_latent: [F + 1], [N], [N]
    const std::int32_t *offsets, *pairs, *tokens;
    const float *grad_scale, *numbers;  // [], [16] `saefast.reference.Numbers`
    const std::int64_t* step;           // []
    float *window_enc, *window_dec, *window_b;  // [N / window, D] twice, [N / window]: sums over windows of hot latents
    float *partial, *squares;  // [blocks, D]: of the gradient of b_dec; [blocks + D / 8]: of the squared norm
    std::int64_t F, D, B, N;
    std::int64_t window, blocks, stages;  // see `saefast.triton_kernels.update_cuda.Config`
};

constexpr int VECTORS = 3;  // fours of columns of a row that a thread has; with 4 some formats spill registers

inline int warps_of(std::int64_t D) { return static_cast<int>((D + 128 * VECTORS - 1) / (128 * VECTORS)) + 1; }

// Queues the three kernels on `stream` of the current device -> null, or what went wrong.
const char* launch(const Update& update, void* stream);

}  // namespace saefast::update
