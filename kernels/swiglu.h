#pragma once
#include "kernels/core/exec.h"

namespace stoa {

/// y = silu(gate) * up, silu(x) = x / (1 + exp(-x))        [Shazeer 2020]
/// shapes: y, gate, up alike     dtype: alike, fp32 | bf16 | fp64     errors: ShapeError
struct SwigluArgs {
    TensorView y;
    ConstTensorView gate, up;
};
void swiglu_forward(const SwigluArgs& args, const Exec& exec);

/// d_gate = d_y * up * s * (1 + gate * (1 - s)), d_up = d_y * silu(gate), s = sigmoid(gate).
/// d_gate may be gate, d_up may be up.
struct SwigluBackwardArgs {
    TensorView d_gate, d_up;
    ConstTensorView d_y, gate, up;
};
void swiglu_backward(const SwigluBackwardArgs& args, const Exec& exec);

}  // namespace stoa
