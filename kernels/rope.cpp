#include "kernels/rope.h"

#include <cmath>

#include "kernels/cpu/ops.h"
#include "kernels/cuda/ops.h"

namespace stoa {

void rope_table(TensorView cos, TensorView sin, const RopeAngles& angles, const Exec& exec) {
    require_shape(sin, cos.shape, "rope_table: sin");
    require_dtype(sin, cos.dtype, "rope_table: sin");
    require(cos.dtype == DType::fp32 || cos.dtype == DType::fp64, "rope_table: dtype",
            "fp32 or fp64", dtype_name(cos.dtype));
    const double turning = angles.rotate * static_cast<double>(cos.cols());
    require(turning >= 1.0 && turning == std::floor(turning) &&
                turning <= static_cast<double>(cos.cols()),
            "rope_table: rotate", "a whole number of pairs", std::to_string(turning));
    exec.device.is_cuda() ? cuda::rope_table(cos, sin, angles, exec.stream)
                          : cpu::rope_table(cos, sin, angles);
}

void rope(const RopeArgs& args, const Exec& exec) {
    require(args.x.shape.rank == 3, "rope: x", "(rows, n_heads, head_dim)", args.x.shape.str());
    require(args.x.cols() == 2 * args.cos.cols(), "rope: columns of cos", "head_dim / 2",
            args.cos.shape.str() + " for x " + args.x.shape.str());
    require_shape(args.sin, args.cos.shape, "rope: sin");
    require_numel(args.positions, args.x.shape[0], "rope: positions");
    require_dtype(args.positions, DType::int32, "rope: positions");
    require_dtype(args.cos, wide_dtype(args.x.dtype), "rope: cos");
    require_dtype(args.sin, wide_dtype(args.x.dtype), "rope: sin");
    if (exec.device.is_cuda()) return cuda::rope(args, exec.stream);
    for (const std::int32_t position : args.positions.as<std::int32_t>())
        require(position >= 0 && position < args.cos.rows(), "rope: position",
                "within the rows of the table", std::to_string(position));
    cpu::rope(args);
}

}  // namespace stoa
