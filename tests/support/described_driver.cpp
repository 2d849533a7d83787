// The CUDA driver of a GPU that is only described: a libcuda.so.1 that takes the kernels that cuDNN
// compiles, looks at them, and runs nothing. With the toolkit's own stub every plan ends at the
// driver; with this one it is finalised, and its workspace and kernels are known.
#include "tests/support/described_driver.h"

#include <cstdint>
#include <cstring>

namespace {

DescribedKernels kernels;
int handle;  // something to point at

constexpr int kNotSupported = 801;  // CUDA_ERROR_NOT_SUPPORTED, by the rest of what cuDNN looks up

}  // namespace

extern "C" {

DescribedKernels* stoa_described_kernels() { return &kernels; }

/// An image is an ELF file of machine 190 (EM_CUDA); its flags name the architecture.
int cuLibraryLoadData(void** library, const void* image, void*, void*, unsigned, void*, void*,
                      unsigned) {
    const auto* const bytes = static_cast<const unsigned char*>(image);
    std::uint16_t machine = 0;
    std::memcpy(&machine, bytes + 18, sizeof machine);
    if (std::memcmp(bytes, "\177ELF", 4) != 0 || machine != 190) return 200;  // INVALID_IMAGE
    std::uint32_t flags = 0;
    std::memcpy(&flags, bytes + 48, sizeof flags);
    kernels.elf_flags = flags;
    ++kernels.images;
    *library = &handle;
    return 0;
}
int cuLibraryGetKernel(void** kernel, void*, const char* name) {
    std::strncpy(kernels.name, name, sizeof kernels.name - 1);
    *kernel = &handle;
    return 0;
}
int cuKernelSetAttribute(int, int, void*, int) { return 0; }
int cuLibraryUnload(void*) { return 0; }

int cuGetErrorName(int, const char** text) {
    *text = "CUDA_ERROR_NOT_SUPPORTED";
    return 0;
}
int cuGetErrorString(int, const char** text) {
    *text = "the described driver does not do this";
    return 0;
}

#define STOA_NOT_THERE(name) \
    int name() { return kNotSupported; }
STOA_NOT_THERE(cuCtxGetCurrent)
STOA_NOT_THERE(cuCtxGetDevice)
STOA_NOT_THERE(cuCtxGetLimit)
STOA_NOT_THERE(cuCtxPopCurrent)
STOA_NOT_THERE(cuCtxPushCurrent)
STOA_NOT_THERE(cuDeviceGet)
STOA_NOT_THERE(cuDeviceGetAttribute)
STOA_NOT_THERE(cuDeviceGetCount)
STOA_NOT_THERE(cuDevicePrimaryCtxRelease)
STOA_NOT_THERE(cuDevicePrimaryCtxReset)
STOA_NOT_THERE(cuDevicePrimaryCtxRetain)
STOA_NOT_THERE(cuDriverGetVersion)
STOA_NOT_THERE(cuFuncGetAttribute)
STOA_NOT_THERE(cuFuncSetAttribute)
STOA_NOT_THERE(cuInit)
STOA_NOT_THERE(cuKernelGetAttribute)
STOA_NOT_THERE(cuLaunchCooperativeKernel)
STOA_NOT_THERE(cuLaunchKernel)
STOA_NOT_THERE(cuLaunchKernelEx)
STOA_NOT_THERE(cuLibraryLoadFromFile)
STOA_NOT_THERE(cuLinkAddData)
STOA_NOT_THERE(cuLinkAddData_v2)
STOA_NOT_THERE(cuLinkAddFile_v2)
STOA_NOT_THERE(cuLinkComplete)
STOA_NOT_THERE(cuLinkCreate)
STOA_NOT_THERE(cuLinkCreate_v2)
STOA_NOT_THERE(cuLinkDestroy)
STOA_NOT_THERE(cuMemcpyDtoH_v2)
STOA_NOT_THERE(cuModuleGetFunction)
STOA_NOT_THERE(cuModuleGetGlobal_v2)
STOA_NOT_THERE(cuModuleLoadData)
STOA_NOT_THERE(cuModuleLoadDataEx)
STOA_NOT_THERE(cuModuleLoadFatBinary)
STOA_NOT_THERE(cuModuleUnload)
STOA_NOT_THERE(cuOccupancyMaxActiveBlocksPerMultiprocessor)
STOA_NOT_THERE(cuOccupancyMaxPotentialClusterSize)
STOA_NOT_THERE(cuStreamGetCtx)
STOA_NOT_THERE(cuStreamSynchronize)
STOA_NOT_THERE(cuTensorMapEncodeTiled)

}  // extern "C"
