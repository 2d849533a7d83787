#pragma once
#include "kernels/core/fast_exp.h"

namespace stoa::cpu {

using stoa::fast_exp;

/// The same in fused steps, for x up to 88: what a softmax needs.
inline float fused_exp(float x) {
    constexpr float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
    constexpr float kRound = 12582912.0f;
    const float shifted = __builtin_fmaf(x, kLog2E, kRound);
    const float n = shifted - kRound;
    const float r = __builtin_fmaf(n, -kLn2Low, __builtin_fmaf(n, -kLn2High, x));
    float p = __builtin_fmaf(1.38144626e-3f, r, 8.36878045e-3f);
    p = __builtin_fmaf(p, r, 4.16683943e-2f);
    p = __builtin_fmaf(p, r, 1.66665201e-1f);
    p = __builtin_fmaf(p, r, 4.99999934e-1f);
    p = __builtin_fmaf(p * r, r, r) + 1.0f;
    const std::uint32_t power = (std::bit_cast<std::uint32_t>(shifted) << 23) + 0x3f800000u;  // 2^n
    const float y = p * std::bit_cast<float>(power);  // NaN stays NaN
    return x < -87.33654f ? 0.0f : y;
}
inline double fused_exp(double x) { return std::exp(x); }

}  // namespace stoa::cpu
