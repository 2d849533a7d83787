// The CPU's dense attention on device memory, where a program compares bits with the CPU: the sums
// of cuDNN and of our own kernels have other orders. Their scratch is counted by the rule.
#include "kernels/cpu/ops.h"
#include "kernels/cuda/host/device_pages.h"
#include "kernels/cuda/host/recording.h"
#include "kernels/cuda/ops.h"
#include "kernels/device_scratch.h"

namespace stoa::cuda {

void attention_forward(const AttentionArgs& args, Stream stream) {
    const host::CountedScratch library(scratch_bytes(args, GpuLibraries{}));
    host::start(
        {.name = "attention", .blocks = 1, .threads = 1, .stream = stream}, nullptr,
        [args] { cpu::attention_forward(args); }, args);
}
void attention_backward(const AttentionBackwardArgs& args, Stream stream) {
    const host::CountedScratch library(scratch_bytes(args, GpuLibraries{}));
    host::start(
        {.name = "attention_backward", .blocks = 1, .threads = 1, .stream = stream}, nullptr,
        [args] { cpu::attention_backward(args); }, args);
}

}  // namespace stoa::cuda
