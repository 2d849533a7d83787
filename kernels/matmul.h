#pragma once
#include "kernels/core/exec.h"
#include "kernels/core/rounding.h"

namespace stoa {

/// c = op(a) op(b), or c += op(a) op(b) with `accumulate`; op transposes where the flag says so.
/// shapes: op(a) (m, k); op(b) (k, n); c (m, n). Views of higher rank count as (rows(), cols()).
///         a_scale, b_scale: of an 8-bit operand, as stored (see quantize.h); absent otherwise
/// dtype:  a, b: fp32 | bf16 | fp16 | e4m3 | e5m2, each its own; or both fp64
///         c fp32 | bf16 | fp16 (fp64 with fp64); sums in Wide (fp32, fp64), rounded once
/// comm:   none     errors: ShapeError
/// k_begin, k_count: only these steps of k enter (k_count 0: all from k_begin on)
/// Bits: every element of c is one fused-multiply-add chain over ascending k, cut into fixed blocks
/// from k_begin on; with `chain` it is not cut, and begins from c with `accumulate`: then a sum does
/// not depend on how k is dealt out to calls (c fp32 or fp64). They do not depend on the instruction set, on m, on n, on the tile
/// or on the number of threads. 8- and 16-bit operands are widened exactly while they are packed.
struct MatmulArgs {
    TensorView c;
    ConstTensorView a, b;
    bool transpose_a = false, transpose_b = false;
    bool accumulate = false;
    ConstTensorView a_scale, b_scale;
    bool chain = false;
    std::int64_t k_begin = 0, k_count = 0;
    StochasticRounding rounding;  // of a bf16 c that is added to; else to nearest
};
void matmul(const MatmulArgs& args, const Exec& exec);

}  // namespace stoa
