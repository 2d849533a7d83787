#include "kernels/rms_norm.h"

#include "kernels/cpu/ops.h"
#include "kernels/cuda/ops.h"

namespace stoa {

void check_rms_norm(const RmsNormArgs& args) {
    const ConstTensorView& x = args.x;
    require_shape(args.y, x.shape, "rms_norm: y");
    require_numel(args.weight, x.cols(), "rms_norm: weight");
    require_numel(args.rstd, x.rows(), "rms_norm: rstd");
    require(wide_dtype(args.y.dtype) == wide_dtype(x.dtype), "rms_norm: dtype of y",
            "fp64 exactly where x is", dtype_name(args.y.dtype));
    require_dtype(args.weight, wide_dtype(x.dtype), "rms_norm: weight");
    require_dtype(args.rstd, wide_dtype(x.dtype), "rms_norm: rstd");
    if (args.delta.empty() && args.sum.empty()) return;
    require_shape(args.sum, x.shape, "rms_norm: sum");
    require_shape(args.delta, x.shape, "rms_norm: delta");
    require_dtype(args.sum, x.dtype, "rms_norm: sum");
    require(args.delta.dtype == x.dtype || args.delta.dtype == wide_dtype(x.dtype),
            "rms_norm: dtype of delta", "that of x or fp32", dtype_name(args.delta.dtype));
}

void rms_norm_forward(const RmsNormArgs& args, const Exec& exec) {
    check_rms_norm(args);
    if (exec.device.is_cuda()) return cuda::rms_norm_forward(args, exec.stream);
    RmsNormArgs norm = args;
    if (!args.delta.empty()) {
        cpu::add(args.sum, args.x, args.delta);
        norm.x = args.sum;
    }
    cpu::rms_norm_forward(norm);
}

void rms_norm_backward(const RmsNormBackwardArgs& args, const Exec& exec) {
    const ConstTensorView& x = args.x;
    require_shape(args.d_x, x.shape, "rms_norm: d_x");
    require_shape(args.d_y, x.shape, "rms_norm: d_y");
    require_numel(args.weight, x.cols(), "rms_norm: weight");
    require(args.d_weight.numel() > 0 && args.d_weight.numel() % x.cols() == 0,
            "rms_norm: d_weight", "(d) or (groups, d)", args.d_weight.shape.str());
    require(args.segment_rows == 0 ||
                args.segment_rows * (args.d_weight.numel() / x.cols()) == x.rows(),
            "rms_norm: segment_rows", "rows / groups", std::to_string(args.segment_rows));
    require_numel(args.rstd, x.rows(), "rms_norm: rstd");
    require_dtype(args.d_x, x.dtype, "rms_norm: d_x");
    require(args.d_y.dtype == x.dtype || args.d_y.dtype == wide_dtype(x.dtype),
            "rms_norm: dtype of d_y", "that of x or fp32", dtype_name(args.d_y.dtype));
    require_dtype(args.weight, wide_dtype(x.dtype), "rms_norm: weight");
    require_dtype(args.rstd, wide_dtype(x.dtype), "rms_norm: rstd");
    require_dtype(args.d_weight, wide_dtype(x.dtype), "rms_norm: d_weight");
    exec.device.is_cuda() ? cuda::rms_norm_backward(args, exec.stream)
                          : cpu::rms_norm_backward(args);
}

}  // namespace stoa
