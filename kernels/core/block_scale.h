#pragma once
// The power of two of a quantiser block, in integers: one text for the CPU, the GPU and the tests.
#include <algorithm>

#include "kernels/core/numeric.h"

namespace stoa {

constexpr std::int32_t kInfBits = 0x7f800000;

template <class T>
STOA_HD inline float load_float(T x) {
    if constexpr (std::is_same_v<T, float>)
        return x;
    else
        return to_float(x);
}
STOA_HD inline e4m3 round_to(float x, e4m3) { return to_e4m3(x); }
STOA_HD inline e5m2 round_to(float x, e5m2) { return to_e5m2(x); }

/// |x| as an integer: ordered like the values, Inf and NaN on top.
template <class T>
STOA_HD inline std::int32_t magnitude(T x) {
    return static_cast<std::int32_t>(float_bits(load_float(x)) & 0x7fffffffu);
}

/// The exponent byte of 1/s for a block whose largest magnitude is `a`. 448 and 57344 are
/// 1.75 * 2^8 and 1.75 * 2^15: 1/s is a / 2^8 or a / 2^15 with the mantissa cut off, and one binade
/// more where the mantissa is above 1.75.
template <class Code>
STOA_HD inline std::int32_t scale_byte(std::int32_t a) {
    constexpr std::int32_t kTop = std::is_same_v<Code, e4m3> ? 8 : 15;
    const auto above = static_cast<std::int32_t>((static_cast<std::uint32_t>(a) + 0x1fffffu) >> 23);
    const std::int32_t byte = above - kTop > 1 ? above - kTop : 1;
    return a == 0 || a >= kInfBits ? 127 : byte;
}
/// s of that byte: a power of two from 2^-120 to 2^126.
STOA_HD inline float factor_of(std::int32_t byte) {
    return bits_float(static_cast<std::uint32_t>(254 - byte) << 23);
}

}  // namespace stoa
