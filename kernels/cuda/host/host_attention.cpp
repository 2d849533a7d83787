// The CPU's dense attention on device memory, where a program compares bits with the CPU: the sums
// of cuDNN and of our own kernels have other orders.
#include "kernels/cpu/ops.h"
#include "kernels/cuda/host/streams.h"
#include "kernels/cuda/ops.h"

namespace stoa::cuda {

void attention_forward(const AttentionArgs& args, Stream stream) {
    host::enqueue(stream, [args] { cpu::attention_forward(args); });
}
void attention_backward(const AttentionBackwardArgs& args, Stream stream) {
    host::enqueue(stream, [args] { cpu::attention_backward(args); });
}

}  // namespace stoa::cuda
