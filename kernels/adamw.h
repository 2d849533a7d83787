#pragma once
#include "kernels/core/exec.h"

namespace stoa {

/// One AdamW update with decoupled weight decay. [Loshchilov & Hutter 2019]
///   g = grad * grad_scale;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
///   param -= lr * (m / (1 - b1^step) / (sqrt(v / (1 - b2^step)) + eps) + weight_decay * param)
/// shapes: all alike     dtype: param, m, v, grad Wide (fp32 | fp64)     step counts from 1
struct AdamwArgs {
    TensorView param, m, v;
    ConstTensorView grad;
    double lr = 0.0, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.0, grad_scale = 1.0;
    std::int64_t step = 1;
};
void adamw(const AdamwArgs& args, const Exec& exec);

}  // namespace stoa
