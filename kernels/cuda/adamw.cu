#include "kernels/adamw_element.h"
#include "kernels/cuda/lane_groups.h"
#include "kernels/cuda/ops.h"
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

template <class T>
STOA_DEVICE T& element_of(std::byte* data, std::int64_t at) {
    return reinterpret_cast<T*>(data)[at];
}
STOA_DEVICE inline float load_value(const std::byte* data, DType type, std::int64_t at,
                                    float scale) {
    std::byte* const from = const_cast<std::byte*>(data);
    switch (type) {
        case DType::bf16:
            return to_float(element_of<bf16>(from, at));
        case DType::fp24:
            return to_float(element_of<fp24>(from, at));
        case DType::e4m3:
            return to_float(element_of<e4m3>(from, at)) * scale;
        default:
            return element_of<float>(from, at);
    }
}
STOA_DEVICE inline std::uint32_t random_word(std::uint64_t key, std::int64_t e,
                                             std::uint64_t which) {
    return philox(key, static_cast<std::uint64_t>(e / 4), which)[static_cast<std::size_t>(e % 4)];
}

constexpr int kRun = static_cast<int>(kQuantBlock), kEach = kRun / kWarp;

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

/// A warp a run of up to 128 values of a row, which share a scale.
STOA_KERNEL void narrow_kernel(AdamwStep<float> step, NarrowState s) {
    const std::int64_t per_row = (s.cols + kRun - 1) / kRun, run = global_thread() / kWarp;
    if (run >= s.rows * per_row) return;
    const std::int64_t row = run / per_row, first = run % per_row * kRun;
    const std::int64_t at = row * s.cols + first;
    const std::int64_t logical = (s.row_begin + row) * s.logical_cols + s.col_begin + first;
    const int lane = thread_index() % kWarp;
    const std::int64_t n = s.cols - first < kRun ? s.cols - first : kRun;
    const float m_unit = s.m_type == DType::e4m3 ? to_float(s.m_scale[run]) : 1.0f;
    const float v_unit = s.v_type == DType::e4m3 ? to_float(s.v_scale[run]) : 1.0f;
    float param[kEach] = {}, m[kEach] = {}, v[kEach] = {};
    for (int i = 0; i < kEach; ++i) {
        const std::int64_t c = lane + i * kWarp;
        if (c >= n) continue;
        param[i] = load_value(s.param, s.param_type, at + c, 1.0f);
        m[i] = load_value(s.m, s.m_type, at + c, m_unit);
        v[i] = load_value(s.v, s.v_type, at + c, v_unit);
        if (s.v_type == DType::e4m3) v[i] *= v[i];
        adamw_element(step, param[i], m[i], v[i], load_value(s.grad, s.grad_type, at + c, 1.0f));
        if (s.v_type == DType::e4m3) v[i] = std::sqrt(v[i]);
    }
    const float m_factor = s.m_type == DType::e4m3 ? store_scale(s.m_scale + run, m) : 1.0f;
    const float v_factor = s.v_type == DType::e4m3 ? store_scale(s.v_scale + run, v) : 1.0f;
    for (int i = 0; i < kEach; ++i) {
        const std::int64_t c = lane + i * kWarp;
        if (c >= n) continue;
        if (s.param_type == DType::fp24)
            element_of<fp24>(s.param, at + c) = truncate_to_fp24(
                add_random_bits(param[i], random_word(s.key, logical + c, param_word(s.step)), 24));
        else
            element_of<float>(s.param, at + c) = param[i];
        if (s.m_type == DType::e4m3)
            element_of<e4m3>(s.m, at + c) = to_e4m3(m[i] * m_factor);
        else if (s.m_type == DType::bf16)
            element_of<bf16>(s.m, at + c) = to_bf16(m[i]);
        else
            element_of<float>(s.m, at + c) = m[i];
        if (s.v_type == DType::e4m3)
            element_of<e4m3>(s.v, at + c) =
                round_at_random(v[i] * v_factor, random_word(s.key, logical + c, v_word(s.step)));
        else if (s.v_type == DType::bf16)
            element_of<bf16>(s.v, at + c) =
                s.v_at_random ? truncate_to_bf16(add_random_bits(
                                    v[i], random_word(s.key, logical + c, v_word(s.step)), 16))
                              : to_bf16(v[i]);
        else
            element_of<float>(s.v, at + c) = v[i];
    }
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
