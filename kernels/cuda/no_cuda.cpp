// Linked instead of the .cu files when the build has no CUDA toolkit.
#include "kernels/cuda/device.h"

namespace stoa::cuda {

std::vector<DeviceInfo> list_devices(std::string& reason) {
    reason = "this build has no CUDA backend (STOA_CUDA=OFF or no toolkit was found)";
    return {};
}

}  // namespace stoa::cuda
