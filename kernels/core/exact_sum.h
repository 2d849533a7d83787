#pragma once
// A sum of float64 values without rounding, so that it does not depend on their order or on who
// adds which: fixed-point limbs that ranks add as integers. [Kulisch accumulator]
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/core/numeric.h"

namespace stoa {

/// Limb l counts units of 2^(32 l - 352): values from 2^-300 to 2^280, which holds the squares of
/// all of fp32 and bf16; what lies below is dropped bit by bit, what lies above counts as not
/// finite. Carries wait in the upper half of each limb, so that up to 2^31 values can be added.
struct ExactSum {
    static constexpr int kLimbs = 22, kLowest = -352;
    std::array<std::int64_t, kLimbs> limb{};
    std::int64_t nonfinite = 0;  // values that were Inf, NaN or too large

    /// x >= 0 as three limbs from `at` on; at is below 0 where nothing is to be added, and kLimbs
    /// where x counts as not finite.
    struct Parts {
        int at;
        std::uint32_t limb[3];
    };
    STOA_HD static Parts parts_of(double x) {
        const auto bits = std::bit_cast<std::uint64_t>(x);
        const int exponent = static_cast<int>(bits >> 52 & 0x7ff);
        if (exponent == 0) return {-1, {}};              // 0, or below 2^-1022
        const int position = exponent - 1075 - kLowest;  // of the mantissa's last bit
        if (exponent == 0x7ff || position > 32 * (kLimbs - 3)) return {kLimbs, {}};
        std::uint64_t mantissa = (bits & 0xfffffffffffffu) | 0x10000000000000u;
        if (position < 0) mantissa = position < -63 ? 0 : mantissa >> -position;
        const int at = position < 0 ? 0 : position, shift = at % 32;
        const std::uint64_t low = mantissa << shift;
        const std::uint64_t high = shift == 0 ? 0 : mantissa >> (64 - shift);
        return {at / 32,
                {static_cast<std::uint32_t>(low), static_cast<std::uint32_t>(low >> 32),
                 static_cast<std::uint32_t>(high)}};
    }
    /// x >= 0
    void add(double x) {
        const Parts parts = parts_of(x);
        if (parts.at == kLimbs) ++nonfinite;
        for (int i = 0; i < 3 && parts.at >= 0 && parts.at < kLimbs; ++i)
            limb[static_cast<std::size_t>(parts.at + i)] += std::int64_t{parts.limb[i]};
    }
    void add(const ExactSum& other) {
        for (std::size_t i = 0; i < limb.size(); ++i)
            limb[i] += other.limb[i];
        nonfinite += other.nonfinite;
    }
    /// The sum as a double, within a few units of its last place; NaN with a value that was not
    /// finite.
    double value() const {
        if (nonfinite != 0) return std::numeric_limits<double>::quiet_NaN();
        double sum = 0.0;
        for (int i = kLimbs; i-- > 0;)
            sum += std::ldexp(static_cast<double>(limb[static_cast<std::size_t>(i)]),
                              32 * i + kLowest);
        return sum;
    }
};

}  // namespace stoa
