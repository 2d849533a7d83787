#pragma once
// AdamW of one element and the rounding of its state: one text for the CPU and the GPU.
#include <cmath>

#include "kernels/adamw.h"
#include "kernels/core/philox.h"

namespace stoa {

/// Constants of one step in float64, rounded once.
template <class W>
struct AdamwStep {
    W lr, eps, b1, one_minus_b1, b2, one_minus_b2, m_scale, v_scale, decay, grad_scale;
    explicit AdamwStep(const AdamwArgs& a)
        : lr(static_cast<W>(a.lr)),
          eps(static_cast<W>(a.eps)),
          b1(static_cast<W>(a.beta1)),
          one_minus_b1(static_cast<W>(1.0 - a.beta1)),
          b2(static_cast<W>(a.beta2)),
          one_minus_b2(static_cast<W>(1.0 - a.beta2)),
          m_scale(static_cast<W>(1.0 / (1.0 - std::pow(a.beta1, static_cast<double>(a.step))))),
          v_scale(static_cast<W>(1.0 / (1.0 - std::pow(a.beta2, static_cast<double>(a.step))))),
          decay(static_cast<W>(a.weight_decay)),
          grad_scale(static_cast<W>(a.grad_scale)) {}
};

template <class W>
STOA_HD inline void adamw_element(const AdamwStep<W>& s, W& param, W& m, W& v, W grad) {
    const W g = grad * s.grad_scale;
    const W m_i = s.b1 * m + s.one_minus_b1 * g;
    const W v_i = s.b2 * v + s.one_minus_b2 * (g * g);
    const W direction = m_i * s.m_scale / (std::sqrt(v_i * s.v_scale) + s.eps);
    m = m_i;
    v = v_i;
    param -= s.lr * (direction + s.decay * param);
}

/// s of a run's codes x * s: a power of two that brings its largest magnitude, given as the bits of
/// a float, into (224, 448].
STOA_HD inline float moment_factor(std::uint32_t amax) {
    if (amax == 0 || amax >= 0x7f800000u) return 1.0f;
    const float s = 448.0f / bits_float(amax);
    return bits_float(float_bits(s < 0x1p126f ? s : 0x1p126f) & 0xff800000u);
}
STOA_HD inline e8m0 scale_of(float factor) {
    return e8m0{static_cast<std::uint8_t>(float_bits(1.0f / factor) >> 23)};
}

/// To one of the two neighbours of x in [0, 448], to the upper one as often as x is near to it, and
/// 0 only for 0. Adds less than one step of e4m3 at x, and cuts off what is below a step; exact, as
/// x + 2^-16 step never rounds up to a step.
STOA_HD inline e4m3 round_at_random(float x, std::uint32_t random) {
    const float exponent = bits_float(float_bits(x) & 0x7f800000u);
    const float step = (exponent > 0x1p-6f ? exponent : 0x1p-6f) * 0x1p-3f;
    const float sum = x + step * (static_cast<float>(random >> 16) * 0x1p-16f);
    const float whole = sum / step;
    const auto steps = static_cast<std::int32_t>(whole < 16.0f ? whole : 16.0f);
    const e4m3 code = to_e4m3(static_cast<float>(steps) * step);
    return {x > 0.0f && code.bits == 0 ? std::uint8_t{1} : code.bits};
}

/// Which words of Philox the parameter and v of a step draw: element e of the whole tensor has word
/// e % 4 of philox(rounding_key, e / 4, which).
STOA_HD inline std::uint64_t param_word(std::int64_t step) {
    return 2 * static_cast<std::uint64_t>(step);
}
STOA_HD inline std::uint64_t v_word(std::int64_t step) { return param_word(step) + 1; }

/// Whether a bf16 v is rounded stochastically: a step of 1 - beta2 would be lost to nearest.
inline bool bf16_v_at_random(double beta2) { return 1.0 - beta2 < 0x1p-8; }

}  // namespace stoa
