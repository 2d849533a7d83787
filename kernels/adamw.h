#pragma once
#include "kernels/core/exec.h"

namespace stoa {

/// One AdamW update with decoupled weight decay. [Loshchilov & Hutter 2019]
///   g = grad * grad_scale;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
///   param -= lr * (m / (1 - b1^step) / (sqrt(v / (1 - b2^step)) + eps) + weight_decay * param)
/// The update is computed in Wide; state below fp32 is widened before and rounded after it:
///   m e4m3: 1 x 128 blocks with a power-of-two scale, to nearest;
///   v e4m3: the same of sqrt(v), but stochastically (a decay of 2.5 % a step is less than half a
///     step of e4m3), and no value above 0 becomes 0;
///   v bf16: to nearest, or stochastically once 1 - b2 < 2^-8 (smaller steps would be lost);
///   param fp24: stochastically.
/// Stochastic rounding draws philox(rounding_key, logical element / 4, 2 step + tensor): the same
/// bits on every mesh and backend.
/// shapes: param, m, v, grad alike, (rows, cols); m_scale, v_scale (rows, ceil(cols / 128))
/// dtype:  param fp32 | fp24; m fp32 | bf16 | e4m3; v fp32 | bf16 | e4m3; grad fp32 | bf16; scales
///         e8m0; or all fp64                    step counts from 1     errors: ShapeError
struct AdamwArgs {
    TensorView param, m, v;
    ConstTensorView grad;
    double lr = 0.0, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.0, grad_scale = 1.0;
    std::int64_t step = 1;
    TensorView m_scale, v_scale;  // absent unless m, v are e4m3
    std::uint64_t rounding_key = 0;
    std::int64_t row_begin = 0, col_begin = 0, logical_cols = 0;  // where the shard lies
};
void adamw(const AdamwArgs& args, const Exec& exec);

}  // namespace stoa
