#include "launcher/commands/plan_target.h"

#include <fmt/format.h>

namespace stoa {

GpuSetup PlanTarget::setup() const {
    const bool cudnn = cuda::toolkit_version() == 0 || cuda::has_cudnn();
    return {gpu_libraries(gpu ? gpu->capability : 0, cudnn), /*nccl=*/true};
}

namespace {

PlanTarget choose(const RunConfig& config, const boost::program_options::variables_map& values) {
    const DeviceChoice choice = config.parallel.device;
    const bool described = values.contains("gpu");
    if (described && choice == DeviceChoice::cpu)
        throw ConfigError({.what = "a GPU is described, but the run computes on the CPU",
                           .where = "--gpu",
                           .expected = "parallel.device other than cpu",
                           .hint = "leave out --gpu, or set parallel.device=cuda"});
    if (described) return {parse_gpu("--gpu", values["gpu"].as<std::string>()), true};
    if (choice == DeviceChoice::cpu) return {};
    std::string reason;
    const auto here = cuda::list_devices(reason);
    if (!here.empty()) return {here.front(), true};
    if (choice == DeviceChoice::automatic) return {};
    return {cuda::DeviceInfo{.name = "a GPU", .capability = 90}, false};
}

}  // namespace

PlanTarget plan_target(const RunConfig& config,
                       const boost::program_options::variables_map& values) {
    PlanTarget target = choose(config, values);
    if (target.gpu && values.contains("memory")) {
        target.gpu->memory_bytes =
            static_cast<std::int64_t>(values["memory"].as<double>() * (1 << 30));
        target.known = true;
    }
    return target;
}

std::string target_text(const RunConfig& config, const PlanTarget& target, const MemoryPlan& most) {
    const cuda::DeviceInfo& gpu = *target.gpu;
    if (!target.known)
        return fmt::format(
            "GPU: none here, planned for sm_{}: {}. Whether it fits: --gpu 'NVIDIA H200/90/141'",
            gpu.capability, gpu_need_text(most));
    const GpuRoom room = room_of_described(gpu, config);
    return fmt::format("GPU: {}, sm_{}: {:.2f} GiB for a rank ({}); {}: {}", gpu.name,
                       gpu.capability, static_cast<double>(room.of_rank()) / (1 << 30), room.less,
                       gpu_need_bytes(most) <= room.of_rank() ? "fits" : "does not fit",
                       gpu_need_text(most));
}

nlohmann::json target_json(const RunConfig& config, const PlanTarget& target,
                           const MemoryPlan& most) {
    nlohmann::json out{{"name", target.gpu->name},
                       {"capability", target.gpu->capability},
                       {"needed_bytes", gpu_need_bytes(most)},
                       {"estimated_bytes", {{"libraries", kGpuLibraryBytes}}}};
    if (!target.known) return out;
    const GpuRoom room = room_of_described(*target.gpu, config);
    out["estimated_bytes"]["context_and_nccl"] = target.gpu->memory_bytes - room.free_bytes;
    out["memory_bytes"] = target.gpu->memory_bytes;
    out["free_bytes"] = room.free_bytes;
    out["fits"] = gpu_need_bytes(most) <= room.of_rank();
    return out;
}

}  // namespace stoa
