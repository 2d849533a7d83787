#pragma once
// What a GPU's run takes beside its arena: scratch of the ops of a step, and pinned host memory.
#include <string>
#include <vector>

#include "kernels/device_scratch.h"
#include "trainer/model/activations.h"

namespace stoa {

/// The most that each op with scratch holds at once in a step of `micro_batch` rows of `seq_len`
/// tokens (evaluations make the same calls), largest first. `dims`: of the stage, as layout_*.
std::vector<PlannedScratch> plan_scratch(const RunConfig& config, const LocalDims& dims,
                                         std::int64_t seq_len, int tp_rank, int tp_size,
                                         int dp_rank, const GpuLibraries& has);

/// Pinned host memory of the groups' staged collectives (parallel/staged.h), by group: each keeps
/// what its largest takes. With `nccl` only sums whose order is part of the result are staged.
struct PlannedStaging {
    std::int64_t tp = 0, dp = 0, dp_beside = 0;
    std::int64_t bytes() const { return tp + dp + dp_beside; }
};
PlannedStaging plan_staging(const RunConfig& config, const LocalDims& dims, std::int64_t seq_len,
                            int tp_rank, int tp_size, int dp_rank, bool nccl);

}  // namespace stoa
