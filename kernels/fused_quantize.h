#pragma once
// An op and the quantiser of what it gives, in blocks of 1 x 128 and of 128 x 1: the bytes of one
// op after the other. On a GPU a value is made once and read never, where the ops apart read it
// twice.
#include "kernels/quantize.h"
#include "kernels/rms_norm.h"

namespace stoa {

/// Codes of one matrix (rows, cols) for contraction over features and over tokens; either may be
/// absent, with its scales.
struct TwoWayCodes {
    TensorView row, row_scale, column, column_scale;
};

/// codes of x, as two calls of quantize.
/// shapes: x, codes (rows, cols); scales as scale_shape; nonfinite (1) or absent
/// dtype:  x fp32 | bf16 | fp16; codes all e4m3 or all e5m2; scales e8m0; nonfinite int32
/// comm:   none     errors: ShapeError
struct QuantizeTwoWayArgs {
    TwoWayCodes codes;
    TensorView nonfinite;
    ConstTensorView x;
};
void quantize_two_way(const QuantizeTwoWayArgs& args, const Exec& exec);

/// y = swiglu(gate, up), and codes of y.
/// shapes: y, gate, up (rows, cols)     dtype: y, gate, up alike
struct SwigluQuantizeArgs {
    TwoWayCodes codes;
    TensorView y, nonfinite;
    ConstTensorView gate, up;
};
void swiglu_quantize(const SwigluQuantizeArgs& args, const Exec& exec);

/// d_gate and d_up as swiglu_backward gives them, and codes of both; they may be gate and up.
struct SwigluQuantizeBackwardArgs {
    TwoWayCodes d_gate_codes, d_up_codes;
    TensorView d_gate, d_up, nonfinite;
    ConstTensorView d_y, gate, up;
};
void swiglu_quantize_backward(const SwigluQuantizeBackwardArgs& args, const Exec& exec);

/// What rms_norm_forward gives, with or without a delta, and codes of its y.
/// dtype:  as there, but for fp64
struct RmsNormQuantizeArgs {
    TwoWayCodes codes;
    TensorView nonfinite;
    RmsNormArgs norm;
};
void rms_norm_quantize(const RmsNormQuantizeArgs& args, const Exec& exec);

}  // namespace stoa
