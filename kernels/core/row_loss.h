#pragma once
#include "kernels/core/portable_math.h"

namespace stoa {

/// The cross-entropy of one row; but in fp64, to a multiple of 2^-22 (kernels/cross_entropy.h).
template <class W>
STOA_HD double row_loss(W row_max, W exp_sum, W target_logit) {
    const double loss = portable_log(static_cast<double>(exp_sum)) + static_cast<double>(row_max) -
                        static_cast<double>(target_logit);
    return std::is_same_v<W, double> ? loss : std::nearbyint(loss * 0x1p22) * 0x1p-22;
}

}  // namespace stoa
