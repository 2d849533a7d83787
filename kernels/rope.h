#pragma once
#include "kernels/core/exec.h"

namespace stoa {

/// How far each pair of a head turns per position. The first `rotate` of the pairs turn, as a head
/// of so many pairs would; the others keep still, and carry content wherever it stands.
struct RopeAngles {
    double theta = 1e4;
    double rotate = 1.0;   // part of the pairs, a whole number of them
    double stretch = 1.0;  // position interpolation [Chen et al. 2023]: positions / stretch
};
/// The angles: cos, sin (max_positions, head_dim / 2) of position / stretch * theta^(-2 i / (rotate
/// head_dim)); 1 and 0 where a pair keeps still.
/// dtype: Wide (fp32 or fp64), computed in float64
void rope_table(TensorView cos, TensorView sin, const RopeAngles& angles, const Exec& exec);

/// Rotates the halves (x1, x2) of each head by its position, in place:
///   x1' = x1 cos - x2 sin,  x2' = x2 cos + x1 sin         [Su et al. 2021; half rotation as in
///   Qwen3]
/// `inverse` rotates back, which is the backward of the forward.
/// shapes: x (rows, n_heads, head_dim); positions (rows) int32; cos, sin (max_positions, head_dim /
/// 2) dtype:  x fp32 | bf16 | fp64; cos, sin Wide     errors: ShapeError
struct RopeArgs {
    TensorView x;
    ConstTensorView cos, sin, positions;
    bool inverse = false;
};
void rope(const RopeArgs& args, const Exec& exec);

}  // namespace stoa
