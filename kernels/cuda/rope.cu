#include "kernels/core/buffer.h"
#include "kernels/cpu/ops.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/packs.h"

namespace stoa::cuda {
namespace {

/// A thread eight neighbouring pairs of a head. A position outside the table is a bug of the
/// caller; on the device it is not looked for.
template <class T, class W = Wide<T>>
STOA_KERNEL void rope_kernel(T* x, const W* cos_table, const W* sin_table,
                             const std::int32_t* positions, std::int64_t rows, std::int64_t n_heads,
                             std::int64_t half, W sign) {
    const std::int64_t packs = (half + kPack - 1) / kPack;
    const std::int64_t thread = global_thread(), head = thread / packs;  // counts over rows too
    if (head >= rows * n_heads) return;
    const std::int64_t at = thread % packs * kPack;
    const std::int64_t position = positions[head / n_heads] * half;
    T* const x1 = x + head * 2 * half;
    T* const x2 = x1 + half;
    auto first = load_pack<kPack>(x1, at, half);
    auto second = load_pack<kPack>(x2, at, half);
    const auto cos = load_pack<kPack>(cos_table + position, at, half);
    const auto sin = load_pack<kPack>(sin_table + position, at, half);
    for (int i = 0; i < kPack; ++i) {
        const W a = widen(first.v[i]), b = widen(second.v[i]), s = sign * sin.v[i];
        first.v[i] = narrow_to<T>(a * cos.v[i] - b * s);
        second.v[i] = narrow_to<T>(b * cos.v[i] + a * s);
    }
    store_pack(x1, at, half, first);
    store_pack(x2, at, half, second);
}

}  // namespace

void rope_table(TensorView cos, TensorView sin, const RopeAngles& angles, Stream stream) {
    const Tensor host_cos(cos.shape, cos.dtype), host_sin(sin.shape, sin.dtype);
    cpu::rope_table(host_cos, host_sin, angles);
    copy_to_device(cos.data, host_cos.view.data, cos.bytes(), stream);
    copy_to_device(sin.data, host_sin.view.data, sin.bytes(), stream);
    synchronize(stream);
}

void rope(const RopeArgs& args, Stream stream) {
    const std::int64_t rows = args.x.shape[0], n_heads = args.x.shape[1], half = args.cos.cols();
    dispatch_dtype(args.x.dtype, [&]<Element T>(T) {
        launch({.name = "rope",
                .blocks = blocks_for(rows * n_heads * blocks_for(half, kPack), kThreads),
                .threads = kThreads,
                .stream = stream},
               rope_kernel<T>, args.x.as<T>().data(), args.cos.as<Wide<T>>().data(),
               args.sin.as<Wide<T>>().data(), args.positions.as<std::int32_t>().data(), rows,
               n_heads, half, args.inverse ? -1 : 1);
    });
}

}  // namespace stoa::cuda
