#include <cmath>

#include "kernels/cuda/lane_groups.h"
#include "kernels/cuda/ops.h"

namespace stoa::cuda {
namespace {

/// 16 threads a row. y may be x.
template <class T, class U, class W = Wide<T>>
STOA_KERNEL void forward_kernel(U* y, W* rstds, const T* x, const W* weight, std::int64_t rows,
                                std::int64_t d, W eps) {
    const std::int64_t row = global_group();
    if (row >= rows) return;
    x += row * d;
    y += row * d;
    const W sum_sq = lane_sum<W>(d, [&](std::int64_t c) { return widen(x[c]) * widen(x[c]); });
    const W rstd = W{1} / std::sqrt(sum_sq / static_cast<W>(d) + eps);
    const int lane = thread_index() % kLanes;
    for (std::int64_t c = lane; c < d; c += kLanes)
        y[c] = narrow_to<U>(widen(x[c]) * rstd * weight[c]);
    if (lane == 0) rstds[row] = rstd;
}

/// A thread a column of a group: it adds the group's rows in their order.
template <class T, class D, class W = Wide<T>>
STOA_KERNEL void d_weight_kernel(W* d_weight, const D* d_y, const T* x, const W* rstds,
                                 std::int64_t rows, std::int64_t d, std::int64_t groups,
                                 std::int64_t segment_rows) {
    const std::int64_t at = global_thread();
    if (at >= groups * d) return;
    const std::int64_t group = at / d, c = at % d;
    const std::int64_t first = segment_rows > 0 ? group * segment_rows : group;
    const std::int64_t end = segment_rows > 0 ? first + segment_rows : rows;
    const std::int64_t step = segment_rows > 0 ? 1 : groups;
    W sum = d_weight[at];
    for (std::int64_t r = first; r < end; r += step)
        sum += widen(d_y[r * d + c]) * widen(x[r * d + c]) * rstds[r];
    d_weight[at] = sum;
}

/// 16 threads a row. d_x may be d_y.
template <class T, class D, class W = Wide<T>>
STOA_KERNEL void d_x_kernel(T* d_x, const D* d_y, const T* x, const W* weight, const W* rstds,
                            std::int64_t rows, std::int64_t d, bool accumulate) {
    const std::int64_t row = global_group();
    if (row >= rows) return;
    x += row * d;
    d_y += row * d;
    d_x += row * d;
    const W rstd = rstds[row];
    const W dot =
        lane_sum<W>(d, [&](std::int64_t c) { return widen(d_y[c]) * weight[c] * widen(x[c]); });
    const W shrink = rstd * rstd * (dot / static_cast<W>(d));
    for (std::int64_t c = thread_index() % kLanes; c < d; c += kLanes) {
        const W value = rstd * (widen(d_y[c]) * weight[c] - widen(x[c]) * shrink);
        d_x[c] = narrow_to<T>(accumulate ? widen(d_x[c]) + value : value);
    }
}

Launch rows_launch(const char* name, std::int64_t rows, Stream stream) {
    return {.name = name,
            .blocks = blocks_for(rows * kLanes, kThreads),
            .threads = kThreads,
            .stream = stream};
}

template <class T, class D, class W = Wide<T>>
void backward(const RmsNormBackwardArgs& args, Stream stream) {
    constexpr int kColumns = 64;  // few threads a block: columns alone spread over the device
    const std::int64_t rows = args.x.rows(), d = args.x.cols(), groups = args.d_weight.numel() / d;
    const T* const x = args.x.as<T>().data();
    const D* const d_y = args.d_y.as<D>().data();
    const W* const rstds = args.rstd.as<W>().data();
    // The gains' gradients first: d_x may lie where d_y does.
    launch({.name = "rms_norm_backward: d_weight",
            .blocks = blocks_for(groups * d, kColumns),
            .threads = kColumns,
            .stream = stream},
           d_weight_kernel<T, D>, args.d_weight.as<W>().data(), d_y, x, rstds, rows, d, groups,
           args.segment_rows);
    launch(rows_launch("rms_norm_backward: d_x", rows, stream), d_x_kernel<T, D>,
           args.d_x.as<T>().data(), d_y, x, args.weight.as<W>().data(), rstds, rows, d,
           args.accumulate);
}

}  // namespace

void rms_norm_forward(const RmsNormArgs& args, Stream stream) {
    dispatch_dtype(args.x.dtype, [&]<Element T>(T) {
        dispatch_dtype(args.y.dtype, [&]<Element U>(U) {
            if constexpr (std::is_same_v<Wide<T>, Wide<U>>)
                launch(rows_launch("rms_norm_forward", args.x.rows(), stream), forward_kernel<T, U>,
                       args.y.as<U>().data(), args.rstd.as<Wide<T>>().data(), args.x.as<T>().data(),
                       args.weight.as<Wide<T>>().data(), args.x.rows(), args.x.cols(), args.eps);
        });
    });
}

void rms_norm_backward(const RmsNormBackwardArgs& args, Stream stream) {
    dispatch_dtype(args.x.dtype, [&]<Element T>(T) {
        args.d_y.dtype == args.x.dtype ? backward<T, T>(args, stream)
                                       : backward<T, Wide<T>>(args, stream);
    });
}

}  // namespace stoa::cuda
