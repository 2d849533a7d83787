#include "kernels/fused_quantize.h"

#include "kernels/cuda/ops.h"
#include "kernels/swiglu.h"

namespace stoa {
namespace {

bool is_cuda(const Exec& exec) { return exec.device.is_cuda(); }

/// One way after the other; also what the CPU does.
void quantize_ways(const TwoWayCodes& codes, const TensorView& nonfinite, const ConstTensorView& x,
                   const Exec& exec) {
    if (!codes.row.empty())
        quantize({.codes = codes.row, .scale = codes.row_scale, .nonfinite = nonfinite, .x = x},
                 exec);
    if (!codes.column.empty())
        quantize(
            {.codes = codes.column, .scale = codes.column_scale, .nonfinite = nonfinite, .x = x},
            exec);
}

/// As quantize checks them; the kernels take fewer dtypes and want each way in its own blocks.
void require_codes(const TwoWayCodes& codes, const TensorView& nonfinite, const ConstTensorView& x,
                   const char* op) {
    require(x.dtype == DType::fp32 || x.dtype == DType::bf16 || x.dtype == DType::fp16, op,
            "fp32, bf16 or fp16", dtype_name(x.dtype));
    require(codes.row.empty() || codes.column.empty() || codes.row.dtype == codes.column.dtype, op,
            "codes of one dtype", dtype_name(codes.column.dtype));
    const auto check = [&](const TensorView& data, const TensorView& scale, QuantBlocks blocks) {
        if (data.empty()) return;
        require(data.dtype == DType::e4m3 || data.dtype == DType::e5m2, op, "codes e4m3 or e5m2",
                dtype_name(data.dtype));
        require_dtype(scale, DType::e8m0, op);
        require(data.rows() == x.rows() && data.cols() == x.cols(), op, "the shape of the codes",
                x.shape.str() + " for " + data.shape.str());
        require(Shape{scale.rows(), scale.cols()} == scale_shape({x.rows(), x.cols()}, blocks), op,
                "scales of each way's blocks", scale.shape.str() + " for " + data.shape.str());
    };
    check(codes.row, codes.row_scale, QuantBlocks::row);
    check(codes.column, codes.column_scale, QuantBlocks::column);
    if (nonfinite.empty()) return;
    require_numel(nonfinite, 1, op);
    require_dtype(nonfinite, DType::int32, op);
}

}  // namespace

void quantize_two_way(const QuantizeTwoWayArgs& a, const Exec& exec) {
    require_codes(a.codes, a.nonfinite, a.x, "quantize_two_way");
    is_cuda(exec) ? cuda::quantize_two_way(a, exec.stream)
                  : quantize_ways(a.codes, a.nonfinite, a.x, exec);
}

void swiglu_quantize(const SwigluQuantizeArgs& a, const Exec& exec) {
    require_codes(a.codes, a.nonfinite, a.y, "swiglu_quantize");
    for (const ConstTensorView& t : {a.gate, a.up}) {
        require_shape(t, a.y.shape, "swiglu_quantize");
        require_dtype(t, a.y.dtype, "swiglu_quantize");
    }
    if (is_cuda(exec)) return cuda::swiglu_quantize(a, exec.stream);
    swiglu_forward({.y = a.y, .gate = a.gate, .up = a.up}, exec);
    quantize_ways(a.codes, a.nonfinite, a.y, exec);
}

void swiglu_quantize_backward(const SwigluQuantizeBackwardArgs& a, const Exec& exec) {
    require_codes(a.d_gate_codes, a.nonfinite, a.d_gate, "swiglu_quantize_backward");
    require_codes(a.d_up_codes, a.nonfinite, a.d_up, "swiglu_quantize_backward");
    const auto type = [](const TwoWayCodes& c) {
        return c.row.empty() ? c.column.dtype : c.row.dtype;
    };
    require(type(a.d_gate_codes) == type(a.d_up_codes), "swiglu_quantize_backward",
            "codes of one dtype", dtype_name(type(a.d_up_codes)));
    for (const ConstTensorView& t : {ConstTensorView(a.d_up), a.d_y, a.gate, a.up}) {
        require_shape(t, a.d_gate.shape, "swiglu_quantize_backward");
        require_dtype(t, a.d_gate.dtype, "swiglu_quantize_backward");
    }
    if (is_cuda(exec)) return cuda::swiglu_quantize_backward(a, exec.stream);
    swiglu_backward({.d_gate = a.d_gate, .d_up = a.d_up, .d_y = a.d_y, .gate = a.gate, .up = a.up},
                    exec);
    quantize_ways(a.d_gate_codes, a.nonfinite, a.d_gate, exec);
    quantize_ways(a.d_up_codes, a.nonfinite, a.d_up, exec);
}

void rms_norm_quantize(const RmsNormQuantizeArgs& a, const Exec& exec) {
    require_codes(a.codes, a.nonfinite, a.norm.y, "rms_norm_quantize");
    check_rms_norm(a.norm);
    if (is_cuda(exec)) return cuda::rms_norm_quantize(a, exec.stream);
    rms_norm_forward(a.norm, exec);
    quantize_ways(a.codes, a.nonfinite, a.norm.y, exec);
}

}  // namespace stoa
