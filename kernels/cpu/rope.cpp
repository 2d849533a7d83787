#include <cmath>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/ops.h"

namespace stoa::cpu {
namespace {

template <class T, class W = Wide<T>>
void rotate_rows(const RopeArgs& args) {
    const std::int64_t rows = args.x.shape[0], n_heads = args.x.shape[1], half = args.cos.cols();
    T* const data = args.x.as<T>().data();
    const W* const cos_table = args.cos.as<W>().data();
    const W* const sin_table = args.sin.as<W>().data();
    const std::int32_t* const positions = args.positions.as<std::int32_t>().data();
    const W sign = args.inverse ? W{-1} : W{1};
    const std::int64_t width = 2 * half * n_heads;
    parallel_for(rows, grain_for(width), [&](std::int64_t begin, std::int64_t end) {
        vectorised([&] {
            T* x = data + begin * width;
            for (std::int64_t r = begin; r < end; ++r) {
                const W* const cos = cos_table + positions[r] * half;
                const W* const sin = sin_table + positions[r] * half;
                for (std::int64_t h = 0; h < n_heads; ++h, x += 2 * half) {
                    T* const x1 = x;
                    T* const x2 = x + half;
#pragma GCC ivdep
                    for (std::int64_t i = 0; i < half; ++i) {
                        const W a = widen(x1[i]), b = widen(x2[i]), s = sign * sin[i];
                        x1[i] = narrow_to<T>(a * cos[i] - b * s);
                        x2[i] = narrow_to<T>(b * cos[i] + a * s);
                    }
                }
            }
        });
    });
}

}  // namespace

void rope_table(TensorView cos, TensorView sin, const RopeAngles& angles) {
    const std::int64_t rows = cos.rows(), half = cos.cols();
    const double turning = angles.rotate * static_cast<double>(half);
    dispatch_dtype(cos.dtype, [&]<Element T>(T) {
        if constexpr (!std::is_same_v<T, bf16>)
            for (std::int64_t t = 0; t < rows; ++t)
                for (std::int64_t i = 0; i < half; ++i) {
                    const double turn = -static_cast<double>(i) / turning;
                    const double angle =
                        static_cast<double>(i) < turning
                            ? static_cast<double>(t) / angles.stretch * std::pow(angles.theta, turn)
                            : 0.0;
                    cos.as<T>()[static_cast<std::size_t>(t * half + i)] =
                        static_cast<T>(std::cos(angle));
                    sin.as<T>()[static_cast<std::size_t>(t * half + i)] =
                        static_cast<T>(std::sin(angle));
                }
    });
}

void rope(const RopeArgs& args) {
    dispatch_dtype(args.x.dtype, [&]<Element T>(T) { rotate_rows<T>(args); });
}

}  // namespace stoa::cpu
