#include "kernels/core/fast_exp.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/packs.h"

namespace stoa::cuda {
namespace {

template <class T>
STOA_KERNEL void forward_kernel(T* y, const T* gate, const T* up, std::int64_t n) {
    const std::int64_t at = pack_begin();
    if (at >= n) return;
    const auto gates = load_pack<kPack>(gate, at, n);
    const auto ups = load_pack<kPack>(up, at, n);
    Pack<T, kPack> out;
    for (int i = 0; i < kPack; ++i) {
        const auto x = widen(gates.v[i]);
        out.v[i] = narrow_to<T>(x / (1 + fast_exp(-x)) * widen(ups.v[i]));
    }
    store_pack(y, at, n, out);
}

template <class T>
STOA_KERNEL void backward_kernel(T* d_gate, T* d_up, const T* d_y, const T* gate, const T* up,
                                 std::int64_t n) {
    const std::int64_t at = pack_begin();
    if (at >= n) return;
    const auto gates = load_pack<kPack>(gate, at, n);
    const auto ups = load_pack<kPack>(up, at, n);
    const auto d_ys = load_pack<kPack>(d_y, at, n);
    Pack<T, kPack> out_gate, out_up;
    for (int i = 0; i < kPack; ++i) {
        const auto x = widen(gates.v[i]), u = widen(ups.v[i]), d = widen(d_ys.v[i]);
        const auto s = 1 / (1 + fast_exp(-x));
        out_gate.v[i] = narrow_to<T>(d * u * s * (1 + x * (1 - s)));
        out_up.v[i] = narrow_to<T>(d * x * s);
    }
    store_pack(d_gate, at, n, out_gate);
    store_pack(d_up, at, n, out_up);
}

}  // namespace

void swiglu_forward(const SwigluArgs& args, Stream stream) {
    const std::int64_t n = args.gate.numel();
    dispatch_dtype(args.gate.dtype, [&]<Element T>(T) {
        launch(over_packs("swiglu_forward", n, stream), forward_kernel<T>, args.y.as<T>().data(),
               args.gate.as<T>().data(), args.up.as<T>().data(), n);
    });
}

void swiglu_backward(const SwigluBackwardArgs& args, Stream stream) {
    const std::int64_t n = args.gate.numel();
    dispatch_dtype(args.gate.dtype, [&]<Element T>(T) {
        launch(over_packs("swiglu_backward", n, stream), backward_kernel<T>,
               args.d_gate.as<T>().data(), args.d_up.as<T>().data(), args.d_y.as<T>().data(),
               args.gate.as<T>().data(), args.up.as<T>().data(), n);
    });
}

}  // namespace stoa::cuda
