// Ops without a kernel of their own, on the host: the CPU's, on device memory. Each goes when its
// kernel comes.
#include "kernels/cpu/ops.h"
#include "kernels/cuda/host/device_pages.h"
#include "kernels/cuda/ops.h"

namespace stoa::cuda {

void quantization_loss(const QuantizationLossArgs& args, Stream) {
    const host::DeviceMemoryOpen open;
    cpu::quantization_loss(args);
}
void attention_forward(const AttentionArgs& args, Stream) {
    const host::DeviceMemoryOpen open;
    cpu::attention_forward(args);
}
void attention_backward(const AttentionBackwardArgs& args, Stream) {
    const host::DeviceMemoryOpen open;
    cpu::attention_backward(args);
}

}  // namespace stoa::cuda
