#include "kernels/cuda/device.h"

#include <cuda_runtime.h>

namespace stoa::cuda {

std::vector<DeviceInfo> list_devices(std::string& reason) {
    int count = 0;
    if (const cudaError_t err = cudaGetDeviceCount(&count); err != cudaSuccess) {
        reason = cudaGetErrorString(err);
        return {};
    }
    std::vector<DeviceInfo> devices;
    for (int i = 0; i < count; ++i) {
        cudaDeviceProp prop{};
        if (cudaGetDeviceProperties(&prop, i) != cudaSuccess) continue;
        devices.push_back({prop.name, 10 * prop.major + prop.minor,
                           static_cast<std::int64_t>(prop.totalGlobalMem)});
    }
    if (devices.empty()) reason = "the driver reports no GPU";
    return devices;
}

}  // namespace stoa::cuda
