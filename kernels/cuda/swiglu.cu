#include "kernels/core/fast_exp.h"
#include "kernels/cuda/lane_groups.h"
#include "kernels/cuda/ops.h"

namespace stoa::cuda {
namespace {

template <class T>
STOA_KERNEL void forward_kernel(T* y, const T* gate, const T* up, std::int64_t n) {
    const std::int64_t i = global_thread();
    if (i >= n) return;
    const auto x = widen(gate[i]);
    y[i] = narrow_to<T>(x / (1 + fast_exp(-x)) * widen(up[i]));
}

template <class T>
STOA_KERNEL void backward_kernel(T* d_gate, T* d_up, const T* d_y, const T* gate, const T* up,
                                 std::int64_t n) {
    const std::int64_t i = global_thread();
    if (i >= n) return;
    const auto x = widen(gate[i]), u = widen(up[i]), d = widen(d_y[i]);
    const auto s = 1 / (1 + fast_exp(-x));
    d_gate[i] = narrow_to<T>(d * u * s * (1 + x * (1 - s)));
    d_up[i] = narrow_to<T>(d * x * s);
}

}  // namespace

void swiglu_forward(const SwigluArgs& args, Stream stream) {
    const std::int64_t n = args.gate.numel();
    dispatch_dtype(args.gate.dtype, [&]<Element T>(T) {
        launch({.name = "swiglu_forward",
                .blocks = blocks_for(n, kThreads),
                .threads = kThreads,
                .stream = stream},
               forward_kernel<T>, args.y.as<T>().data(), args.gate.as<T>().data(),
               args.up.as<T>().data(), n);
    });
}

void swiglu_backward(const SwigluBackwardArgs& args, Stream stream) {
    const std::int64_t n = args.gate.numel();
    dispatch_dtype(args.gate.dtype, [&]<Element T>(T) {
        launch({.name = "swiglu_backward",
                .blocks = blocks_for(n, kThreads),
                .threads = kThreads,
                .stream = stream},
               backward_kernel<T>, args.d_gate.as<T>().data(), args.d_up.as<T>().data(),
               args.d_y.as<T>().data(), args.gate.as<T>().data(), args.up.as<T>().data(), n);
    });
}

}  // namespace stoa::cuda
