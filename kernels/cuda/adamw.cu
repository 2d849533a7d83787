#include "kernels/adamw_element.h"
#include "kernels/core/block_scale.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/packs.h"
#include "kernels/quantize.h"

namespace stoa::cuda {
namespace {

/// All in one type: a thread an element.
template <class W>
STOA_KERNEL void same_type_kernel(AdamwStep<W> step, W* param, W* m, W* v, const W* grad,
                                  std::int64_t n) {
    const std::int64_t i = global_thread();
    if (i < n) adamw_element(step, param[i], m[i], v[i], grad[i]);
}

/// State below fp32: what the kernel needs of AdamwArgs.
struct NarrowState {
    std::byte *param, *m, *v;
    const std::byte* grad;
    e8m0 *m_scale, *v_scale;
    DType param_type, m_type, v_type, grad_type;
    std::int64_t rows, cols, row_begin, col_begin, logical_cols, step;
    std::uint64_t key;
    bool v_at_random;
};

constexpr int kRun = static_cast<int>(kQuantBlock), kEach = kRun / kWarp;

/// Values c .. c + kEach - 1 of a run of n that begins at element `first`, in fp32.
template <class T>
STOA_DEVICE void load_as(float (&out)[kEach], const std::byte* data, std::int64_t first, int c,
                         std::int64_t n, float scale) {
    const auto in = load_pack<kEach>(reinterpret_cast<const T*>(data) + first, c, n);
    for (int i = 0; i < kEach; ++i)
        out[i] = load_float(in.v[i]) * scale;
}
STOA_DEVICE inline void load_run(float (&out)[kEach], const std::byte* data, DType type,
                                 std::int64_t first, int c, std::int64_t n, float scale) {
    switch (type) {
        case DType::bf16:
            return load_as<bf16>(out, data, first, c, n, 1.0f);
        case DType::fp24:
            return load_as<fp24>(out, data, first, c, n, 1.0f);
        case DType::e4m3:
            return load_as<e4m3>(out, data, first, c, n, scale);
        default:
            return load_as<float>(out, data, first, c, n, 1.0f);
    }
}
/// round(i) for each value, stored.
template <class T, class Round>
STOA_DEVICE void store_as(std::byte* data, std::int64_t first, int c, std::int64_t n,
                          const Round& round) {
    Pack<T, kEach> out;
    for (int i = 0; i < kEach; ++i)
        out.v[i] = round(i);
    store_pack(reinterpret_cast<T*>(data) + first, c, n, out);
}

/// The random words of neighbouring elements: four of them share a block of Philox.
struct RandomWords {
    std::uint64_t key, which;
    std::int64_t block = -1;
    PhiloxBlock words{};
    STOA_DEVICE std::uint32_t at(std::int64_t e) {
        if (e / 4 != block) {
            block = e / 4;
            words = philox(key, static_cast<std::uint64_t>(block), which);
        }
        const std::int64_t w = e % 4;  // registers have no index
        return w < 2 ? (w == 0 ? words[0] : words[1]) : (w == 2 ? words[2] : words[3]);
    }
};

/// The factor of a run's codes, from each thread's values; and its scale, stored once.
STOA_DEVICE inline float store_scale(e8m0* scale, const float (&x)[kEach]) {
    std::int32_t amax = 0;
    for (int i = 0; i < kEach; ++i) {
        const auto size = static_cast<std::int32_t>(float_bits(x[i]) & 0x7fffffffu);
        amax = size > amax ? size : amax;
    }
    const float factor = moment_factor(static_cast<std::uint32_t>(warp_max(amax)));
    if (thread_index() % kWarp == 0) *scale = scale_of(factor);
    return factor;
}

/// A warp a run of up to 128 values of a row, which share a scale: four neighbours a thread.
STOA_KERNEL void narrow_kernel(AdamwStep<float> step, NarrowState s) {
    const std::int64_t per_row = (s.cols + kRun - 1) / kRun, run = global_thread() / kWarp;
    if (run >= s.rows * per_row) return;
    const std::int64_t row = run / per_row, begin = run % per_row * kRun;
    const std::int64_t first = row * s.cols + begin;
    const std::int64_t n = s.cols - begin < kRun ? s.cols - begin : kRun;
    const int c = thread_index() % kWarp * kEach;
    const std::int64_t logical = (s.row_begin + row) * s.logical_cols + s.col_begin + begin + c;
    const bool m_codes = s.m_type == DType::e4m3, v_codes = s.v_type == DType::e4m3;
    float param[kEach], m[kEach], v[kEach], grad[kEach];
    load_run(param, s.param, s.param_type, first, c, n, 1.0f);
    load_run(m, s.m, s.m_type, first, c, n, m_codes ? to_float(s.m_scale[run]) : 1.0f);
    load_run(v, s.v, s.v_type, first, c, n, v_codes ? to_float(s.v_scale[run]) : 1.0f);
    load_run(grad, s.grad, s.grad_type, first, c, n, 1.0f);
    for (int i = 0; i < kEach; ++i) {
        if (v_codes) v[i] *= v[i];
        adamw_element(step, param[i], m[i], v[i], grad[i]);
        if (v_codes) v[i] = std::sqrt(v[i]);
    }
    const float m_factor = m_codes ? store_scale(s.m_scale + run, m) : 1.0f;
    const float v_factor = v_codes ? store_scale(s.v_scale + run, v) : 1.0f;
    RandomWords param_words{s.key, param_word(s.step)}, v_words{s.key, v_word(s.step)};
    if (s.param_type == DType::fp24)
        store_as<fp24>(s.param, first, c, n, [&](int i) {
            return truncate_to_fp24(add_random_bits(param[i], param_words.at(logical + i), 24));
        });
    else
        store_as<float>(s.param, first, c, n, [&](int i) { return param[i]; });
    if (m_codes)
        store_as<e4m3>(s.m, first, c, n, [&](int i) { return to_e4m3(m[i] * m_factor); });
    else if (s.m_type == DType::bf16)
        store_as<bf16>(s.m, first, c, n, [&](int i) { return to_bf16(m[i]); });
    else
        store_as<float>(s.m, first, c, n, [&](int i) { return m[i]; });
    if (v_codes)
        store_as<e4m3>(s.v, first, c, n, [&](int i) {
            return round_at_random(v[i] * v_factor, v_words.at(logical + i));
        });
    else if (s.v_type == DType::bf16 && s.v_at_random)
        store_as<bf16>(s.v, first, c, n, [&](int i) {
            return truncate_to_bf16(add_random_bits(v[i], v_words.at(logical + i), 16));
        });
    else if (s.v_type == DType::bf16)
        store_as<bf16>(s.v, first, c, n, [&](int i) { return to_bf16(v[i]); });
    else
        store_as<float>(s.v, first, c, n, [&](int i) { return v[i]; });
}

template <class W>
void same_type(const AdamwArgs& a, Stream stream) {
    const std::int64_t n = a.param.numel();
    launch(
        {.name = "adamw", .blocks = blocks_for(n, kThreads), .threads = kThreads, .stream = stream},
        same_type_kernel<W>, AdamwStep<W>(a), a.param.as<W>().data(), a.m.as<W>().data(),
        a.v.as<W>().data(), a.grad.as<W>().data(), n);
}

}  // namespace

void adamw(const AdamwArgs& a, Stream stream) {
    const auto all = [&](DType t) {
        return a.param.dtype == t && a.m.dtype == t && a.v.dtype == t && a.grad.dtype == t;
    };
    if (all(DType::fp64)) return same_type<double>(a, stream);
    if (all(DType::fp32)) return same_type<float>(a, stream);
    const std::int64_t rows = a.param.rows(), cols = a.param.cols();
    const NarrowState s{.param = a.param.data,
                        .m = a.m.data,
                        .v = a.v.data,
                        .grad = a.grad.data,
                        .m_scale = reinterpret_cast<e8m0*>(a.m_scale.data),
                        .v_scale = reinterpret_cast<e8m0*>(a.v_scale.data),
                        .param_type = a.param.dtype,
                        .m_type = a.m.dtype,
                        .v_type = a.v.dtype,
                        .grad_type = a.grad.dtype,
                        .rows = rows,
                        .cols = cols,
                        .row_begin = a.row_begin,
                        .col_begin = a.col_begin,
                        .logical_cols = a.logical_cols,
                        .step = a.step,
                        .key = a.rounding_key,
                        .v_at_random = bf16_v_at_random(a.beta2)};
    launch({.name = "adamw",
            .blocks = blocks_for(rows * blocks_for(cols, kRun), kThreads / kWarp),
            .threads = kThreads,
            .stream = stream},
           narrow_kernel, AdamwStep<float>(a), s);
}

}  // namespace stoa::cuda
