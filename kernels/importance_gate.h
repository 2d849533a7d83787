#pragma once
#include "kernels/core/exec.h"

namespace stoa {

/// How much a token weighs where attention selects keys, from its learned importance.
///   importance = clamp(importance + bias, -15, 15), in place;  gate = log sigmoid(importance)
/// shapes: importance, gate (rows, n_kv_heads); bias (n_kv_heads)
/// dtype:  Wide     comm: none     errors: ShapeError     saves for backward: importance
struct ImportanceGateArgs {
    TensorView gate, importance;
    ConstTensorView bias;
};
void importance_gate_forward(const ImportanceGateArgs& args, const Exec& exec);

/// d_gate becomes the gradient of the importance before the bias, in place:
///   d = sigmoid(-importance) d_gate, 0 where the importance was clamped;  d_bias += d, row by row
struct ImportanceGateBackwardArgs {
    TensorView d_gate, d_bias;
    ConstTensorView importance;
};
void importance_gate_backward(const ImportanceGateBackwardArgs& args, const Exec& exec);

}  // namespace stoa
