#include "kernels/elementwise.h"

#include "kernels/cpu/ops.h"
#include "kernels/cuda/ops.h"

namespace stoa {

void zero(TensorView x, const Exec& exec) {
    exec.device.is_cuda() ? cuda::zero(x, exec.stream) : cpu::zero(x);
}

void add(TensorView y, ConstTensorView a, ConstTensorView b, const Exec& exec) {
    require_numel(a, y.numel(), "add: a");
    require_numel(b, y.numel(), "add: b");
    require_dtype(a, y.dtype, "add: a");
    require(b.dtype == y.dtype || b.dtype == wide_dtype(y.dtype), "add: dtype of b",
            "that of y or fp32", dtype_name(b.dtype));
    exec.device.is_cuda() ? cuda::add(y, a, b, exec.stream) : cpu::add(y, a, b);
}

void cast(TensorView y, ConstTensorView x, const Exec& exec) {
    require_numel(x, y.numel(), "cast: x");
    exec.device.is_cuda() ? cuda::cast(y, x, exec.stream) : cpu::cast(y, x);
}

void add_rows(TensorView sum, ConstTensorView x, const Exec& exec) {
    require_numel(sum, x.cols(), "add_rows: sum");
    require_dtype(sum, wide_dtype(x.dtype), "add_rows: sum");
    require_dtype(x, sum.dtype, "add_rows: x");
    require_cpu(exec, "add_rows");
    cpu::add_rows(sum, x);
}

void sum_of_squares(ExactSum& out, ConstTensorView x, std::int64_t piece, const Exec& exec) {
    if (x.empty()) return;
    const std::int64_t cols = x.cols();
    require(piece >= 0 && cols % std::max<std::int64_t>(1, piece) == 0, "sum_of_squares: piece",
            "a divisor of the columns", std::to_string(piece));
    exec.device.is_cuda() ? cuda::sum_of_squares(out, x, piece == 0 ? cols : piece, exec.stream)
                          : cpu::sum_of_squares(out, x, piece == 0 ? cols : piece);
}

void flag_nonfinite(TensorView flag, ConstTensorView x, const Exec& exec) {
    require_numel(flag, 1, "flag_nonfinite: flag");
    require_dtype(flag, DType::int32, "flag_nonfinite: flag");
    exec.device.is_cuda() ? cuda::flag_nonfinite(flag, x, exec.stream)
                          : cpu::flag_nonfinite(flag, x);
}

}  // namespace stoa
