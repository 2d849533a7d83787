#pragma once
#include <cstdint>

#include "kernels/cpu/isa.h"

namespace stoa::cpu {

/// What becomes of the sums over one block of k: they are c, they are added to c, or they began from
/// c, so that the fma chain of an element goes on where an earlier block or call has left it.
enum class Into { write, add, chain };

/// c (rows, nr), as `into` says, gets a^T b over one block of k. a is packed: mr values per step of k. b holds nr
/// consecutive values per step, b_stride apart: nr when packed, ldb when read in place.
using MicroKernel = void (*)(std::int64_t k, const float* a, const float* b, std::int64_t b_stride,
                             float* c, std::int64_t ldc, Into into);

/// The same with a where it lies: rows of steps, lda apart.
using MicroKernelInPlace = void (*)(std::int64_t k, const float* a, std::int64_t lda,
                                    const float* b, std::int64_t b_stride, float* c,
                                    std::int64_t ldc, Into into);

constexpr int kMaxMr = 12;
constexpr int kMaxNr = 32;

/// The register tile of one instruction set; for_rows[r - 1] computes r <= mr rows.
struct MicroKernels {
    int mr = 0, nr = 0;
    MicroKernel for_rows[kMaxMr] = {};
    MicroKernelInPlace in_place[kMaxMr] = {};
    bool packing_pays = true;  // before a product of many columns
};
const MicroKernels& micro_kernels(Isa isa);

}  // namespace stoa::cpu
