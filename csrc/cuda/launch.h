// What the host asks of the device; in take.cu, and in the tests of a runtime without a GPU.
#pragma once

#include <cuda_runtime_api.h>

#include "take.h"

namespace saefast::cuda {

cudaError_t launch_take(const Take& take, cudaStream_t stream);
cudaError_t check_kernels();  // is there code for the current device?

}  // namespace saefast::cuda
