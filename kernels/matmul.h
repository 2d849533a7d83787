#pragma once
#include "kernels/core/exec.h"

namespace stoa {

/// c = op(a) op(b), or c += op(a) op(b) with `accumulate`; op transposes where the flag says so.
/// shapes: op(a) (m, k); op(b) (k, n); c (m, n). Views of higher rank count as (rows(), cols()).
/// dtype:  a, b alike: fp32 | bf16 | fp64; c fp32 or the dtype of a; sums in Wide (fp32, fp64)
/// comm:   none     errors: ShapeError
/// Bits: every element of c is one fused-multiply-add chain over ascending k, cut into fixed blocks
/// of k that depend on k alone; they do not depend on the instruction set, on m, on n or on the tile.
struct MatmulArgs {
    TensorView c;
    ConstTensorView a, b;
    bool transpose_a = false, transpose_b = false;
    bool accumulate = false;
};
void matmul(const MatmulArgs& args, const Exec& exec);

}  // namespace stoa
