#include "kernels/elementwise.h"

#include <cstring>

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
    exec.device.is_cuda() ? cuda::add_rows(sum, x, exec.stream) : cpu::add_rows(sum, x);
}

void sum_of_squares(TensorView out, ConstTensorView x, std::int64_t piece, const Exec& exec) {
    require_numel(out, kExactSumWords, "sum_of_squares: out");
    require_dtype(out, DType::int32, "sum_of_squares: out");
    if (x.empty()) return;
    require(piece >= 0 && x.cols() % std::max<std::int64_t>(1, piece) == 0, "sum_of_squares: piece",
            "a divisor of the columns", std::to_string(piece));
    const std::int64_t n = piece == 0 ? x.cols() : piece;
    if (exec.device.is_cuda()) return cuda::sum_of_squares(out, x, n, exec.stream);
    ExactSum sum = exact_sum_of(out.as<std::int32_t>());
    cpu::sum_of_squares(sum, x, n);
    std::memcpy(out.data, sum.limb.data(), sizeof sum.limb);
    std::memcpy(out.data + sizeof sum.limb, &sum.nonfinite, sizeof sum.nonfinite);
}

ExactSum exact_sum_of(std::span<const std::int32_t> words) {
    ExactSum sum;
    std::memcpy(sum.limb.data(), words.data(), sizeof sum.limb);
    std::memcpy(&sum.nonfinite, words.data() + 2 * ExactSum::kLimbs, sizeof sum.nonfinite);
    return sum;
}

void flag_nonfinite(TensorView flag, ConstTensorView x, const Exec& exec) {
    require_numel(flag, 1, "flag_nonfinite: flag");
    require_dtype(flag, DType::int32, "flag_nonfinite: flag");
    exec.device.is_cuda() ? cuda::flag_nonfinite(flag, x, exec.stream)
                          : cpu::flag_nonfinite(flag, x);
}

}  // namespace stoa
