// Ops that have no kernel yet say so by their names.
#include "kernels/cuda/ops.h"

namespace stoa::cuda {
namespace {

[[noreturn]] void refuse(const char* op) {
    throw DeviceError(
        {.what = std::string(op) + " has no CUDA kernel yet", .hint = "run on the CPU"});
}

}  // namespace

void quantization_loss(const QuantizationLossArgs&, Stream) { refuse("quantization_loss"); }
void attention_forward(const AttentionArgs&, Stream) { refuse("attention"); }
void attention_backward(const AttentionBackwardArgs&, Stream) { refuse("attention"); }

}  // namespace stoa::cuda
