#include <algorithm>
#include <cmath>

#include "kernels/core/philox.h"
#include "kernels/core/thread_pool.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/ops.h"
#include "kernels/quantize.h"

namespace stoa::cpu {
namespace {

// Constants of one step in float64, rounded once.
template <class W>
struct Step {
    W lr, eps, b1, one_minus_b1, b2, one_minus_b2, m_scale, v_scale, decay, grad_scale;
    explicit Step(const AdamwArgs& a)
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
inline void update(const Step<W>& s, std::int64_t n, W* param, W* m, W* v, const W* grad) {
    for (std::int64_t i = 0; i < n; ++i) {
        const W g = grad[i] * s.grad_scale;
        const W m_i = s.b1 * m[i] + s.one_minus_b1 * g;
        const W v_i = s.b2 * v[i] + s.one_minus_b2 * (g * g);
        const W direction = m_i * s.m_scale / (std::sqrt(v_i * s.v_scale) + s.eps);
        m[i] = m_i;
        v[i] = v_i;
        param[i] -= s.lr * (direction + s.decay * param[i]);
    }
}

constexpr std::int64_t kRun = kQuantBlock;  // values of one row that share a scale

/// A run of one state tensor in fp32, and back. `at` counts elements from the tensor's start.
inline void load_run(float* out, const ConstTensorView& t, std::int64_t at, std::int64_t n) {
    if (t.dtype == DType::fp32) {
        std::copy_n(t.as<float>().data() + at, n, out);
    } else if (t.dtype == DType::bf16) {
        const bf16* const in = t.as<bf16>().data() + at;
        for (std::int64_t i = 0; i < n; ++i)
            out[i] = to_float(in[i]);
    } else if (t.dtype == DType::fp24) {
        const fp24* const in = t.as<fp24>().data() + at;
        for (std::int64_t i = 0; i < n; ++i)
            out[i] = to_float(in[i]);
    }
}
inline void load_codes(float* out, const ConstTensorView& t, const ConstTensorView& scale,
                       std::int64_t at, std::int64_t block, std::int64_t n) {
    const e4m3* const in = t.as<e4m3>().data() + at;
    const float s = to_float(scale.as<e8m0>()[static_cast<std::size_t>(block)]);
    for (std::int64_t i = 0; i < n; ++i)
        out[i] = to_float(in[i]) * s;
}

/// s of the run's codes x * s: a power of two that brings the largest magnitude into (224, 448].
inline float code_factor(const float* x, std::int64_t n) {
    std::uint32_t amax = 0;
    for (std::int64_t i = 0; i < n; ++i)
        amax = std::max(amax, float_bits(x[i]) & 0x7fffffffu);
    if (amax == 0 || amax >= 0x7f800000u) return 1.0f;
    return bits_float(float_bits(std::min(448.0f / bits_float(amax), 0x1p126f)) & 0xff800000u);
}
inline e8m0 scale_of(float factor) {
    return e8m0{static_cast<std::uint8_t>(float_bits(1.0f / factor) >> 23)};
}

/// To one of the two neighbours of x in [0, 448], to the upper one as often as x is near to it, and
/// 0 only for 0. Adds less than one step of e4m3 at x, and cuts off what is below a step; exact, as
/// x + 2^-16 step never rounds up to a step.
inline e4m3 round_at_random(float x, std::uint32_t random) {
    const float exponent = bits_float(float_bits(x) & 0x7f800000u);
    const float step = std::max(exponent, 0x1p-6f) * 0x1p-3f;
    const float sum = x + step * (static_cast<float>(random >> 16) * 0x1p-16f);
    const auto steps = static_cast<std::int32_t>(std::min(16.0f, sum / step));
    const e4m3 code = to_e4m3(static_cast<float>(steps) * step);
    return {x > 0.0f && code.bits == 0 ? std::uint8_t{1} : code.bits};
}

/// The random words of a run: element e draws word e % 4 of philox(key, e / 4, which).
inline void random_run(std::uint32_t* out, std::uint64_t key, std::int64_t element, std::int64_t n,
                       std::uint64_t which) {
    for (std::int64_t i = 0; i < n;) {
        const std::int64_t e = element + i;
        const PhiloxBlock words = philox(key, static_cast<std::uint64_t>(e / 4), which);
        for (std::int64_t w = e % 4; w < 4 && i < n; ++w, ++i)
            out[i] = words[static_cast<std::size_t>(w)];
    }
}

/// Which words of Philox the parameter and v of a step draw.
std::uint64_t param_word(const AdamwArgs& a) { return 2 * static_cast<std::uint64_t>(a.step); }
std::uint64_t v_word(const AdamwArgs& a) { return param_word(a) + 1; }

struct Run {
    std::int64_t at, block, n;  // first element, index of its scale, values
    std::int64_t logical;       // first element in the whole tensor
};

void store_param(const AdamwArgs& a, const Run& run, const float* x, std::uint32_t* random) {
    if (a.param.dtype == DType::fp32) {
        std::copy_n(x, run.n, a.param.as<float>().data() + run.at);
        return;
    }
    random_run(random, a.rounding_key, run.logical, run.n, param_word(a));
    fp24* const out = a.param.as<fp24>().data() + run.at;
    for (std::int64_t i = 0; i < run.n; ++i)
        out[i] = truncate_to_fp24(add_random_bits(x[i], random[i], 24));
}

void store_v(const AdamwArgs& a, const Run& run, float* x, std::uint32_t* random) {
    if (a.v.dtype == DType::e4m3) {
        for (std::int64_t i = 0; i < run.n; ++i)
            x[i] = std::sqrt(x[i]);
        const float factor = code_factor(x, run.n);
        a.v_scale.as<e8m0>()[static_cast<std::size_t>(run.block)] = scale_of(factor);
        random_run(random, a.rounding_key, run.logical, run.n, v_word(a));
        e4m3* const codes = a.v.as<e4m3>().data() + run.at;
        for (std::int64_t i = 0; i < run.n; ++i)
            codes[i] = round_at_random(x[i] * factor, random[i]);
        return;
    }
    if (a.v.dtype == DType::fp32) {
        std::copy_n(x, run.n, a.v.as<float>().data() + run.at);
        return;
    }
    bf16* const out = a.v.as<bf16>().data() + run.at;
    if (1.0 - a.beta2 >= 0x1p-8) {
        for (std::int64_t i = 0; i < run.n; ++i)
            out[i] = to_bf16(x[i]);
        return;
    }
    random_run(random, a.rounding_key, run.logical, run.n, v_word(a));
    for (std::int64_t i = 0; i < run.n; ++i)
        out[i] = truncate_to_bf16(add_random_bits(x[i], random[i], 16));
}

void store_m(const AdamwArgs& a, const Run& run, const float* x) {
    if (a.m.dtype == DType::e4m3) {
        const float factor = code_factor(x, run.n);
        a.m_scale.as<e8m0>()[static_cast<std::size_t>(run.block)] = scale_of(factor);
        e4m3* const codes = a.m.as<e4m3>().data() + run.at;
        for (std::int64_t i = 0; i < run.n; ++i)
            codes[i] = to_e4m3(x[i] * factor);
    } else if (a.m.dtype == DType::fp32) {
        std::copy_n(x, run.n, a.m.as<float>().data() + run.at);
    } else {
        for (std::int64_t i = 0; i < run.n; ++i)
            a.m.as<bf16>()[static_cast<std::size_t>(run.at + i)] = to_bf16(x[i]);
    }
}

/// State below fp32, one run of at most 128 values of a row at a time.
void update_runs(const AdamwArgs& a) {
    const Step<float> step(a);
    const std::int64_t rows = a.param.rows(), cols = a.param.cols();
    const std::int64_t per_row = (cols + kRun - 1) / kRun;
    const auto update_rows = [&](std::int64_t begin, std::int64_t end) {
        alignas(64) float param[kRun], m[kRun], v[kRun], grad[kRun];
        alignas(64) std::uint32_t random[kRun];
        for (std::int64_t r = begin; r < end; ++r)
            for (std::int64_t b = 0; b < per_row; ++b) {
                const Run run{
                    .at = r * cols + b * kRun,
                    .block = r * per_row + b,
                    .n = std::min(kRun, cols - b * kRun),
                    .logical = (a.row_begin + r) * a.logical_cols + a.col_begin + b * kRun};
                load_run(param, a.param, run.at, run.n);
                load_run(grad, a.grad, run.at, run.n);
                if (a.m.dtype == DType::e4m3)
                    load_codes(m, a.m, a.m_scale, run.at, run.block, run.n);
                else
                    load_run(m, a.m, run.at, run.n);
                if (a.v.dtype == DType::e4m3) {
                    load_codes(v, a.v, a.v_scale, run.at, run.block, run.n);
                    for (std::int64_t i = 0; i < run.n; ++i)
                        v[i] *= v[i];
                } else {
                    load_run(v, a.v, run.at, run.n);
                }
                update(step, run.n, param, m, v, grad);
                store_param(a, run, param, random);
                store_m(a, run, m);
                store_v(a, run, v, random);
            }
    };
    parallel_for(rows, grain_for(cols), [&](std::int64_t begin, std::int64_t end) {
        vectorised([&] { update_rows(begin, end); });
    });
}

template <class W>
void update_in_place(const AdamwArgs& a) {
    const Step<W> step(a);
    W* const param = a.param.as<W>().data();
    W* const m = a.m.as<W>().data();
    W* const v = a.v.as<W>().data();
    const W* const grad = a.grad.as<W>().data();
    parallel_for(a.param.numel(), grain_for(1), [&](std::int64_t begin, std::int64_t end) {
        vectorised(
            [&] { update(step, end - begin, param + begin, m + begin, v + begin, grad + begin); });
    });
}

}  // namespace

void adamw(const AdamwArgs& a) {
    const auto all = [&](DType t) {
        return a.param.dtype == t && a.m.dtype == t && a.v.dtype == t && a.grad.dtype == t;
    };
    if (all(DType::fp64))
        update_in_place<double>(a);
    else if (all(DType::fp32))
        update_in_place<float>(a);
    else
        update_runs(a);
}

}  // namespace stoa::cpu
