#include "kernels/elementwise.h"

#include "kernels/cpu/ops.h"

namespace stoa {

void zero(TensorView x, const Exec& exec) {
    require_cpu(exec, "zero");
    cpu::zero(x);
}

void add(TensorView y, ConstTensorView a, ConstTensorView b, const Exec& exec) {
    require_numel(a, y.numel(), "add: a");
    require_numel(b, y.numel(), "add: b");
    require_dtype(a, y.dtype, "add: a");
    require(b.dtype == y.dtype || b.dtype == wide_dtype(y.dtype), "add: dtype of b",
            "that of y or fp32", dtype_name(b.dtype));
    require_cpu(exec, "add");
    cpu::add(y, a, b);
}

void cast(TensorView y, ConstTensorView x, const Exec& exec) {
    require_numel(x, y.numel(), "cast: x");
    require_cpu(exec, "cast");
    cpu::cast(y, x);
}

void sum_of_squares(TensorView out, ConstTensorView x, const Exec& exec) {
    require_numel(out, 1, "sum_of_squares: out");
    require_dtype(out, DType::fp64, "sum_of_squares: out");
    require_cpu(exec, "sum_of_squares");
    cpu::sum_of_squares(out, x);
}

void flag_nonfinite(TensorView flag, ConstTensorView x, const Exec& exec) {
    require_numel(flag, 1, "flag_nonfinite: flag");
    require_dtype(flag, DType::int32, "flag_nonfinite: flag");
    require_cpu(exec, "flag_nonfinite");
    cpu::flag_nonfinite(flag, x);
}

}  // namespace stoa
