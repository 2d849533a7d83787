#include "kernels/matmul.h"

#include "kernels/cpu/ops.h"
#include "kernels/cuda/ops.h"
#include "kernels/quantize.h"

namespace stoa {
namespace {

std::int64_t blocks(std::int64_t n) { return (n + kQuantBlock - 1) / kQuantBlock; }

/// fp32 | bf16 | fp16 without a scale, e4m3 | e5m2 with one of the three shapes of quantize.h.
void require_operand(const ConstTensorView& x, const ConstTensorView& scale, const char* name) {
    if (size_of(x.dtype) > 1) {
        (void)dispatch_dtype(x.dtype, [](auto) { return 0; });
        require(scale.empty(), name, "no scale, the operand is not 8-bit", scale.shape.str());
        return;
    }
    require(x.dtype != DType::e8m0, name, "fp32, bf16, fp16, e4m3 or e5m2", dtype_name(x.dtype));
    require(!scale.empty(), name, "a scale, the operand is 8-bit", "none");
    require_dtype(scale, DType::e8m0, name);
    const std::int64_t rows = scale.rows(), cols = scale.cols();
    const bool row = rows == x.rows() && cols == blocks(x.cols());
    const bool column = rows == blocks(x.rows()) && cols == x.cols();
    const bool square = rows == blocks(x.rows()) && cols == blocks(x.cols());
    require(row || column || square, name, "blocks of 1 x 128, 128 x 1 or 128 x 128",
            scale.shape.str() + " for " + x.shape.str());
}

}  // namespace

void matmul(const MatmulArgs& args, const Exec& exec) {
    const ConstTensorView &a = args.a, &b = args.b;
    require_operand(a, args.a_scale, "matmul: a and a_scale");
    require_operand(b, args.b_scale, "matmul: b and b_scale");
    const bool fp64 = args.c.dtype == DType::fp64;
    require((a.dtype == DType::fp64) == fp64 && (b.dtype == DType::fp64) == fp64,
            "matmul: dtypes of c, a and b", "all fp64 or none", dtype_name(args.c.dtype));
    (void)dispatch_dtype(args.c.dtype, [](auto) { return 0; });
    const std::int64_t m = args.transpose_a ? a.cols() : a.rows();
    const std::int64_t k = args.transpose_a ? a.rows() : a.cols();
    const std::int64_t n = args.transpose_b ? b.rows() : b.cols();
    require((args.transpose_b ? b.cols() : b.rows()) == k, "matmul: inner dimensions of a and b",
            "equal", a.shape.str() + " and " + b.shape.str());
    require(args.k_begin >= 0 && args.k_count >= 0 && args.k_begin + args.k_count <= k,
            "matmul: k_begin and k_count", "within the inner dimension",
            std::to_string(args.k_begin) + " and " + std::to_string(args.k_count) + " of " +
                std::to_string(k));
    require(args.c.rows() == m && args.c.cols() == n, "matmul: shape of c",
            "rows of op(a) x columns of op(b)", args.c.shape.str());
    exec.device.is_cuda() ? cuda::matmul(args, exec.stream) : cpu::matmul(args);
}

}  // namespace stoa
