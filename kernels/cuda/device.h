#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace stoa::cuda {

struct DeviceInfo {
    std::string name;
    int capability = 0;            // 90 = sm_90
    std::int64_t memory_bytes = 0;
};
/// The GPUs this process can use; empty without a GPU or driver. `reason` says why it is empty.
std::vector<DeviceInfo> list_devices(std::string& reason);

}  // namespace stoa::cuda
