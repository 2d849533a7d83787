#include <algorithm>
#include <cmath>

#include "kernels/cpu/ops.h"

namespace stoa::cpu {
namespace {

constexpr double kLargest = 15.0;  // of an importance: its sigmoid is 3e-7 from 1 and from 0

}  // namespace

void importance_gate_forward(const ImportanceGateArgs& args) {
    const std::int64_t rows = args.importance.rows(), heads = args.importance.cols();
    dispatch_dtype(args.importance.dtype, [&]<Element T>(T) {
        if constexpr (std::is_same_v<T, Wide<T>>) {
            T* const importance = args.importance.as<T>().data();
            T* const gate = args.gate.as<T>().data();
            const T* const bias = args.bias.as<T>().data();
            constexpr T kMost = static_cast<T>(kLargest);
            for (std::int64_t i = 0; i < rows * heads; ++i) {
                // NaN stays: the step is skipped, and the selection counts it last.
                const T u = std::clamp(importance[i] + bias[i % heads], -kMost, kMost);
                importance[i] = u;
                gate[i] = u < 0 ? u - std::log1p(std::exp(u)) : -std::log1p(std::exp(-u));
            }
        }
    });
}

void importance_gate_backward(const ImportanceGateBackwardArgs& args) {
    const std::int64_t rows = args.importance.rows(), heads = args.importance.cols();
    dispatch_dtype(args.importance.dtype, [&]<Element T>(T) {
        if constexpr (std::is_same_v<T, Wide<T>>) {
            const T* const importance = args.importance.as<T>().data();
            T* const d = args.d_gate.as<T>().data();
            T* const d_bias = args.d_bias.as<T>().data();
            constexpr T kMost = static_cast<T>(kLargest);
            for (std::int64_t i = 0; i < rows * heads; ++i) {
                const T u = importance[i];
                d[i] = u <= -kMost || u >= kMost ? T{0} : d[i] / (T{1} + std::exp(u));
                d_bias[i % heads] += d[i];
            }
        }
    });
}

}  // namespace stoa::cpu
