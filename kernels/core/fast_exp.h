#pragma once
// exp in plain multiplies and adds: it vectorises, and gives the same bits at every vector width
// and on a GPU.
#include <cmath>
#include <cstdint>

#include "kernels/core/numeric.h"

namespace stoa {

/// e^x = 2^n e^r, n = round(x / ln 2), |r| <= ln(2) / 2; e^r = 1 + r + r^2 P(r) with a minimax P of
/// degree 4 (relative error 3e-9). Within 2 ulp. Below -87.33, where the result would be subnormal,
/// it is 0; above 88.72 it is infinite; NaN stays NaN.
STOA_HD inline float fast_exp(float x) {
    constexpr float kLog2E = 1.44269504f;
    constexpr float kLn2High = 0.693359375f;  // 9 bits: n * kLn2High is exact
    constexpr float kLn2Low = -2.12194440e-4f;
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const float shifted = x * kLog2E + kRound;
    const float n = shifted - kRound;
    const float r = (x - n * kLn2High) - n * kLn2Low;
    float p = 1.38144626e-3f;
    p = p * r + 8.36878045e-3f;
    p = p * r + 4.16683943e-2f;
    p = p * r + 1.66665201e-1f;
    p = p * r + 4.99999934e-1f;
    p = p * (r * r) + r + 1.0f;
    // The low bits of `shifted` are n in two's complement: add them to the exponent of p.
    const std::uint32_t exponent = float_bits(shifted) << 23;
    float y = bits_float(float_bits(p) + exponent);
    y = x < -87.33654f ? 0.0f : y;
    y = x > 88.72283f ? bits_float(0x7f800000u) : y;
    return x != x ? x : y;
}
STOA_HD inline double fast_exp(double x) { return std::exp(x); }

/// a b + c, rounded once.
STOA_HD inline float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
    return fmaf(a, b, c);
#else
    return __builtin_fmaf(a, b, c);
#endif
}
STOA_HD inline double fused(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
    return fma(a, b, c);
#else
    return __builtin_fma(a, b, c);
#endif
}

/// fast_exp in fused steps, for x up to 88: what a softmax needs.
STOA_HD inline float fused_exp(float x) {
    constexpr float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
    constexpr float kRound = 12582912.0f;
    const float shifted = fused(x, kLog2E, kRound);
    const float n = shifted - kRound;
    const float r = fused(n, -kLn2Low, fused(n, -kLn2High, x));
    float p = fused(1.38144626e-3f, r, 8.36878045e-3f);
    p = fused(p, r, 4.16683943e-2f);
    p = fused(p, r, 1.66665201e-1f);
    p = fused(p, r, 4.99999934e-1f);
    p = fused(p * r, r, r) + 1.0f;
    const std::uint32_t power = (float_bits(shifted) << 23) + 0x3f800000u;  // 2^n
    const float y = p * bits_float(power);                                  // NaN stays NaN
    return x < -87.33654f ? 0.0f : y;
}
STOA_HD inline double fused_exp(double x) { return std::exp(x); }

}  // namespace stoa
