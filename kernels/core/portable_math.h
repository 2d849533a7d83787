#pragma once
// Logarithm and cosine in float64 from multiplies, adds and one division: the same bits from every
// C library and on a GPU. Both within 2 units of the last place.
#include <bit>
#include <cmath>

#include "kernels/core/numeric.h"

namespace stoa {

/// ln x = k ln 2 + 2 atanh(s), s = (m - 1) / (m + 1), for x = 2^k m and m in [sqrt(1/2), sqrt(2));
/// atanh(s) = s + s^3 / 3 + s^5 / 5 + ..., where s^2 < 0.0295.
STOA_HD inline double portable_log(double x) {
    if (!(x > 0.0) || x - x != 0.0)  // 0, below 0, Inf, NaN
        return x == 0.0 ? -HUGE_VAL : x > 0.0 ? x : x - x + HUGE_VAL - HUGE_VAL;
    constexpr double kLn2High = 0x1.62e42fefa38p-1;  // k times it is exact
    constexpr double kLn2Low = 0x1.ef35793c7673p-45;
    int k = 0;
    if (x < 0x1p-1022) {
        x *= 0x1p54;
        k = -54;
    }
    const auto bits = std::bit_cast<std::uint64_t>(x);
    k += static_cast<int>(bits >> 52) - 1023;
    double m = std::bit_cast<double>((bits & 0xfffffffffffffu) | 0x3ff0000000000000u);
    if (m > 1.4142135623730951) {
        m *= 0.5;
        ++k;
    }
    const double s = (m - 1.0) / (m + 1.0), z = s * s;
    double p = 1.0 / 25.0;
    p = p * z + 1.0 / 23.0;
    p = p * z + 1.0 / 21.0;
    p = p * z + 1.0 / 19.0;
    p = p * z + 1.0 / 17.0;
    p = p * z + 1.0 / 15.0;
    p = p * z + 1.0 / 13.0;
    p = p * z + 1.0 / 11.0;
    p = p * z + 1.0 / 9.0;
    p = p * z + 1.0 / 7.0;
    p = p * z + 1.0 / 5.0;
    p = p * z + 1.0 / 3.0;
    return k * kLn2High + (2.0 * s + (k * kLn2Low + 2.0 * s * z * p));
}

/// cos(2 pi u), u in [0, 1). u is brought to [-1/8, 1/8] without rounding; there the series of
/// cosine or sine.
STOA_HD inline double cos_of_turns(double u) {
    const auto quarter = static_cast<int>(u * 4.0 + 0.5);  // the nearest multiple of 1/4
    const double x = (u - quarter * 0.25) * 6.283185307179586, z = x * x;
    double c = 1.0 / 20922789888000.0;  // 1 / 16!
    c = c * z - 1.0 / 87178291200.0;
    c = c * z + 1.0 / 479001600.0;
    c = c * z - 1.0 / 3628800.0;
    c = c * z + 1.0 / 40320.0;
    c = c * z - 1.0 / 720.0;
    c = c * z + 1.0 / 24.0;
    c = c * z - 0.5;
    double s = -1.0 / 1307674368000.0;  // 1 / 15!
    s = s * z + 1.0 / 6227020800.0;
    s = s * z - 1.0 / 39916800.0;
    s = s * z + 1.0 / 362880.0;
    s = s * z - 1.0 / 5040.0;
    s = s * z + 1.0 / 120.0;
    s = s * z - 1.0 / 6.0;
    const double cosine = 1.0 + z * c, sine = x + x * (z * s);
    switch (quarter & 3) {
        case 0:
            return cosine;
        case 1:
            return -sine;
        case 2:
            return -cosine;
        default:
            return sine;
    }
}

}  // namespace stoa
