#pragma once
#include <cstdint>

#include "trainer/model/transformer.h"

namespace stoa {

/// For fault tests: with STOA_FAULT=kill@STEP:RANK in the environment, that rank kills itself
/// (SIGKILL) right after STEP steps, when their checkpoint, if due, is committed; with
/// slow@STEP:RANK it waits 50 ms in each step from there on. Nothing without the variable.
void fault_point(std::int64_t step, int rank);

/// With STOA_FAULT=inf@FIRST-LAST:RANK:LAYER (or nan@...), that rank's gradient of that layer's
/// output holds Inf (NaN) in one value, in the first micro-batch of the steps that begin after
/// FIRST .. LAST steps.
Injection fault_injection(std::int64_t step, int rank, std::size_t micro_batch);

}  // namespace stoa
