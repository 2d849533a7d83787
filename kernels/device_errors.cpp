#include "kernels/device_errors.h"

#include <algorithm>
#include <vector>

#include "kernels/core/error.h"

namespace stoa {
namespace {

struct Advice {
    std::vector<const char*> names;  // without "cudaError"
    const char* hint;
};
const std::vector<Advice>& advice() {
    static const std::vector<Advice> all = {
        {{"ECCUncorrectable", "NvlinkUncorrectable", "HardwareStackError", "Contained"},
         "the hardware failed: nvidia-smi -q -d ECC and dmesg (Xid) name it; leave this GPU out "
         "(CUDA_VISIBLE_DEVICES) or its node (sbatch --exclude) until it has been reset, and start "
         "again: the run goes on from its last checkpoint"},
        {{"DevicesUnavailable"},
         "another process holds this GPU (exclusive mode, or MIG): nvidia-smi shows which; end it, "
         "or choose other GPUs with CUDA_VISIBLE_DEVICES"},
        {{"InsufficientDriver", "SystemDriverMismatch", "CompatNotSupportedOnDevice"},
         "update the NVIDIA driver (stoa doctor shows both versions), or compute on the CPU: "
         "parallel.device=cpu"},
        {{"SystemNotReady"},
         "the machine's NVSwitch service is down: systemctl start nvidia-fabricmanager (as root)"},
        {{"NoKernelImageForDevice", "InvalidDeviceFunction", "UnsupportedPtxVersion", "InvalidPtx"},
         "this program was built for other GPUs: build it with "
         "-DCMAKE_CUDA_ARCHITECTURES=native on this machine"},
        {{"IllegalAddress", "MisalignedAddress", "LaunchFailure", "IllegalInstruction", "InvalidPc",
          "InvalidAddressSpace", "Assert"},
         "a defect of the program or of this GPU: dmesg (Xid) may tell; start again on another "
         "GPU, where the run goes on from its last checkpoint; if it comes again there, report it"},
        {{"LaunchTimeout"},
         "this GPU also drives a display, which ends long kernels: use another GPU"},
        {{"MemoryAllocation"},
         "other processes on this GPU take memory, too (nvidia-smi shows them); end them, or lower "
         "batch.micro_batch, or use more GPUs"},
    };
    return all;
}

std::string hint_of(const std::string& name) {
    for (const Advice& a : advice())
        if (std::ranges::any_of(a.names, [&](const char* n) { return name.ends_with(n); }))
            return a.hint;
    return "stoa doctor and dmesg (NVRM, Xid) may say more; start again: the run goes on from its "
           "last checkpoint";
}

}  // namespace

void throw_device_error(const std::string& name, const std::string& text, const char* what,
                        int gpu) {
    const std::string where = gpu < 0 ? what : "GPU " + std::to_string(gpu) + ", " + what;
    const ErrorFields fields{.what = "the GPU refused or failed",
                             .where = where,
                             .actual = name + ": " + text,
                             .hint = hint_of(name)};
    if (!name.ends_with("MemoryAllocation")) throw DeviceError(fields);
    ErrorFields lacking = fields;
    lacking.what = "out of GPU memory";
    throw MemoryError(lacking);
}

}  // namespace stoa
