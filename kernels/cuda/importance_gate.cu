#include "kernels/cuda/lane_groups.h"
#include "kernels/cuda/ops.h"

namespace stoa::cuda {
namespace {

constexpr double kLargest = 15.0;  // of an importance: its sigmoid is 3e-7 from 1 and from 0

/// A thread an element. NaN stays: the step is skipped, and the selection counts it last.
template <class W>
STOA_KERNEL void forward_kernel(W* gate, W* importance, const W* bias, std::int64_t n,
                                std::int64_t heads) {
    constexpr W kMost = static_cast<W>(kLargest);
    const std::int64_t i = global_thread();
    if (i >= n) return;
    const W x = importance[i] + bias[i % heads];
    const W u = x < -kMost ? -kMost : kMost < x ? kMost : x;
    importance[i] = u;
    gate[i] = u < 0 ? u - std::log1p(std::exp(u)) : -std::log1p(std::exp(-u));
}
template <class W>
STOA_KERNEL void backward_kernel(W* d, const W* importance, std::int64_t n) {
    constexpr W kMost = static_cast<W>(kLargest);
    const std::int64_t i = global_thread();
    if (i >= n) return;
    const W u = importance[i];
    d[i] = u <= -kMost || u >= kMost ? W{0} : d[i] / (W{1} + std::exp(u));
}
/// A thread a head, whose rows it adds in their order.
template <class W>
STOA_KERNEL void bias_kernel(W* d_bias, const W* d, std::int64_t rows, std::int64_t heads) {
    const std::int64_t h = global_thread();
    if (h >= heads) return;
    W sum = d_bias[h];
    STOA_UNROLL_8
    for (std::int64_t r = 0; r < rows; ++r)
        sum += d[r * heads + h];
    d_bias[h] = sum;
}

Launch over(const char* name, std::int64_t n, Stream stream) {
    return {.name = name, .blocks = blocks_for(n, kThreads), .threads = kThreads, .stream = stream};
}

template <class Fn>
void dispatch_wide(DType t, const Fn& fn) {
    t == DType::fp64 ? fn(double{}) : fn(float{});
}

}  // namespace

void importance_gate_forward(const ImportanceGateArgs& a, Stream stream) {
    const std::int64_t n = a.importance.numel();
    dispatch_wide(a.importance.dtype, [&]<class W>(W) {
        launch(over("importance_gate_forward", n, stream), forward_kernel<W>, a.gate.as<W>().data(),
               a.importance.as<W>().data(), a.bias.as<W>().data(), n, a.importance.cols());
    });
}

void importance_gate_backward(const ImportanceGateBackwardArgs& a, Stream stream) {
    const std::int64_t n = a.importance.numel(), heads = a.importance.cols();
    dispatch_wide(a.importance.dtype, [&]<class W>(W) {
        W* const d = a.d_gate.as<W>().data();
        launch(over("importance_gate_backward", n, stream), backward_kernel<W>, d,
               a.importance.as<W>().data(), n);
        launch(over("importance_gate_backward: bias", heads, stream), bias_kernel<W>,
               a.d_bias.as<W>().data(), d, a.importance.rows(), heads);
    });
}

}  // namespace stoa::cuda
