#include "kernels/core/thread_pool.h"
#include "kernels/cpu/fast_exp.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/ops.h"

namespace stoa::cpu {

void swiglu_forward(const SwigluArgs& args) {
    dispatch_dtype(args.gate.dtype, [&]<Element T>(T) {
        const std::int64_t n = args.gate.numel();
        const T* const gate = args.gate.as<T>().data();
        const T* const up = args.up.as<T>().data();
        T* const y = args.y.as<T>().data();
        parallel_for(n, grain_for(1), [&](std::int64_t begin, std::int64_t end) {
            vectorised([&] {
#pragma GCC ivdep
                for (std::int64_t i = begin; i < end; ++i) {
                    const auto x = widen(gate[i]);
                    y[i] = narrow_to<T>(x / (1 + fast_exp(-x)) * widen(up[i]));
                }
            });
        });
    });
}

void swiglu_backward(const SwigluBackwardArgs& args) {
    dispatch_dtype(args.gate.dtype, [&]<Element T>(T) {
        const std::int64_t n = args.gate.numel();
        const T* const gate = args.gate.as<T>().data();
        const T* const up = args.up.as<T>().data();
        const T* const d_y = args.d_y.as<T>().data();
        T* const d_gate = args.d_gate.as<T>().data();
        T* const d_up = args.d_up.as<T>().data();
        parallel_for(n, grain_for(1), [&](std::int64_t begin, std::int64_t end) {
            vectorised([&] {
#pragma GCC ivdep
                for (std::int64_t i = begin; i < end; ++i) {
                    const auto x = widen(gate[i]), u = widen(up[i]), d = widen(d_y[i]);
                    const auto s = 1 / (1 + fast_exp(-x));
                    d_gate[i] = narrow_to<T>(d * u * s * (1 + x * (1 - s)));
                    d_up[i] = narrow_to<T>(d * x * s);
                }
            });
        });
    });
}

}  // namespace stoa::cpu
