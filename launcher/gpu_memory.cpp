#include "launcher/gpu_memory.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>

#include "trainer/memory_advice.h"

namespace stoa {
namespace {

constexpr double kGiB = std::int64_t{1} << 30;
double gib(std::int64_t bytes) { return static_cast<double>(bytes) / kGiB; }

template <class T>
bool parse_number(const std::string& text, T& value) {
    const char* const end = text.data() + text.size();
    const auto [at, failed] = std::from_chars(text.data(), end, value);
    return failed == std::errc{} && at == end;
}

[[noreturn]] void refuse(const std::string& what, const GpuRoom& room, const std::string& actual,
                         const std::string& hint) {
    const std::string name = room.index < 0 ? "" : fmt::format("GPU {} ", room.index);
    throw MemoryError({.what = what,
                       .where = fmt::format("{}({}, {:.1f} GiB)", name, room.gpu.name,
                                            gib(room.gpu.memory_bytes)),
                       .expected = fmt::format("at most {:.2f} GiB for each of {} rank{}: {}",
                                               gib(room.of_rank()), room.sharers,
                                               room.sharers == 1 ? "" : "s", room.less),
                       .actual = actual,
                       .hint = hint});
}

}  // namespace

cuda::DeviceInfo parse_gpu(const std::string& option, const std::string& text) {
    const auto refuse = [&](const std::string& what, const std::string& expected) {
        throw ConfigError({.what = what,
                           .where = option,
                           .expected = expected,
                           .actual = "'" + text + "'",
                           .hint = "name, capability and memory in GiB, as nvidia-smi "
                                   "--query-gpu=name,compute_cap,memory.total lists them (9.0 is "
                                   "90): " +
                                   option + " 'NVIDIA H200/90/141'"});
    };
    const std::size_t second = text.rfind('/');
    const std::size_t first =
        second == std::string::npos || second == 0 ? second : text.rfind('/', second - 1);
    if (first == std::string::npos || second == 0 || first == second)
        refuse("this describes no GPU", "NAME/CAPABILITY/GIB");
    cuda::DeviceInfo gpu{.name = text.substr(0, first), .id = "described"};
    if (gpu.name.find_first_not_of(' ') == std::string::npos)
        refuse("the GPU has no name", "NAME/CAPABILITY/GIB");
    constexpr int kOldest = 80;
    if (!parse_number(text.substr(first + 1, second - first - 1), gpu.capability) ||
        gpu.capability > 999)
        refuse("the GPU's capability is not a number", "90 for sm_90");
    if (gpu.capability < kOldest)
        refuse("the GPU is too old",
               fmt::format("capability {} or more (10 x major + minor)", kOldest));
    double memory = 0.0;
    if (!parse_number(text.substr(second + 1), memory) || !std::isfinite(memory) || memory <= 0.0 ||
        memory > 1e6)
        refuse("the GPU's memory is not a number of GiB", "a number above 0, as 141 or 79.6");
    gpu.memory_bytes = static_cast<std::int64_t>(memory * kGiB);
    return gpu;
}

GpuRoom room_of_described(const cuda::DeviceInfo& gpu, const RunConfig& config) {
    // Data parallel has one more for what goes beside the computation.
    const int groups = (config.parallel.tp > 1 ? 1 : 0) + (config.parallel.dp > 1 ? 2 : 0);
    GpuRoom room{.gpu = gpu};
    room.free_bytes =
        std::max<std::int64_t>(0, gpu.memory_bytes - kGpuContextBytes - groups * kNcclGroupBytes);
    room.less = fmt::format("{:.2f} GiB less an estimated {:.2f} for the context",
                            gib(gpu.memory_bytes), gib(kGpuContextBytes));
    if (groups > 0)
        room.less +=
            fmt::format(" and {:.2f} for NCCL ({} groups)", gib(groups * kNcclGroupBytes), groups);
    return room;
}

GpuRoom room_at_hand(const cuda::DeviceInfo& gpu, int index, int sharers, std::int64_t free_bytes) {
    return {.gpu = gpu,
            .index = index,
            .sharers = sharers,
            .free_bytes = free_bytes,
            .less = fmt::format("{:.2f} GiB are free beside context and NCCL", gib(free_bytes))};
}

void require_fits_gpu(const GpuNeed& need, const DevicePick& pick) {
    if (!pick.device.is_cuda()) return;
    std::string reason;
    const GpuRoom room =
        room_at_hand(cuda::list_devices(reason).at(static_cast<std::size_t>(pick.device.index)),
                     pick.device.index, pick.sharers, cuda::free_bytes());
    if (need.bytes + kGpuLibraryBytes <= room.of_rank()) return;
    refuse(need.what + " do not fit the GPU", room,
           fmt::format("{:.2f} GiB{}{}, and an estimated {:.2f} of scratch and of code that the "
                       "libraries load",
                       gib(need.bytes), need.parts.empty() ? "" : ": ", need.parts,
                       gib(kGpuLibraryBytes)),
           need.hint);
}

std::int64_t gpu_need_bytes(const MemoryPlan& plan) {
    return plan.rank_bytes() + plan.graph_bytes + kGpuLibraryBytes;
}

std::string gpu_need_text(const MemoryPlan& plan) {
    return fmt::format(
        "{:.2f} GiB planned: {:.2f} of arena (state {:.2f}, activations {:.2f}), {:.2f} of scratch "
        "({}), an estimated {:.2f} of scratch in graphs and {:.2f} of code that the libraries load",
        gib(gpu_need_bytes(plan)), gib(plan.total_bytes()), gib(plan.state_bytes),
        gib(plan.activation_bytes), gib(plan.kernel_bytes),
        plan.scratch.empty() ? "no op" : plan.scratch.front().op, gib(plan.graph_bytes),
        gib(kGpuLibraryBytes));
}

void require_fits_gpu(const RunConfig& config, const MemoryPlan& plan, const GpuRoom& room,
                      const GpuSetup& setup) {
    if (gpu_need_bytes(plan) <= room.of_rank()) return;
    std::string hint;
    for (const Advice& a : advise(config, room.of_rank() - kGpuLibraryBytes,
                                  {DeviceKind::cuda, std::max(room.index, 0)}, setup))
        hint += fmt::format("{}{:.2f} GiB with {}", hint.empty() ? "" : "\n      ",
                            gib(a.bytes + kGpuLibraryBytes), a.change);
    if (hint.empty()) hint = "no single change makes it fit: use a smaller model or more GPUs";
    refuse("the run does not fit the GPU", room, gpu_need_text(plan), hint);
}

}  // namespace stoa
