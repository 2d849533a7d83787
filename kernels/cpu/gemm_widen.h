#pragma once
#include "kernels/cpu/gemm.h"

namespace stoa::cpu {

/// out[i] = element (row, column + i) of the stored matrix, i < n, times its scale: exact, so every
/// instruction set gives the same value. A NaN stays one, with any payload.
void widen_run(float* out, const Operand& x, std::int64_t row, std::int64_t column, std::int64_t n);

}  // namespace stoa::cpu
