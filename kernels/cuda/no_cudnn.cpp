// Linked instead of cudnn.cu where cuDNN is not installed: attention takes our own kernels.
#include "kernels/cuda/device.h"
#include "kernels/cuda/sdpa.h"

namespace stoa::cuda {

bool has_cudnn() { return false; }
bool library_sdpa_forward(const SdpaCall&, Stream) { return false; }
bool library_sdpa_backward(const SdpaCall&, Stream) { return false; }

}  // namespace stoa::cuda
