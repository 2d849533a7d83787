#pragma once
#include <span>

#include "kernels/core/exact_sum.h"
#include "kernels/core/exec.h"

namespace stoa {

void zero(TensorView x, const Exec& exec);
/// y = a + b; y may be a or b.     dtype: y, a alike, fp32 | bf16 | fp16 | fp64; b the same or Wide
void add(TensorView y, ConstTensorView a, ConstTensorView b, const Exec& exec);
/// y = x, rounded to nearest even where y is narrower.     dtype: fp32 | bf16 | fp16 | fp64, any to
/// any
void cast(TensorView y, ConstTensorView x, const Exec& exec);
/// sum (cols) += the rows of x (rows, cols), in their order.     dtype: both Wide
void add_rows(TensorView sum, ConstTensorView x, const Exec& exec);
/// out += sum of x^2: each row in pieces of `piece` columns (0: one), a piece in float64, and the
/// pieces without rounding. So the sum does not depend on how rows, or whole pieces of
/// them, are dealt out to ranks. Nobody waits for a device.
/// shapes: out (kExactSumWords): the limbs of an ExactSum and its count of values not finite
/// dtype:  out int32; x fp32 | bf16 | fp64
void sum_of_squares(TensorView out, ConstTensorView x, std::int64_t piece, const Exec& exec);
constexpr std::int64_t kExactSumWords = 2 * (ExactSum::kLimbs + 1);
ExactSum exact_sum_of(std::span<const std::int32_t> words);
/// flag (1) int32 |= 1 where x holds Inf or NaN.     x: fp32 | bf16 | fp16 | fp64
void flag_nonfinite(TensorView flag, ConstTensorView x, const Exec& exec);

}  // namespace stoa
