#include <algorithm>
#include <cmath>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/ops.h"

// `ivdep` where an output may be an input: element c is read before it is written, and no other
// iteration touches it.
namespace stoa::cpu {
namespace {

template <class T, class U, class W = Wide<T>>
void forward_rows(const RmsNormArgs& args) {
    const std::int64_t rows = args.x.rows(), d = args.x.cols();
    const W* const weight = args.weight.as<W>().data();
    W* const rstds = args.rstd.as<W>().data();
    const auto normalise = [&](std::int64_t begin, std::int64_t end) {
        const T* x = args.x.as<T>().data() + begin * d;
        U* y = args.y.as<U>().data() + begin * d;
        for (std::int64_t r = begin; r < end; ++r, x += d, y += d) {
            const W sum_sq =
                lane_sum<W>(d, [&](std::int64_t c) { return widen(x[c]) * widen(x[c]); });
            const W rstd = W{1} / std::sqrt(sum_sq / static_cast<W>(d) + static_cast<W>(args.eps));
#pragma GCC ivdep
            for (std::int64_t c = 0; c < d; ++c)
                y[c] = narrow_to<U>(widen(x[c]) * rstd * weight[c]);
            rstds[r] = rstd;
        }
    };
    parallel_for(rows, grain_for(d), [&](std::int64_t begin, std::int64_t end) {
        vectorised([&] { normalise(begin, end); });
    });
}

// The gains' gradients first: d_x may lie where d_y does. The threads divide the columns for one,
// where each adds the rows in their order, and the rows for the other.
template <class T, class D, class W = Wide<T>>
void backward_rows(const RmsNormBackwardArgs& args) {
    const std::int64_t rows = args.x.rows(), d = args.x.cols();
    const T* const x = args.x.as<T>().data();
    const D* const d_y = args.d_y.as<D>().data();
    const W* const weight = args.weight.as<W>().data();
    const W* const rstds = args.rstd.as<W>().data();
    T* const d_x = args.d_x.as<T>().data();
    W* const d_weight = args.d_weight.as<W>().data();
    const std::int64_t groups = args.d_weight.numel() / d;
    const auto add_d_weight = [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = 0; r < rows; ++r) {
            const std::int64_t group = args.segment_rows > 0 ? r / args.segment_rows : r % groups;
            W* const sum = d_weight + group * d;
            for (std::int64_t c = begin; c < end; ++c)
                sum[c] += widen(d_y[r * d + c]) * widen(x[r * d + c]) * rstds[r];
        }
    };
    const auto write_d_x = [&](std::int64_t r, const T* x_r, const D* d_y_r, T* d_x_r) {
        const W rstd = rstds[r];
        const W dot = lane_sum<W>(
            d, [&](std::int64_t c) { return widen(d_y_r[c]) * weight[c] * widen(x_r[c]); });
        const W shrink = rstd * rstd * (dot / static_cast<W>(d));
        const auto d_x_at = [&](std::int64_t c) {
            return rstd * (widen(d_y_r[c]) * weight[c] - widen(x_r[c]) * shrink);
        };
        if (args.accumulate) {  // two loops: a choice inside would not be vectorised
#pragma GCC ivdep
            for (std::int64_t c = 0; c < d; ++c)
                d_x_r[c] = narrow_to<T>(widen(d_x_r[c]) + d_x_at(c));
        } else {
#pragma GCC ivdep
            for (std::int64_t c = 0; c < d; ++c)
                d_x_r[c] = narrow_to<T>(d_x_at(c));
        }
    };
    parallel_for(d, std::max<std::int64_t>(32, grain_for(rows)),
                 [&](std::int64_t begin, std::int64_t end) {
                     vectorised([&] { add_d_weight(begin, end); });
                 });
    parallel_for(rows, grain_for(d), [&](std::int64_t begin, std::int64_t end) {
        vectorised([&] {
            for (std::int64_t r = begin; r < end; ++r)
                write_d_x(r, x + r * d, d_y + r * d, d_x + r * d);
        });
    });
}

}  // namespace

void rms_norm_forward(const RmsNormArgs& args) {
    dispatch_dtype(args.x.dtype, [&]<Element T>(T) {
        dispatch_dtype(args.y.dtype, [&]<Element U>(U) {
            if constexpr (std::is_same_v<Wide<T>, Wide<U>>) forward_rows<T, U>(args);
        });
    });
}

void rms_norm_backward(const RmsNormBackwardArgs& args) {
    dispatch_dtype(args.x.dtype, [&]<Element T>(T) {
        if (args.d_y.dtype == args.x.dtype)
            backward_rows<T, T>(args);
        else
            backward_rows<T, Wide<T>>(args);
    });
}

}  // namespace stoa::cpu
