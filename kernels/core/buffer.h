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

class Buffer {
public:
    Buffer() = default;
    /// errors: MemoryError when the machine does not have `bytes`.
    explicit Buffer(std::int64_t bytes);
    std::byte* data() const { return data_.get(); }
    std::int64_t bytes() const { return bytes_; }

private:
    struct Free {
        void operator()(std::byte* p) const;
    };
    std::unique_ptr<std::byte, Free> data_;
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
