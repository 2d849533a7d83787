#include "kernels/importance_gate.h"

#include "kernels/cpu/ops.h"
#include "kernels/cuda/ops.h"

namespace stoa {

void importance_gate_forward(const ImportanceGateArgs& a, const Exec& exec) {
    require_numel(a.gate, a.importance.numel(), "importance_gate: gate");
    require_numel(a.bias, a.importance.cols(), "importance_gate: bias");
    const DType wide = wide_dtype(a.importance.dtype);
    for (const ConstTensorView& t :
         {ConstTensorView(a.gate), ConstTensorView(a.importance), a.bias})
        require_dtype(t, wide, "importance_gate: dtype");
    exec.device.is_cuda() ? cuda::importance_gate_forward(a, exec.stream)
                          : cpu::importance_gate_forward(a);
}

void importance_gate_backward(const ImportanceGateBackwardArgs& a, const Exec& exec) {
    require_numel(a.d_gate, a.importance.numel(), "importance_gate: d_gate");
    require_numel(a.d_bias, a.importance.cols(), "importance_gate: d_bias");
    for (const ConstTensorView& t : {ConstTensorView(a.d_gate), ConstTensorView(a.d_bias)})
        require_dtype(t, a.importance.dtype, "importance_gate: dtype");
    exec.device.is_cuda() ? cuda::importance_gate_backward(a, exec.stream)
                          : cpu::importance_gate_backward(a);
}

}  // namespace stoa
