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

/// What an op keeps from call to call lies where it runs.
inline void require_same_device(const Device& memory, const Exec& exec, const char* name) {
    const auto text = [](const Device& d) {
        return d.is_cuda() ? "GPU " + std::to_string(d.index) : std::string("the CPU");
    };
    if (memory != exec.device)
        throw ShapeError(
            {.what = name, .expected = "on " + text(exec.device), .actual = "on " + text(memory)});
}

}  // namespace stoa
