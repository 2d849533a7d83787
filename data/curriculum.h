#pragma once
// Which stage a step belongs to, and which sample of which source fills slot i of it. Everything
// here is a pure function of the configuration and the state: equal on all ranks, before and after
// a resume.
#include <cstdint>
#include <vector>

#include "configs/run_config.h"

namespace stoa {

/// Saved in every checkpoint.
struct CurriculumState {
    std::int64_t step = 0;    // next optimizer step
    std::int64_t tokens = 0;  // tokens consumed before it (global_batch * seq_len per step)
    std::int64_t stage = 0;   // index into config.stages; == size() when the run is done
    std::int64_t stage_begin_step = 0;
    std::int64_t stage_begin_tokens = 0;
    /// Per source of config.data.sources: tokens handed out in earlier stages.
    std::vector<std::int64_t> source_tokens;
    bool operator==(const CurriculumState&) const = default;
};

CurriculumState initial_curriculum(const RunConfig& config);
bool run_finished(const CurriculumState& state, const RunConfig& config);
const StageConfig& stage_at(const CurriculumState& state, const RunConfig& config);
/// The state after one more step; crosses into the next stage when the budget is used up.
CurriculumState advance(const CurriculumState& state, const RunConfig& config);
std::int64_t total_steps(const RunConfig& config);
std::int64_t total_tokens(const RunConfig& config);

/// Slot `i` (0 <= i < global_batch) of the step: source index and ordinal of the sequence within
/// the source. The mix is exact over every window of D slots (D = the least common denominator of
/// the weights, at most 1000; finer weights are rounded to thousandths): a permutation keyed by
/// (seed, stage, window) deals each window, so shares never drift. A source's ordinals run on
/// without gap or repeat inside a stage; the next stage starts at ceil(source_tokens / seq_len).
struct SlotAssignment {
    std::int64_t source = 0;
    std::int64_t ordinal = 0;
};
/// Slots [begin, begin + count) of the step: one deal per window instead of one per slot.
std::vector<SlotAssignment> assign_slots(const RunConfig& config, const CurriculumState& state,
                                         std::int64_t begin, std::int64_t count);
SlotAssignment assign_slot(const RunConfig& config, const CurriculumState& state,
                           std::int64_t slot);

}  // namespace stoa
