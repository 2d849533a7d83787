#pragma once
// Standard normals from Philox, the same bits on every machine and on a GPU.
#include "kernels/core/philox.h"
#include "kernels/core/portable_math.h"

namespace stoa {

/// One standard normal from one Philox block. [Box & Muller 1958]: u1 in (0, 1], u2 in [0, 1)
STOA_HD inline double standard_normal(const PhiloxBlock& r) {
    const std::uint64_t first = std::uint64_t{r[0]} | (std::uint64_t{r[1]} << 32);
    const std::uint64_t second = std::uint64_t{r[2]} | (std::uint64_t{r[3]} << 32);
    const double u1 = static_cast<double>((first >> 11) + 1) * 0x1p-53;
    const double u2 = static_cast<double>(second >> 11) * 0x1p-53;
    return std::sqrt(-2.0 * portable_log(u1)) * cos_of_turns(u2);
}

}  // namespace stoa
