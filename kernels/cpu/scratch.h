#pragma once
// Per-thread working memory of the CPU kernels: grown to the largest request, then reused, so that
// a steady training step allocates nothing. The tag keeps buffers that live at the same time apart.
#include <algorithm>
#include <atomic>

#include "kernels/core/buffer.h"

namespace stoa::cpu {

template <class Tag, class T>
T* scratch(std::int64_t count) {
    thread_local Buffer buffer;
    const std::int64_t bytes = count * static_cast<std::int64_t>(sizeof(T));
    if (buffer.bytes() < bytes) buffer = Buffer(bytes);
    return reinterpret_cast<T*>(buffer.data());
}

/// Heads go one to a thread, unless that leaves threads idle: then all threads work in one head.
inline bool heads_together(std::int64_t heads, std::int64_t threads) {
    return heads % threads != 0 && heads < 4 * threads;
}
/// Heads at work at a time.
inline std::int64_t heads_at_once(std::int64_t heads, std::int64_t threads) {
    return heads_together(heads, threads) ? 1 : std::min(heads, threads);
}

inline std::atomic<std::int64_t> held_working_memory{0};  // bytes, of all threads

/// A thread's buffer, counted.
class WorkingBuffer {
public:
    std::byte* of_bytes(std::int64_t bytes) {
        if (buffer_.bytes() < bytes) {
            held_working_memory -= buffer_.bytes();
            buffer_ = Buffer();  // never both at a time
            buffer_ = Buffer(bytes);
            held_working_memory += bytes;
        }
        return buffer_.data();
    }
    WorkingBuffer() = default;
    WorkingBuffer(const WorkingBuffer&) = delete;
    WorkingBuffer& operator=(const WorkingBuffer&) = delete;
    ~WorkingBuffer() { held_working_memory -= buffer_.bytes(); }

private:
    Buffer buffer_;
};
/// As scratch, for what grows with the sequence and is in the memory plan
/// (kernels/working_memory.h): who asks for it has a function there that says how much.
template <class Tag, class T>
T* working_memory(std::int64_t count) {
    thread_local WorkingBuffer buffer;
    return reinterpret_cast<T*>(buffer.of_bytes(count * static_cast<std::int64_t>(sizeof(T))));
}

}  // namespace stoa::cpu
