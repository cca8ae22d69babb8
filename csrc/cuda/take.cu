// The kernel: a thread for each piece of each row, a warp for 32 pieces of one row. Bound by memory: it reads the rows
// that leave and those that come, and writes as many.

#include "launch.h"

namespace saefast::cuda {
namespace {

constexpr unsigned LANES = 32, ROWS = 8;  // of a block

template <typename Row, typename Out, int N>
__global__ void __launch_bounds__(LANES* ROWS) take_kernel(const Take take) {
    const std::uint64_t i = std::uint64_t{blockIdx.x} * ROWS + threadIdx.y;
    const std::uint64_t piece = std::uint64_t{blockIdx.y} * LANES + threadIdx.x;
    if (i < take.n && piece < take.d_in / N) take_piece<Row, Out, N>(take, i, piece);
}

struct Launch {
    const Take& take;
    cudaStream_t stream;

    template <typename Row, typename Out, int N>
    cudaError_t run() const {
        const std::uint64_t pieces = take.d_in / N;
        const dim3 grid(static_cast<unsigned>((take.n + ROWS - 1) / ROWS),
                        static_cast<unsigned>((pieces + LANES - 1) / LANES));
        void* arguments[] = {const_cast<Take*>(&take)};
        const auto kernel = reinterpret_cast<const void*>(&take_kernel<Row, Out, N>);
        return cudaLaunchKernel(kernel, grid, dim3(LANES, ROWS), arguments, 0, stream);
    }
};

}  // namespace

cudaError_t launch_take(const Take& take, cudaStream_t stream) { return with_types(take, Launch{take, stream}); }

cudaError_t check_kernels() {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(&take_kernel<F16, F32, 8>));
}

}  // namespace saefast::cuda
