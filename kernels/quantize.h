#pragma once
#include "kernels/core/exec.h"

namespace stoa {

/// Values per edge of a quantiser block. The last block of a row or a column may be shorter, which
/// is the same as one padded with zeros.
constexpr std::int64_t kQuantBlock = 128;

/// One E8M0 exponent per block: 1 x 128 along a row (activations and gradients, contraction over
/// features), 128 x 1 along a column (the same, contraction over tokens), 128 x 128 (weights).
enum class QuantBlocks : std::uint8_t { row, column, square };
/// Shape of the scales of a (rows, cols) tensor; block edges are counted upwards.
Shape scale_shape(const Shape& codes, QuantBlocks blocks);
/// Which of the three a scale shape means (they agree where two of them fit).
QuantBlocks blocks_of(const Shape& codes, const Shape& scale);

/// codes and scale of x, per block:
///   a = max |x|;  s = 448 / a rounded down to a power of two, at most 2^126 (E5M2: 57344 / a);
///   s = 1 where a is 0, Inf or NaN;  codes = round(x * s), saturated;  scale = 1 / s
/// The scale comes from the tensor itself: no history, so recomputing gives the same bytes, and a
/// tensor cut at multiples of 128 gives the bytes of the whole.      [DeepSeek-V3, 2412.19437]
/// shapes: x, codes (rows, cols); scale as scale_shape; nonfinite (1) or absent
/// dtype:  x fp32 | bf16 | fp16 | fp24; codes e4m3 | e5m2; scale e8m0; nonfinite int32: |= 1 where
///         x holds Inf or NaN (their codes: the maximum and 0x7F)
/// comm:   none     errors: ShapeError
struct QuantizeArgs {
    TensorView codes, scale, nonfinite;
    ConstTensorView x;
};
void quantize(const QuantizeArgs& args, const Exec& exec);

/// y = codes * scale, exact; Inf where an x within 1/16 of the largest fp32 has rounded up.
/// dtype: y fp32
struct DequantizeArgs {
    TensorView y;
    ConstTensorView codes, scale;
};
void dequantize(const DequantizeArgs& args, const Exec& exec);

/// What e4m3 in blocks of 1 x 128 would lose of x, added to four sums:
///   non-zero values | those of them that become 0 | sum of (q(x) - x)^2 | sum of x^2
/// shapes: x (rows, cols), sums (4)     dtype: x fp32 | bf16 | fp16, sums fp64     errors:
/// ShapeError
struct QuantizationLossArgs {
    TensorView sums;
    ConstTensorView x;
};
void quantization_loss(const QuantizationLossArgs& args, const Exec& exec);

}  // namespace stoa
