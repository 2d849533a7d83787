#include "kernels/elementwise.h"

#include <cmath>
#include <cstring>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/ops.h"

namespace stoa::cpu {
namespace {

/// float64 to bf16 in one rounding: the step to fp32 rounds to odd, so that the second cannot land
/// on a tie that the value itself is not.
inline bf16 bf16_from_double(double x) {
    const float nearest = static_cast<float>(x);
    if (static_cast<double>(nearest) == x || !std::isfinite(nearest)) return to_bf16(nearest);
    auto bits = std::bit_cast<std::uint32_t>(nearest);
    if (std::abs(static_cast<double>(nearest)) > std::abs(x)) --bits;  // towards zero
    return to_bf16(std::bit_cast<float>(bits | 1u));
}

template <class To, class From>
To convert(From x) {
    if constexpr (std::is_same_v<To, From>)
        return x;
    else if constexpr (std::is_same_v<To, bf16> && std::is_same_v<From, double>)
        return bf16_from_double(x);
    else
        return narrow_to<To>(static_cast<Wide<To>>(widen(x)));
}

}  // namespace

void zero(TensorView x) {
    if (!x.empty()) std::memset(x.data, 0, static_cast<std::size_t>(x.bytes()));
}

void add(TensorView y, ConstTensorView a, ConstTensorView b) {
    dispatch_dtype(y.dtype, [&]<Element T>(T) {
        const std::int64_t n = y.numel();
        T* const out = y.as<T>().data();
        const T* const left = a.as<T>().data();
        const T* const right = b.as<T>().data();
        vectorised([&] {
#pragma GCC ivdep
            for (std::int64_t i = 0; i < n; ++i)
                out[i] = narrow_to<T>(widen(left[i]) + widen(right[i]));
        });
    });
}

void cast(TensorView y, ConstTensorView x) {
    dispatch_dtype(y.dtype, [&]<Element To>(To) {
        dispatch_dtype(x.dtype, [&]<Element From>(From) {
            const std::int64_t n = y.numel();
            To* const out = y.as<To>().data();
            const From* const in = x.as<From>().data();
            vectorised([&] {
                for (std::int64_t i = 0; i < n; ++i)
                    out[i] = convert<To>(in[i]);
            });
        });
    });
}

void sum_of_squares(TensorView out, ConstTensorView x) {
    dispatch_dtype(x.dtype, [&]<Element T>(T) {
        const T* const in = x.as<T>().data();
        double sum = 0.0;
        vectorised([&] {
            sum = lane_sum<double>(x.numel(), [&](std::int64_t i) {
                return static_cast<double>(widen(in[i])) * static_cast<double>(widen(in[i]));
            });
        });
        out.as<double>()[0] += sum;
    });
}

}  // namespace stoa::cpu
