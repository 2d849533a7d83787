#pragma once
#include <cstdint>

namespace stoa {

/// For fault tests: with STOA_FAULT=kill@STEP:RANK in the environment, that rank kills itself
/// (SIGKILL) right after STEP steps, when their checkpoint, if due, is committed. Nothing without
/// the variable.
void fault_point(std::int64_t step, int rank);

}  // namespace stoa
