// The CPU's dense attention on device memory, where a program compares bits with the CPU: the sums
// of cuDNN and of our own kernels have other orders. Their scratch is counted by the rule.
#include "kernels/cpu/ops.h"
#include "kernels/cuda/host/device_pages.h"
#include "kernels/cuda/ops.h"
#include "kernels/device_scratch.h"

namespace stoa::cuda {

void attention_forward(const AttentionArgs& args, Stream) {
    const host::DeviceMemoryOpen open;
    const host::CountedScratch library(scratch_bytes(args, GpuLibraries{}));
    cpu::attention_forward(args);
}
void attention_backward(const AttentionBackwardArgs& args, Stream) {
    const host::DeviceMemoryOpen open;
    const host::CountedScratch library(scratch_bytes(args, GpuLibraries{}));
    cpu::attention_backward(args);
}

}  // namespace stoa::cuda
