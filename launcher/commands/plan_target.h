#pragma once
// What `stoa plan` plans for: the CPU, a GPU that is here, or one that is described.
#include <boost/program_options.hpp>
#include <nlohmann/json.hpp>
#include <optional>

#include "launcher/gpu_memory.h"

namespace stoa {

/// Without a GPU the CPU. `known`: how much memory it has.
struct PlanTarget {
    std::optional<cuda::DeviceInfo> gpu;
    bool known = false;
    Device device() const { return {gpu ? DeviceKind::cuda : DeviceKind::cpu, 0}; }
    /// A program without CUDA plans for one that has all of it.
    GpuSetup setup() const;
};
/// By --gpu, --memory and parallel.device.     errors: ConfigError
PlanTarget plan_target(const RunConfig& config,
                       const boost::program_options::variables_map& values);

/// Whether the rank that needs most fits, with every number; of a GPU.
std::string target_text(const RunConfig& config, const PlanTarget& target, const MemoryPlan& most);
nlohmann::json target_json(const RunConfig& config, const PlanTarget& target,
                           const MemoryPlan& most);

}  // namespace stoa
