#pragma once
#include "kernels/cpu/gemm.h"

namespace stoa::cpu {

/// Packs rows of op(a), or columns of op(b), [first, first + count) over the steps [p, p + k) of
/// the contraction into panels of `width`: width values per step, consecutive, in fp32 whatever the
/// source, the last panel padded with zeros; panels lie width * depth apart.
/// along_k: the stored rows run along the contraction (a as it is, b transposed).
void pack_panels(float* packed, std::int64_t width, std::int64_t depth, const Operand& x,
                 bool along_k, std::int64_t first, std::int64_t count, std::int64_t p,
                 std::int64_t k);

}  // namespace stoa::cpu
