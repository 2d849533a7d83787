#include "kernels/adamw.h"

#include "kernels/cpu/ops.h"

namespace stoa {

void adamw(const AdamwArgs& args, const Exec& exec) {
    require(args.param.dtype == DType::fp32 || args.param.dtype == DType::fp64,
            "adamw: dtype of param", "fp32 or fp64", dtype_name(args.param.dtype));
    require(args.step >= 1, "adamw: step", ">= 1", std::to_string(args.step));
    const auto require_alike = [&](const ConstTensorView& t, const char* name) {
        require_numel(t, args.param.numel(), name);
        require_dtype(t, args.param.dtype, name);
    };
    require_alike(args.m, "adamw: m");
    require_alike(args.v, "adamw: v");
    require_alike(args.grad, "adamw: grad");
    require_cpu(exec, "adamw");
    cpu::adamw(args);
}

}  // namespace stoa
