#pragma once
#include "kernels/core/exec.h"

namespace stoa {

/// y = x * rstd * weight, rstd = 1 / sqrt(mean(x^2) + eps), row by row. [Zhang & Sennrich 2019]
/// With a delta (the residual stream): sum = x + delta, rounded to its dtype, then y and rstd of
/// sum: the bytes of add and norm, in one read.
/// shapes: x, y, sum, delta (rows, d); weight (d); rstd (rows)
/// dtype:  x, y: fp32 | bf16 | fp16, each its own, or both fp64; rstd, weight Wide; sum as x, delta
///         as x or Wide
/// comm:   none     errors: ShapeError     saves for backward: rstd
/// Where dtypes agree, y may be x, or with a delta y may be delta and sum may be x.
struct RmsNormArgs {
    TensorView y, rstd;
    ConstTensorView x, weight;
    double eps = 1e-6;
    TensorView sum{};  // sum, delta: both or neither
    ConstTensorView delta{};
};
void rms_norm_forward(const RmsNormArgs& args, const Exec& exec);
/// As rms_norm_forward refuses them.     errors: ShapeError
void check_rms_norm(const RmsNormArgs& args);

/// With g = d_y * weight:  d_x (+)= rstd * (g - x * rstd^2 * mean(g * x));
///                         d_weight += sum_rows d_y * x * rstd, in the order of the rows
/// shapes: as forward; d_weight (d), or (groups, d) for sums apart: row r adds to group r % groups
///         (the heads of a q or k norm), or with segment_rows to group r / segment_rows
/// dtype:  d_x, x alike; d_y that of x or Wide; weight, rstd, d_weight Wide
/// `accumulate`: d_x += (the residual stream), else d_x =; d_x may be d_y when not accumulating
struct RmsNormBackwardArgs {
    TensorView d_x, d_weight;
    ConstTensorView d_y, x, weight, rstd;
    bool accumulate = false;
    std::int64_t segment_rows = 0;
};
void rms_norm_backward(const RmsNormBackwardArgs& args, const Exec& exec);

}  // namespace stoa
