#include "kernels/matmul.h"

#include "kernels/cpu/ops.h"

namespace stoa {

void matmul(const MatmulArgs& args, const Exec& exec) {
    const ConstTensorView &a = args.a, &b = args.b;
    require_dtype(b, a.dtype, "matmul: b");
    require(args.c.dtype == a.dtype || args.c.dtype == wide_dtype(a.dtype), "matmul: dtype of c",
            "fp32 or that of a", dtype_name(args.c.dtype));
    const std::int64_t m = args.transpose_a ? a.cols() : a.rows();
    const std::int64_t k = args.transpose_a ? a.rows() : a.cols();
    const std::int64_t n = args.transpose_b ? b.rows() : b.cols();
    require((args.transpose_b ? b.cols() : b.rows()) == k, "matmul: inner dimensions of a and b",
            "equal", a.shape.str() + " and " + b.shape.str());
    require(args.c.rows() == m && args.c.cols() == n, "matmul: shape of c",
            "rows of op(a) x columns of op(b)", args.c.shape.str());
    require_cpu(exec, "matmul");
    cpu::matmul(args);
}

}  // namespace stoa
