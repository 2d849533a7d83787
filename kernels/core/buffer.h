#pragma once
// The one owner of tensor memory: aligned, zeroed, move-only.
#include <cstdint>
#include <memory>

#include "kernels/core/tensor_view.h"

namespace stoa {

constexpr std::int64_t kAlignment = 64;  // bytes: one cache line, one AVX-512 register
constexpr std::int64_t align_up(std::int64_t n, std::int64_t a = kAlignment) {
    return (n + a - 1) / a * a;
}

/// Bytes that Buffers hold now, and the most they ever held at once, in this process.
std::int64_t allocated_bytes();
std::int64_t peak_allocated_bytes();

struct FreeBuffer {
    std::int64_t bytes = 0;
    void (*release)(std::byte*) noexcept = nullptr;  // null: host memory of its own
    void operator()(std::byte* p) const;
};
class Buffer {
public:
    Buffer() = default;
    /// errors: MemoryError when the machine does not have `bytes`.
    explicit Buffer(std::int64_t bytes);
    /// Takes memory that somebody else has got (kernels/device_memory.h) and knows to give back.
    Buffer(std::byte* data, std::int64_t bytes, void (*release)(std::byte*) noexcept)
        : data_(data, FreeBuffer{bytes, release}), bytes_(bytes) {}
    std::byte* data() const { return data_.get(); }
    std::int64_t bytes() const { return bytes_; }

private:
    std::unique_ptr<std::byte, FreeBuffer> data_;
    std::int64_t bytes_ = 0;
};

/// A tensor that owns its memory, for tests, tools and small host-side state.
struct Tensor {
    Buffer buffer;
    TensorView view;
    Tensor() = default;
    Tensor(Shape shape, DType dtype)
        : buffer(shape.numel() * size_of(dtype)), view{buffer.data(), dtype, shape, {}} {}
    operator TensorView() const { return view; }       // NOLINT
    operator ConstTensorView() const { return view; }  // NOLINT
    template <class T>
    std::span<T> as() const {
        return view.as<T>();
    }
};

}  // namespace stoa
