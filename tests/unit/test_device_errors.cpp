// What the driver of a GPU reports becomes a typed error that names the GPU and says what to do.
#include "kernels/core/error.h"
#include "kernels/device_errors.h"
#include "tests/support/catch.h"

using namespace stoa;

namespace {

template <class E>
std::string text_of(const char* name, int gpu) {
    try {
        throw_device_error(name, "text of the driver", "cudaMalloc", gpu);
    } catch (const E& e) {
        return e.what();
    }
    return "";
}

}  // namespace

TEST_CASE("each kind of device error says what to do") {
    const std::vector<std::pair<const char*, const char*>> kinds = {
        {"cudaErrorECCUncorrectable", "nvidia-smi -q -d ECC"},
        {"cudaErrorDevicesUnavailable", "another process holds"},
        {"cudaErrorInsufficientDriver", "update the NVIDIA driver"},
        {"cudaErrorSystemNotReady", "nvidia-fabricmanager"},
        {"cudaErrorNoKernelImageForDevice", "CMAKE_CUDA_ARCHITECTURES"},
        {"cudaErrorIllegalAddress", "report it"},
        {"cudaErrorLaunchTimeout", "display"},
        {"cudaErrorOfSomeLaterVersion", "stoa doctor"}};
    for (const auto& [name, hint] : kinds) {
        const std::string text = text_of<DeviceError>(name, 3);
        CAPTURE(text);
        CHECK(text.find(name) != std::string::npos);
        CHECK(text.find("text of the driver") != std::string::npos);
        CHECK(text.find("GPU 3, cudaMalloc") != std::string::npos);
        CHECK(text.find(hint) != std::string::npos);
    }
    const std::string full = text_of<MemoryError>("cudaErrorMemoryAllocation", -1);
    CHECK(full.find("out of GPU memory") != std::string::npos);
    CHECK(full.find("nvidia-smi") != std::string::npos);
    CHECK(full.find("GPU -1") == std::string::npos);
}
