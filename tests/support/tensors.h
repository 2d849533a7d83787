#pragma once
// Random and poisoned tensors, and comparison against float64.
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/core/buffer.h"

namespace stoa::test {

/// Uniform values in [-1, 1) rounded to the dtype, from a seed.
Tensor random_tensor(Shape shape, DType dtype, std::uint64_t seed, double scale = 1.0);
/// NaN everywhere, with guard bytes behind the end; check_guards() after the op has run.
struct PoisonedTensor {
    Buffer buffer;
    TensorView view;
    bool guards_intact() const;
    operator TensorView() const { return view; }       // NOLINT
    operator ConstTensorView() const { return view; }  // NOLINT
};
PoisonedTensor poisoned_tensor(Shape shape, DType dtype);
std::vector<double> to_double(ConstTensorView t);
/// max |a - b| / (max |b| + tiny); infinite when a holds a NaN.
double relative_error(const std::vector<double>& a, const std::vector<double>& b);
/// 2e-5 for fp32, 1e-2 for bf16, 1e-12 for fp64
double tolerance(DType dtype);

}  // namespace stoa::test
