#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/core/row_loss.h"
#include "kernels/core/thread_pool.h"
#include "kernels/core/tree.h"
#include "kernels/cpu/fast_exp.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/ops.h"

namespace stoa::cpu {
namespace {

/// fn(begin, end) over rows of `cols` values, divided among the threads.
template <class Fn>
void over_rows(std::int64_t rows, std::int64_t cols, const Fn& fn) {
    parallel_for(rows, grain_for(cols), [&](std::int64_t begin, std::int64_t end) {
        vectorised([&] { fn(begin, end); });
    });
}

template <class T, class W = Wide<T>>
void row_max(const RowMaxArgs& args) {
    const std::int64_t rows = args.logits.rows(), cols = args.logits.cols();
    const T* const logits = args.logits.as<T>().data();
    W* const out = args.row_max.as<W>().data();
    over_rows(rows, cols, [&](std::int64_t begin, std::int64_t end) {
        const T* x = logits + begin * cols;
        for (std::int64_t r = begin; r < end; ++r, x += cols)
            out[r] = lane_max<W>(args.vocab_valid, std::numeric_limits<W>::lowest(),
                                 [&](std::int64_t c) { return W{widen(x[c])}; });
    });
}

template <class T, class W = Wide<T>>
void exp_sum(const ExpSumArgs& args) {
    const std::int64_t rows = args.logits.rows(), cols = args.logits.cols();
    const T* const logits = args.logits.as<T>().data();
    const W* const max = args.row_max.as<W>().data();
    const std::int32_t* const targets = args.targets.as<std::int32_t>().data();
    W* const sum = args.exp_sum.as<W>().data();
    W* const target_logit = args.target_logit.as<W>().data();
    const std::int64_t chunk = args.chunk > 0 ? args.chunk : std::max<std::int64_t>(1, cols);
    const std::int64_t chunks = std::max<std::int64_t>(1, cols / chunk);
    over_rows(rows, cols, [&](std::int64_t begin, std::int64_t end) {
        const T* x = logits + begin * cols;
        for (std::int64_t r = begin; r < end; ++r, x += cols) {
            const W row_max = max[r];
            sum[r] = tree_fold<W>(0, chunks, [&](std::int64_t i) {
                const T* const part = x + i * chunk;
                const std::int64_t n =
                    std::clamp<std::int64_t>(args.vocab_valid - i * chunk, 0, chunk);
                return lane_sum<W>(
                    n, [&](std::int64_t c) { return fast_exp(W{widen(part[c])} - row_max); });
            });
            const std::int64_t c = targets[r] - args.vocab_begin;
            const bool here = targets[r] >= 0 && c >= 0 && c < args.vocab_valid;
            target_logit[r] = here ? W{widen(x[c])} : W{0};
        }
    });
}

/// d_logits of one row; out may be x.
template <class T, class W>
void row_gradient(T* out, const T* x, W max, W scale, std::int64_t valid, std::int64_t cols) {
#pragma GCC ivdep
    for (std::int64_t c = 0; c < valid; ++c)
        out[c] = narrow_to<T>(fast_exp(W{widen(x[c])} - max) * scale);
    std::fill(out + valid, out + cols, T{});
}

template <class T, class W = Wide<T>>
void gradients(const CrossEntropyArgs& args) {
    const std::int64_t rows = args.logits.rows(), cols = args.logits.cols();
    const T* const logits = args.logits.as<T>().data();
    T* const d_logits = args.d_logits.as<T>().data();
    const W* const max = args.row_max.as<W>().data();
    const W* const sum = args.exp_sum.as<W>().data();
    const std::int32_t* const targets = args.targets.as<std::int32_t>().data();
    const W d_loss = static_cast<W>(args.d_loss);
    over_rows(rows, cols, [&](std::int64_t begin, std::int64_t end) {
        const T* x = logits + begin * cols;
        T* out = d_logits + begin * cols;
        for (std::int64_t r = begin; r < end; ++r, x += cols, out += cols) {
            if (targets[r] < 0) {
                std::fill_n(out, cols, T{});
                continue;
            }
            const std::int64_t c = targets[r] - args.vocab_begin;
            const bool here = c >= 0 && c < args.vocab_valid;
            // The target's own entry once more in full precision: x may be overwritten below.
            const W target =
                here ? d_loss * (fast_exp(W{widen(x[c])} - max[r]) / sum[r] - 1) : W{0};
            row_gradient<T, W>(out, x, max[r], d_loss / sum[r], args.vocab_valid, cols);
            if (here) out[c] = narrow_to<T>(target);
        }
    });
}

template <class W>
double loss_of_rows(const CrossEntropyArgs& args) {
    const auto max = args.row_max.as<W>(), sum = args.exp_sum.as<W>();
    const auto target_logit = args.target_logit.as<W>();
    const auto targets = args.targets.as<std::int32_t>();
    double loss = 0.0;
    for (std::size_t r = 0; r < targets.size(); ++r)
        if (targets[r] >= 0) loss += row_loss(max[r], sum[r], target_logit[r]);
    return loss;
}

}  // namespace

void cross_entropy_row_max(const RowMaxArgs& args) {
    dispatch_dtype(args.logits.dtype, [&]<Element T>(T) { row_max<T>(args); });
}

void cross_entropy_exp_sum(const ExpSumArgs& args) {
    dispatch_dtype(args.logits.dtype, [&]<Element T>(T) { exp_sum<T>(args); });
}

void cross_entropy_finish(const CrossEntropyArgs& args) {
    dispatch_dtype(args.logits.dtype, [&]<Element T>(T) {
        args.loss_sum.as<double>()[0] += loss_of_rows<Wide<T>>(args);
        if (!args.d_logits.empty()) gradients<T>(args);
    });
}

}  // namespace stoa::cpu
