#pragma once
// Errors of the CUDA runtime as ours. Only for .cu files.
#include <cuda_runtime.h>

#include <string>

#include "kernels/core/error.h"

namespace stoa::cuda {

inline void check_cuda(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    const std::string got =
        std::string(cudaGetErrorName(status)) + ": " + cudaGetErrorString(status);
    if (status == cudaErrorMemoryAllocation)
        throw MemoryError({.what = "out of GPU memory",
                           .where = what,
                           .actual = got,
                           .hint = "lower batch.micro_batch or use more GPUs"});
    throw DeviceError({.what = "the GPU refused or failed", .where = what, .actual = got});
}

}  // namespace stoa::cuda
