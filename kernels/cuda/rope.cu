#include "kernels/core/buffer.h"
#include "kernels/cpu/ops.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/lane_groups.h"
#include "kernels/cuda/ops.h"

namespace stoa::cuda {
namespace {

/// A thread a pair of values. A position outside the table is a bug of the caller; on the device it
/// is not looked for.
template <class T, class W = Wide<T>>
STOA_KERNEL void rope_kernel(T* x, const W* cos_table, const W* sin_table,
                             const std::int32_t* positions, std::int64_t rows, std::int64_t n_heads,
                             std::int64_t half, W sign) {
    const std::int64_t at = global_thread();
    if (at >= rows * n_heads * half) return;
    const std::int64_t i = at % half, head = at / half;  // head counts over rows too
    const std::int64_t angle = positions[head / n_heads] * half + i;
    T* const x1 = x + head * 2 * half + i;
    T* const x2 = x1 + half;
    const W a = widen(*x1), b = widen(*x2), c = cos_table[angle], s = sign * sin_table[angle];
    *x1 = narrow_to<T>(a * c - b * s);
    *x2 = narrow_to<T>(b * c + a * s);
}

}  // namespace

void rope_table(TensorView cos, TensorView sin, double theta, Stream stream) {
    const Tensor host_cos(cos.shape, cos.dtype), host_sin(sin.shape, sin.dtype);
    cpu::rope_table(host_cos, host_sin, theta);
    copy_to_device(cos.data, host_cos.view.data, cos.bytes(), stream);
    copy_to_device(sin.data, host_sin.view.data, sin.bytes(), stream);
    synchronize(stream);
}

void rope(const RopeArgs& args, Stream stream) {
    const std::int64_t rows = args.x.shape[0], n_heads = args.x.shape[1], half = args.cos.cols();
    dispatch_dtype(args.x.dtype, [&]<Element T>(T) {
        launch({.name = "rope",
                .blocks = blocks_for(rows * n_heads * half, kThreads),
                .threads = kThreads,
                .stream = stream},
               rope_kernel<T>, args.x.as<T>().data(), args.cos.as<Wide<T>>().data(),
               args.sin.as<Wide<T>>().data(), args.positions.as<std::int32_t>().data(), rows,
               n_heads, half, args.inverse ? -1 : 1);
    });
}

}  // namespace stoa::cuda
