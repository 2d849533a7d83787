#include <algorithm>
#include <cmath>

#include "kernels/adamw_element.h"
#include "kernels/core/philox.h"
#include "kernels/core/thread_pool.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/ops.h"
#include "kernels/quantize.h"

namespace stoa::cpu {
namespace {

template <class W>
inline void update(const AdamwStep<W>& s, std::int64_t n, W* param, W* m, W* v, const W* grad) {
    for (std::int64_t i = 0; i < n; ++i)
        adamw_element(s, param[i], m[i], v[i], grad[i]);
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

inline float code_factor(const float* x, std::int64_t n) {
    std::uint32_t amax = 0;
    for (std::int64_t i = 0; i < n; ++i)
        amax = std::max(amax, float_bits(x[i]) & 0x7fffffffu);
    return moment_factor(amax);
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

struct Run {
    std::int64_t at, block, n;  // first element, index of its scale, values
    std::int64_t logical;       // first element in the whole tensor
};

void store_param(const AdamwArgs& a, const Run& run, const float* x, std::uint32_t* random) {
    if (a.param.dtype == DType::fp32) {
        std::copy_n(x, run.n, a.param.as<float>().data() + run.at);
        return;
    }
    random_run(random, a.rounding_key, run.logical, run.n, param_word(a.step));
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
        random_run(random, a.rounding_key, run.logical, run.n, v_word(a.step));
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
    if (!bf16_v_at_random(a.beta2)) {
        for (std::int64_t i = 0; i < run.n; ++i)
            out[i] = to_bf16(x[i]);
        return;
    }
    random_run(random, a.rounding_key, run.logical, run.n, v_word(a.step));
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
    const AdamwStep<float> step(a);
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
    const AdamwStep<W> step(a);
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
