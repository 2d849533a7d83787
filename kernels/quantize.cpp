#include "kernels/quantize.h"

#include "kernels/cpu/ops.h"
#include "kernels/cuda/ops.h"

namespace stoa {
namespace {

std::int64_t blocks(std::int64_t n) { return (n + kQuantBlock - 1) / kQuantBlock; }

void require_codes(const ConstTensorView& codes, const ConstTensorView& scale, const char* op) {
    require(codes.dtype == DType::e4m3 || codes.dtype == DType::e5m2, op, "codes e4m3 or e5m2",
            dtype_name(codes.dtype));
    require_dtype(scale, DType::e8m0, op);
    (void)blocks_of({codes.rows(), codes.cols()}, {scale.rows(), scale.cols()});
}

/// Both are seen as (rows, cols), leading axes counted as rows.
void require_same_matrix(const ConstTensorView& t, const ConstTensorView& codes, const char* name) {
    require(t.rows() == codes.rows() && t.cols() == codes.cols(), name, "the shape of the codes",
            t.shape.str() + " for " + codes.shape.str());
}

}  // namespace

Shape scale_shape(const Shape& codes, QuantBlocks kind) {
    const std::int64_t cols = codes.rank == 0 ? 1 : codes[codes.rank - 1];
    const std::int64_t rows = cols == 0 ? 0 : codes.numel() / cols;
    return {kind == QuantBlocks::row ? rows : blocks(rows),
            kind == QuantBlocks::column ? cols : blocks(cols)};
}

QuantBlocks blocks_of(const Shape& codes, const Shape& scale) {
    for (const QuantBlocks kind : {QuantBlocks::row, QuantBlocks::column, QuantBlocks::square})
        if (scale_shape(codes, kind) == scale) return kind;
    throw ShapeError({.what = "shape of the scales",
                      .expected = "blocks of 1 x 128, 128 x 1 or 128 x 128",
                      .actual = scale.str() + " for " + codes.str()});
}

void quantize(const QuantizeArgs& args, const Exec& exec) {
    const DType x = args.x.dtype;
    require(x == DType::fp32 || x == DType::bf16 || x == DType::fp16 || x == DType::fp24,
            "quantize: dtype of x", "fp32, bf16, fp16 or fp24", dtype_name(x));
    require_codes(args.codes, args.scale, "quantize");
    require_same_matrix(args.x, args.codes, "quantize: shape of x");
    if (!args.nonfinite.empty()) {
        require_numel(args.nonfinite, 1, "quantize: nonfinite");
        require_dtype(args.nonfinite, DType::int32, "quantize: nonfinite");
    }
    exec.device.is_cuda() ? cuda::quantize(args, exec.stream) : cpu::quantize(args);
}

void dequantize(const DequantizeArgs& args, const Exec& exec) {
    require_dtype(args.y, DType::fp32, "dequantize: y");
    require_codes(args.codes, args.scale, "dequantize");
    require_same_matrix(args.y, args.codes, "dequantize: shape of y");
    exec.device.is_cuda() ? cuda::dequantize(args, exec.stream) : cpu::dequantize(args);
}

void quantization_loss(const QuantizationLossArgs& args, const Exec& exec) {
    const DType x = args.x.dtype;
    require(x == DType::fp32 || x == DType::bf16 || x == DType::fp16,
            "quantization_loss: dtype of x", "fp32, bf16 or fp16", dtype_name(x));
    require_dtype(args.sums, DType::fp64, "quantization_loss: sums");
    require_numel(args.sums, 4, "quantization_loss: sums");
    exec.device.is_cuda() ? cuda::quantization_loss(args, exec.stream)
                          : cpu::quantization_loss(args);
}

}  // namespace stoa
