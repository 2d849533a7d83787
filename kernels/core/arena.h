#pragma once
// The memory plan and the memory: one list of tensors, walked twice. A Placer without memory only
// lists (the plan that is shown); a Placer over an arena hands out the views at the same offsets
// (the plan that runs).
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/core/buffer.h"

namespace stoa {

enum class Lifetime { run, micro_batch, block };
constexpr const char* lifetime_name(Lifetime l) {
    return l == Lifetime::run ? "run" : l == Lifetime::micro_batch ? "micro_batch" : "block";
}

struct PlannedTensor {
    std::string name;
    Shape shape;
    DType dtype = DType::fp32;
    Lifetime lifetime = Lifetime::run;
    std::int64_t offset_bytes = 0;
    std::int64_t bytes() const { return shape.numel() * size_of(dtype); }
};

class Placer {
public:
    /// `base` null: list only. `capacity_bytes`: what `base` holds, which is memory of `device`.
    explicit Placer(std::byte* base = nullptr, std::int64_t capacity_bytes = 0, Device device = {})
        : base_(base), capacity_bytes_(capacity_bytes), device_(device) {}

    /// The next tensor of the list, 64-byte aligned.     errors: MemoryError past the arena's end
    TensorView place(std::string name, Shape shape, DType dtype, Lifetime lifetime) {
        PlannedTensor t{std::move(name), shape, dtype, lifetime, bytes_};
        bytes_ = align_up(bytes_ + t.bytes());
        if (base_ != nullptr && bytes_ > capacity_bytes_)
            throw MemoryError({.what = "arena overflow at tensor " + t.name,
                               .expected = std::to_string(capacity_bytes_) + " bytes",
                               .actual = std::to_string(bytes_)});
        const TensorView view{base_ == nullptr ? nullptr : base_ + t.offset_bytes, dtype, shape,
                              device_};
        tensors_.push_back(std::move(t));
        return view;
    }
    std::int64_t bytes() const { return bytes_; }
    const std::vector<PlannedTensor>& tensors() const { return tensors_; }

private:
    std::byte* base_;
    std::int64_t capacity_bytes_;
    Device device_;
    std::int64_t bytes_ = 0;
    std::vector<PlannedTensor> tensors_;
};

}  // namespace stoa
