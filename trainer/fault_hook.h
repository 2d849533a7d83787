#pragma once
// Faults for tests, asked for by the environment: STOA_FAULT=KIND@STEP:RANK[*], several separated
// by commas. They happen in generation 0 ($STOA_GENERATION) only, with * in every one.
//
//   kill             SIGKILL right after STEP steps, when their checkpoint, if due, is committed
//   segv abort       in the step that begins after STEP steps, as all below:
//   exit0            leaves with 0, without MPI_Finalize
//   oom              throws std::bad_alloc
//   stop             stops itself (SIGSTOP)
//   loop             computes for ever
//   slow             sleeps 50 ms, in this step and all later ones; at STEP 0 in pre-flight, too
//   skip-collective  leaves out one collective of the world
//   swap-collective  calls it with another count
//   throw-PHASE      throws in that phase: start, restore; or step, evaluate, save of the first of
//                    them at or after STEP
//
// And STOA_FAULT=inf@FIRST-LAST:RANK:LAYER, or nan@...: fault_injection.
#include <chrono>
#include <cstdint>

#include "parallel/board.h"
#include "trainer/model/transformer.h"

namespace stoa {

/// Right after a step and what follows it: kill.
void fault_point(std::int64_t step, int rank);
/// Where work of `phase` begins: everything else.     errors: std::bad_alloc, std::runtime_error
void fault_in(Phase phase, std::int64_t step, int rank);
/// What this rank does with the step's last collective of the world.
enum class CollectiveFault { none, skip, swap };
CollectiveFault collective_fault(std::int64_t step, int rank);
/// STOA_PACE_MS: sleeps until a step that began at `begin` has lasted so long, so that a small
/// model trains for an hour without computing for one.
void pace_step(std::chrono::steady_clock::time_point begin);
/// Whether a rank is to be killed right after this step: then a save in flight ends first.
bool fault_due(std::int64_t step);

/// With STOA_FAULT=inf@FIRST-LAST:RANK:LAYER (or nan@...), that rank's gradient of that layer's
/// output holds Inf (NaN) in one value, in the first micro-batch of the steps that begin after
/// FIRST .. LAST steps.
Injection fault_injection(std::int64_t step, int rank, std::size_t micro_batch);

}  // namespace stoa
