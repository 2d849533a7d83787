#pragma once
// Errors of the CUDA runtime as ours. Only for .cu files.
#include <cuda_runtime.h>

#include "kernels/device_errors.h"

namespace stoa::cuda {

inline void check_cuda(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    int gpu = -1;
    if (cudaGetDevice(&gpu) != cudaSuccess) gpu = -1;
    throw_device_error(cudaGetErrorName(status), cudaGetErrorString(status), what, gpu);
}

}  // namespace stoa::cuda
