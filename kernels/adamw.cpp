#include "kernels/adamw.h"

#include "kernels/cpu/ops.h"
#include "kernels/cuda/ops.h"
#include "kernels/quantize.h"

namespace stoa {
namespace {

void require_moment(const ConstTensorView& t, const ConstTensorView& scale,
                    const ConstTensorView& param, const char* name) {
    require_numel(t, param.numel(), name);
    const bool wide = param.dtype == DType::fp64;
    require(wide ? t.dtype == DType::fp64
                 : t.dtype == DType::fp32 || t.dtype == DType::bf16 || t.dtype == DType::e4m3,
            name, wide ? "fp64" : "fp32, bf16 or e4m3", dtype_name(t.dtype));
    if (t.dtype != DType::e4m3) return;
    require_dtype(scale, DType::e8m0, name);
    require_numel(scale, scale_shape({t.rows(), t.cols()}, QuantBlocks::row).numel(), name);
}

}  // namespace

void adamw(const AdamwArgs& args, const Exec& exec) {
    const DType type = args.param.dtype;
    require(type == DType::fp32 || type == DType::fp64 || type == DType::fp24,
            "adamw: dtype of param", "fp32, fp24 or fp64", dtype_name(type));
    require(args.step >= 1, "adamw: step", ">= 1", std::to_string(args.step));
    require_moment(args.m, args.m_scale, args.param, "adamw: m");
    require_moment(args.v, args.v_scale, args.param, "adamw: v");
    require_numel(args.grad, args.param.numel(), "adamw: grad");
    require(type == DType::fp64 ? args.grad.dtype == DType::fp64
                                : args.grad.dtype == DType::fp32 || args.grad.dtype == DType::bf16,
            "adamw: dtype of grad", type == DType::fp64 ? "fp64" : "fp32 or bf16",
            dtype_name(args.grad.dtype));
    exec.device.is_cuda() ? cuda::adamw(args, exec.stream) : cpu::adamw(args);
}

}  // namespace stoa
