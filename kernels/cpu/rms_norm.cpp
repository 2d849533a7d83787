#include <cmath>

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
    const T* x = args.x.as<T>().data();
    const W* const weight = args.weight.as<W>().data();
    U* y = args.y.as<U>().data();
    W* const rstds = args.rstd.as<W>().data();
    vectorised([&] {
        for (std::int64_t r = 0; r < rows; ++r, x += d, y += d) {
            const W sum_sq =
                lane_sum<W>(d, [&](std::int64_t c) { return widen(x[c]) * widen(x[c]); });
            const W rstd = W{1} / std::sqrt(sum_sq / static_cast<W>(d) + static_cast<W>(args.eps));
#pragma GCC ivdep
            for (std::int64_t c = 0; c < d; ++c)
                y[c] = narrow_to<U>(widen(x[c]) * rstd * weight[c]);
            rstds[r] = rstd;
        }
    });
}

template <class T, class D, class W = Wide<T>>
void backward_rows(const RmsNormBackwardArgs& args) {
    const std::int64_t rows = args.x.rows(), d = args.x.cols();
    const T* x = args.x.as<T>().data();
    const D* d_y = args.d_y.as<D>().data();
    const W* const weight = args.weight.as<W>().data();
    const W* const rstds = args.rstd.as<W>().data();
    T* d_x = args.d_x.as<T>().data();
    W* const d_weight = args.d_weight.as<W>().data();
    const bool accumulate = args.accumulate;
    vectorised([&] {
        for (std::int64_t r = 0; r < rows; ++r, x += d, d_y += d, d_x += d) {
            const W rstd = rstds[r];
            const W dot = lane_sum<W>(
                d, [&](std::int64_t c) { return widen(d_y[c]) * weight[c] * widen(x[c]); });
            const W shrink = rstd * rstd * (dot / static_cast<W>(d));
#pragma GCC ivdep
            for (std::int64_t c = 0; c < d; ++c) {
                const W x_c = widen(x[c]), d_y_c = widen(d_y[c]);
                const W d_x_c = rstd * (d_y_c * weight[c] - x_c * shrink);
                d_weight[c] += d_y_c * x_c * rstd;
                d_x[c] = narrow_to<T>(accumulate ? widen(d_x[c]) + d_x_c : d_x_c);
            }
        }
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
