#pragma once
// Per-thread working memory of the CPU kernels: grown to the largest request, then reused, so that
// a steady training step allocates nothing. The tag keeps buffers that live at the same time apart.
#include "kernels/core/buffer.h"

namespace stoa::cpu {

template <class Tag, class T>
T* scratch(std::int64_t count) {
    thread_local Buffer buffer;
    const std::int64_t bytes = count * static_cast<std::int64_t>(sizeof(T));
    if (buffer.bytes() < bytes) buffer = Buffer(bytes);
    return reinterpret_cast<T*>(buffer.data());
}

}  // namespace stoa::cpu
