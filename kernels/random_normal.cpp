#include "kernels/random_normal.h"

#include "kernels/cpu/ops.h"
#include "kernels/cuda/ops.h"

namespace stoa {

void random_normal(const RandomNormalArgs& args, const Exec& exec) {
    require(args.x.dtype == DType::fp32 || args.x.dtype == DType::fp64, "random_normal: dtype of x",
            "fp32 or fp64", dtype_name(args.x.dtype));
    require(args.row_begin >= 0 && args.col_begin >= 0, "random_normal: begin of the shard", ">= 0",
            std::to_string(args.row_begin) + ", " + std::to_string(args.col_begin));
    exec.device.is_cuda() ? cuda::random_normal(args, exec.stream) : cpu::random_normal(args);
}

}  // namespace stoa
