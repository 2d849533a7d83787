#pragma once
#include "kernels/core/tensor_view.h"

namespace stoa {

/// Where and in which order ops run. On the CPU the stream is not used: an op is done on return.
struct Stream {
    void* handle = nullptr;
};
struct Exec {
    Device device{};
    Stream stream{};
};

/// Until the CUDA ops exist, an op that is asked for a GPU says so instead of reading its memory.
inline void require_cpu(const Exec& exec, const char* op) {
    if (exec.device.is_cuda())
        throw DeviceError(
            {.what = std::string(op) + " has no CUDA kernel yet", .hint = "run on the CPU"});
}

}  // namespace stoa
