#include "kernels/cpu/gemm.h"
#include "kernels/cpu/ops.h"
#include "kernels/quantize.h"

namespace stoa::cpu {
namespace {

Operand operand_of(const ConstTensorView& x, const ConstTensorView& scale, bool transpose) {
    Operand o{x.data, x.dtype, x.cols(), transpose};
    if (scale.empty()) return o;
    o.scale = scale.as<e8m0>().data();
    o.scale_ld = scale.cols();
    o.scale_rows = scale.rows() == x.rows() ? 1 : kQuantBlock;
    o.scale_cols = scale.cols() == x.cols() ? 1 : kQuantBlock;
    return o;
}

}  // namespace

void matmul(const MatmulArgs& args) {
    const std::int64_t m = args.c.rows(), n = args.c.cols();
    const std::int64_t k = args.transpose_a ? args.a.rows() : args.a.cols();
    if (m == 0 || n == 0) return;
    gemm({.m = m,
          .n = n,
          .k = args.k_count > 0 ? args.k_count : k - args.k_begin,
          .k_begin = args.k_begin,
          .a = operand_of(args.a, args.a_scale, args.transpose_a),
          .b = operand_of(args.b, args.b_scale, args.transpose_b),
          .c = {args.c.data, args.c.dtype, n},
          .accumulate = args.accumulate,
          .chain = args.chain,
          .rounding = args.rounding});
}

}  // namespace stoa::cpu
