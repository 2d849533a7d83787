#pragma once
#include "kernels/core/exec.h"

namespace stoa {

/// The angles: cos, sin (max_positions, head_dim / 2) of position * theta^(-2 i / head_dim).
/// dtype: Wide (fp32 or fp64), computed in float64
void rope_table(TensorView cos, TensorView sin, double theta, const Exec& exec);

/// Rotates the halves (x1, x2) of each head by its position, in place:
///   x1' = x1 cos - x2 sin,  x2' = x2 cos + x1 sin         [Su et al. 2021; half rotation as in Qwen3]
/// `inverse` rotates back, which is the backward of the forward.
/// shapes: x (rows, n_heads, head_dim); positions (rows) int32; cos, sin (max_positions, head_dim / 2)
/// dtype:  x fp32 | bf16 | fp64; cos, sin Wide     errors: ShapeError
struct RopeArgs {
    TensorView x;
    ConstTensorView cos, sin, positions;
    bool inverse = false;
};
void rope(const RopeArgs& args, const Exec& exec);

}  // namespace stoa
