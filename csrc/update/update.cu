// The launches of the update, see kernel.h. D is a multiple of 8, with int8 moments of 16, up to 5120.

#include <cuda_runtime_api.h>

#include "kernel.h"

namespace saefast::update {
namespace {

extern __shared__ __align__(128) unsigned char memory[];

constexpr int THREADS = 512;  // at most, so that each can have 128 registers

template <int V, bool SPLIT, bool INT8, bool WINDOWS>
__global__ void __launch_bounds__(THREADS) block_kernel(const __grid_constant__ Update update) {
#if __CUDA_ARCH__ >= 900
    run_block<V, SPLIT, INT8, WINDOWS>(update, memory, static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x),
                                    static_cast<int>(blockIdx.x));
#endif
}

__global__ void __launch_bounds__(COLUMNS* LANES) finish_kernel(const __grid_constant__ Update update) {
#if __CUDA_ARCH__ >= 900
    __shared__ float sums[COLUMNS * (LANES + 1)];
    finish_block(update, sums, static_cast<int>(threadIdx.x), static_cast<int>(blockIdx.x));
#endif
}

template <int V, bool SPLIT, bool INT8, bool WINDOWS>
cudaError_t launch_blocks(const Update& u, cudaStream_t stream) {
    const auto kernel = &block_kernel<V, SPLIT, INT8, WINDOWS>;
    const auto threads = static_cast<unsigned>(warps_of(u.D) * WARP);
    const std::int64_t windows = (u.N + u.window - 1) / u.window;
    const auto blocks = static_cast<unsigned>(WINDOWS && windows < u.blocks ? windows : u.blocks);
    if (blocks == 0) return cudaSuccess;
    const auto bytes = static_cast<std::size_t>(Shared::FIXED + u.stages * (4 * u.D + Shared::OF_STAGE));
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (error != cudaSuccess) return error;
    void* arguments[] = {const_cast<Update*>(&u)};
    return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(blocks), dim3(threads), arguments, bytes, stream);
}

template <bool SPLIT, bool INT8>
cudaError_t launch_format(const Update& u, cudaStream_t stream) {
    const cudaError_t error = launch_blocks<VECTORS, SPLIT, INT8, true>(u, stream);
    return error != cudaSuccess ? error : launch_blocks<VECTORS, SPLIT, INT8, false>(u, stream);
}

}  // namespace

const char* launch(const Update& u, void* on) {
    const auto stream = static_cast<cudaStream_t>(on);
    const bool split = u.dec.low != nullptr, int8 = u.dec.scales != nullptr;
    cudaError_t error = split ? int8 ? launch_format<true, true>(u, stream) : launch_format<true, false>(u, stream)
                              : int8 ? launch_format<false, true>(u, stream) : launch_format<false, false>(u, stream);
    if (error == cudaSuccess) {
        void* arguments[] = {const_cast<Update*>(&u)};
        error = cudaLaunchKernel(reinterpret_cast<const void*>(&finish_kernel), dim3(static_cast<unsigned>(u.D / COLUMNS)),
                                 dim3(COLUMNS * LANES), arguments, 0, stream);
    }
    if (error == cudaSuccess) return nullptr;
    static_cast<void>(cudaGetLastError());  // clears the error, which is reported here
    return cudaGetErrorString(error);
}

}  // namespace saefast::update
