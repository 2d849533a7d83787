#pragma once
// Whether a run fits before anything starts, and what would make it fit.
#include <string>
#include <vector>

#include "configs/run_config.h"
#include "trainer/model/activations.h"

namespace stoa {

/// Memory this process may still take: the smaller of what the machine has free and what its
/// control group allows. 0 when neither is known.
std::int64_t available_memory_bytes();

/// What one checkpoint takes on disk (masters and moments, all ranks together), and a run: the
/// kept ones and the one being written.
struct DiskNeed {
    std::int64_t checkpoint_bytes = 0, run_bytes = 0;
};
DiskNeed plan_disk(const RunConfig& config);

/// One change of the configuration and the plan of a rank after it.
struct Advice {
    std::string change;  // "batch.micro_batch=1 (slower: ...)"
    std::int64_t bytes = 0;
};
/// The cheapest changes, one alone or, where none suffices, added up, with which the plan of rank 0
/// takes at most `limit_bytes`; at most three. Cheapest first: less work lost, then less precision.
std::vector<Advice> advise(const RunConfig& config, std::int64_t limit_bytes, Device device = {},
                           const GpuSetup& gpu = {});

/// errors: MemoryError with the advice when `ranks_here` ranks of this plan do not fit the machine.
/// What lies outside the plan is counted as kOutsidePlanBytes a rank.
constexpr std::int64_t kOutsidePlanBytes = 48 << 20;  // code, MPI, data, packing buffers
void require_fits(const RunConfig& config, const MemoryPlan& plan, int ranks_here,
                  std::int64_t available_bytes);

}  // namespace stoa
