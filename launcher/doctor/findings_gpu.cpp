#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>

#include "launcher/doctor/findings.h"

namespace stoa {
namespace {

using enum FindingStatus;
constexpr double kGiB = 1 << 30;

// The oldest Linux driver of a toolkit's major version (CUDA toolkit release notes, table "CUDA
// Toolkit and Minimum Required Driver Version for CUDA Minor Version Compatibility").
const char* oldest_driver(int toolkit) {
    switch (toolkit / 1000) {
        case 11:
            return "450.80.02";
        case 12:
            return "525.60.13";
        case 13:
            return "580.65.06";
        default:
            return "";
    }
}

std::array<int, 3> numbers(const std::string& version) {
    std::array<int, 3> n{};
    std::sscanf(version.c_str(), "%d.%d.%d", &n[0], &n[1], &n[2]);
    return n;
}

void judge_one(std::vector<Finding>& out, const GpuFacts& g, int index) {
    const std::string who = fmt::format("GPU {} ({})", index, g.name);
    if (g.ecc_errors > 0)
        out.push_back(
            {problem, "gpu", fmt::format("{}: {} uncorrected ECC errors", who, g.ecc_errors),
             fmt::format("reset it with `nvidia-smi -r -i {}` while nothing runs; if they "
                         "come back, have it replaced",
                         index)});
    if (g.busy_percent >= 20 || (g.used_bytes > 0 && 10 * g.used_bytes > g.memory_bytes))
        out.push_back(
            {problem, "gpu",
             fmt::format("{}: in use: {}% busy, {:.1f} of {:.1f} GiB taken", who,
                         std::max(g.busy_percent, 0), static_cast<double>(g.used_bytes) / kGiB,
                         static_cast<double>(g.memory_bytes) / kGiB),
             fmt::format("`nvidia-smi -i {}` names the processes: end them, or choose others with "
                         "CUDA_VISIBLE_DEVICES",
                         index)});
    if (g.capability > 0 && g.capability < 80)
        out.push_back({problem, "gpu",
                       fmt::format("{}: capability {}.{} is older than 8.0", who, g.capability / 10,
                                   g.capability % 10),
                       "leave it out with CUDA_VISIBLE_DEVICES; A100 and later are supported"});
}

void judge_driver(std::vector<Finding>& out, const MachineFacts& f) {
    const std::string oldest = oldest_driver(f.cuda_toolkit);
    if (f.driver_version.empty()) return;
    if (!oldest.empty() && numbers(f.driver_version) < numbers(oldest))
        out.push_back({problem, "driver",
                       fmt::format("{} is too old: a build with CUDA {}.{} needs {} or later",
                                   f.driver_version, f.cuda_toolkit / 1000,
                                   f.cuda_toolkit % 1000 / 10, oldest),
                       "update the NVIDIA driver, or build stoa with an older CUDA toolkit"});
    else
        out.push_back({ok, "driver", f.driver_version});
    if (f.xid_errors > 0)
        out.push_back({problem, "driver",
                       fmt::format("{} Xid errors in the kernel's log, the last: {}", f.xid_errors,
                                   f.last_xid),
                       "look the number up in NVIDIA's Xid list; 48, 63, 64, 79, 94 and 95 are "
                       "hardware: drain the node"});
}

void list_gpus(std::vector<Finding>& out, const MachineFacts& f) {
    std::map<std::string, int> kinds;
    for (const GpuFacts& g : f.gpus)
        ++kinds[fmt::format("{} ({:.0f} GiB, sm_{})", g.name,
                            static_cast<double>(g.memory_bytes) / kGiB, g.capability)];
    std::string list;
    for (const auto& [kind, n] : kinds)
        list += fmt::format("{}{} x {}", list.empty() ? "" : ", ", n, kind);
    if (kinds.size() > 1)
        out.push_back({problem, "gpu", "different GPUs: " + list,
                       "choose alike ones with CUDA_VISIBLE_DEVICES: all ranks go at the pace and "
                       "within the memory of the smallest"});
    else
        out.push_back({ok, "gpu", list});
    for (std::size_t i = 0; i < f.gpus.size(); ++i) {
        judge_one(out, f.gpus[i], static_cast<int>(i));
        if (const GpuFacts& g = f.gpus[i]; g.gemm_tflops > 0.0)
            out.push_back({ok, "gpu",
                           fmt::format("GPU {}: measured {:.0f} TFLOP/s (bf16, 8192^3), copies "
                                       "{:.1f} GB/s to the device",
                                       i, g.gemm_tflops, g.copy_gb_s)});
    }
}

}  // namespace

void judge_gpus(std::vector<Finding>& out, const MachineFacts& f) {
    const std::size_t first = out.size();
    if (f.cuda_toolkit == 0)
        out.push_back({f.gpus.empty() && f.driver_version.empty() ? ok : note, "cuda",
                       "this build has no CUDA: it runs on the CPU",
                       f.gpus.empty() ? "" : "build with the CUDA toolkit to use the GPUs"});
    else
        out.push_back({ok, "cuda",
                       fmt::format("built with CUDA {}.{}", f.cuda_toolkit / 1000,
                                   f.cuda_toolkit % 1000 / 10)});
    judge_driver(out, f);
    if (f.gpu_probe.late)
        out.push_back({problem, "gpu", "the driver does not answer",
                       "see `dmesg | grep NVRM`; reload the driver or restart the machine"});
    else if (!f.gpus.empty())
        list_gpus(out, f);
    else if (f.cuda_toolkit > 0)
        out.push_back(
            {f.driver_version.empty() ? note : problem, "gpu",
             fmt::format("no GPU: {}; runs on the CPU", f.no_gpu_reason),
             f.driver_version.empty()
                 ? "with a GPU here: install the NVIDIA driver, or start the container "
                   "with --gpus all"
                 : "see what `nvidia-smi` says; in a container, start it with --gpus all"});
    if (!f.gpu_probe.late && !f.gpu_probe.error.empty())
        out.push_back({problem, "gpu", "the measurement failed: " + f.gpu_probe.error,
                       "see what `nvidia-smi` says about the GPUs"});
    if (f.nccl_version > 0)
        out.push_back({ok, "nccl",
                       fmt::format("{}.{}.{}", f.nccl_version / 10000, f.nccl_version / 100 % 100,
                                   f.nccl_version % 100)});
    else
        out.push_back({f.cuda_toolkit > 0 && f.gpus.size() > 1 ? note : ok, "nccl", "not linked"});
    // Nothing here stops a build that does not use them.
    for (std::size_t i = first; f.cuda_toolkit == 0 && i < out.size(); ++i)
        if (out[i].status == problem) out[i].status = note;
}

}  // namespace stoa
