#pragma once
// Whether a rank's part of a run fits its GPU: one that is at hand, or one that is only described.
#include <string>

#include "configs/run_config.h"
#include "kernels/cuda/device.h"
#include "launcher/pick_device.h"
#include "trainer/model/activations.h"

namespace stoa {

// Estimates of what the plan cannot know, with some room: no figure here was measured on a GPU.
constexpr std::int64_t kGpuContextBytes = std::int64_t{512} << 20;  // CUDA context, our kernels
constexpr std::int64_t kGpuLibraryBytes = std::int64_t{256} << 20;  // code loaded at first use
constexpr std::int64_t kNcclGroupBytes = std::int64_t{384} << 20;   // buffers of one group

/// A GPU by "NAME/CAPABILITY/GIB", as in "NVIDIA H200/90/141".
/// errors: ConfigError that names `option`, what is wrong and the form
cuda::DeviceInfo parse_gpu(const std::string& option, const std::string& text);

/// What the ranks of one GPU have of it.
struct GpuRoom {
    cuda::DeviceInfo gpu;
    int index = -1;   // -1: described
    int sharers = 1;  // ranks on it
    std::int64_t free_bytes = 0;
    std::string less;  // what free_bytes is without
    std::int64_t of_rank() const { return free_bytes / sharers; }
};
/// Of a described GPU: its memory less the estimates of the context and of NCCL's groups.
GpuRoom room_of_described(const cuda::DeviceInfo& gpu, const RunConfig& config);
/// Of a GPU at hand; `free_bytes`: after the contexts and NCCL.
GpuRoom room_at_hand(const cuda::DeviceInfo& gpu, int index, int sharers, std::int64_t free_bytes);

/// What a rank will take: arena, scratch of its largest op, as much in graphs, code that libraries
/// load later.
std::int64_t gpu_need_bytes(const MemoryPlan& plan);
/// "58.60 GiB of arena + 2.25 of scratch (attention_backward) + an estimated 0.25 of ..."
std::string gpu_need_text(const MemoryPlan& plan);

/// What does not fit into what the GPU has left, and what would.
struct GpuNeed {
    std::string what, parts;  // "the prompt's caches", "1.50 GiB caches, ..."
    std::int64_t bytes = 0;   // of a rank
    std::string hint;
};
/// For what is no run's plan: with an estimate for the kernels' scratch and the libraries' code;
/// nothing on the CPU. Ranks that share a GPU ask before any of them takes it.
/// errors: MemoryError
void require_fits_gpu(const GpuNeed& need, const DevicePick& pick);

/// errors: MemoryError with every number and the advice when this does not fit
void require_fits_gpu(const RunConfig& config, const MemoryPlan& plan, const GpuRoom& room,
                      const GpuSetup& setup);

}  // namespace stoa
