#pragma once
// The narrow formats from their definition, in float64 and without a bit trick: what the
// conversions of kernels/core/numeric.h are compared with.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/core/numeric.h"

namespace stoa::test {

struct Format {
    int exponent_bits, mantissa_bits, bias;
    double max;
    bool has_inf;    // the codes of an all-ones exponent are Inf and NaN; else only the last is NaN
    bool saturates;  // above max: max, else Inf
    std::uint32_t nan;
    int least_exponent() const { return 1 - bias; }
    std::uint32_t sign_bit() const { return 1u << (exponent_bits + mantissa_bits); }
};

inline Format format_of(DType t) {
    switch (t) {
        case DType::fp16:
            return {5, 10, 15, 65504.0, true, false, 0x7e00};
        case DType::bf16:
            return {8, 7, 127, 0x1.fep127, true, false, 0x7fc0};
        case DType::e4m3:
            return {4, 3, 7, 448.0, false, true, 0x7f};
        default:
            return {5, 2, 15, 57344.0, true, true, 0x7f};  // e5m2
    }
}

/// The value that a code stands for.
inline double value_of_code(std::uint32_t code, const Format& f) {
    const auto ones = (1u << f.exponent_bits) - 1, steps = 1u << f.mantissa_bits;
    const std::uint32_t exponent = code / steps & ones, mantissa = code % steps;
    const double sign = code & f.sign_bit() ? -1.0 : 1.0;
    if (f.has_inf && exponent == ones)
        return mantissa == 0 ? sign * std::numeric_limits<double>::infinity()
                             : std::numeric_limits<double>::quiet_NaN();
    if (!f.has_inf && exponent == ones && mantissa == steps - 1)
        return std::numeric_limits<double>::quiet_NaN();
    const double fraction = static_cast<double>(mantissa) / steps + (exponent == 0 ? 0.0 : 1.0);
    const int power = std::max(static_cast<int>(exponent), 1) - f.bias;
    return sign * std::ldexp(fraction, power);
}

/// The code nearest to v, ties to even; what is above the largest becomes it, or Inf.
inline std::uint32_t code_of_value(double v, const Format& f) {
    if (std::isnan(v)) return f.nan;
    const std::uint32_t sign = std::signbit(v) ? f.sign_bit() : 0;
    const std::uint32_t inf = ((1u << f.exponent_bits) - 1) << f.mantissa_bits;
    double a = f.saturates ? std::min(std::abs(v), f.max) : std::abs(v);
    if (std::isinf(a)) return sign | inf;
    const auto exponent_of = [&](double x) {
        return x == 0.0 ? f.least_exponent() : std::max(std::ilogb(x), f.least_exponent());
    };
    const double unit = std::ldexp(1.0, exponent_of(a) - f.mantissa_bits);
    a = std::nearbyint(a / unit) * unit;
    if (a > f.max) return sign | inf;
    const int exponent = exponent_of(a);
    const auto steps = static_cast<std::uint32_t>(std::ldexp(a, f.mantissa_bits - exponent));
    const std::uint32_t one = 1u << f.mantissa_bits;  // fewer steps: a subnormal
    const std::uint32_t field =
        steps < one ? 0 : static_cast<std::uint32_t>(exponent + f.bias) << f.mantissa_bits;
    return sign | field | steps % one;
}

}  // namespace stoa::test
