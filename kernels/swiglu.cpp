#include "kernels/swiglu.h"

#include "kernels/cpu/ops.h"
#include "kernels/cuda/ops.h"

namespace stoa {
namespace {

void require_alike(const ConstTensorView& t, const ConstTensorView& like, const char* name) {
    require_shape(t, like.shape, name);
    require_dtype(t, like.dtype, name);
}

}  // namespace

void swiglu_forward(const SwigluArgs& args, const Exec& exec) {
    require_alike(args.y, args.gate, "swiglu: y");
    require_alike(args.up, args.gate, "swiglu: up");
    exec.device.is_cuda() ? cuda::swiglu_forward(args, exec.stream) : cpu::swiglu_forward(args);
}

void swiglu_backward(const SwigluBackwardArgs& args, const Exec& exec) {
    require_alike(args.up, args.gate, "swiglu: up");
    require_alike(args.d_y, args.gate, "swiglu: d_y");
    require_alike(args.d_gate, args.gate, "swiglu: d_gate");
    require_alike(args.d_up, args.gate, "swiglu: d_up");
    exec.device.is_cuda() ? cuda::swiglu_backward(args, exec.stream) : cpu::swiglu_backward(args);
}

}  // namespace stoa
