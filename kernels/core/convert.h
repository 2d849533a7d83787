#pragma once
// From any element type to any other, rounded once.
#include <cmath>

#include "kernels/core/numeric.h"

namespace stoa {

/// float64 to fp32, rounded to odd, so that a second rounding to 16 bits cannot land on a tie that
/// the value itself is not.
STOA_HD inline float round_to_odd(double x) {
    const float nearest = static_cast<float>(x);
    const std::uint32_t bits = float_bits(nearest), magnitude = bits & 0x7fffffffu;
    if (static_cast<double>(nearest) == x || magnitude >= 0x7f800000u) return nearest;
    const bool away = std::fabs(static_cast<double>(nearest)) > std::fabs(x);
    return bits_float((away ? bits - 1 : bits) | 1u);
}

template <class To, class From>
STOA_HD To convert(From x) {
    if constexpr (std::is_same_v<To, From>)
        return x;
    else if constexpr (std::is_same_v<To, fp24>)
        return to_fp24(static_cast<float>(widen(x)));
    else if constexpr (std::is_same_v<From, fp24>)
        return narrow_to<To>(static_cast<Wide<To>>(to_float(x)));
    else if constexpr (sizeof(To) == 2 && std::is_same_v<From, double>)
        return narrow_to<To>(round_to_odd(x));
    else
        return narrow_to<To>(static_cast<Wide<To>>(widen(x)));
}

}  // namespace stoa
