#include "kernels/elementwise.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <mutex>

#include "kernels/core/convert.h"
#include "kernels/core/thread_pool.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/ops.h"

namespace stoa::cpu {
namespace {

/// fn(i) for i in [0, n), in any order.
template <class Fn>
void for_each_element(std::int64_t n, const Fn& fn) {
    parallel_for(n, grain_for(1), [&](std::int64_t begin, std::int64_t end) {
        vectorised([&] {
#pragma GCC ivdep
            for (std::int64_t i = begin; i < end; ++i)
                fn(i);
        });
    });
}

template <class T, class B>
void add_as(TensorView y, ConstTensorView a, ConstTensorView b) {
    const std::int64_t n = y.numel();
    T* const out = y.as<T>().data();
    const T* const left = a.as<T>().data();
    const B* const right = b.as<B>().data();
    for_each_element(
        n, [=](std::int64_t i) { out[i] = narrow_to<T>(widen(left[i]) + widen(right[i])); });
}

// fp24 is not an Element: it only stores masters.
template <Element From>
void cast_to_fp24(TensorView y, ConstTensorView x) {
    const auto out = y.as<fp24>();
    const auto in = x.as<From>();
    for (std::size_t i = 0; i < out.size(); ++i)
        out[i] = to_fp24(static_cast<float>(widen(in[i])));
}
template <Element To>
void cast_from_fp24(TensorView y, ConstTensorView x) {
    const std::int64_t n = y.numel();
    To* const out = y.as<To>().data();
    const fp24* const in = x.as<fp24>().data();
    for_each_element(
        n, [=](std::int64_t i) { out[i] = narrow_to<To>(static_cast<Wide<To>>(to_float(in[i]))); });
}

template <Element To, Element From>
void cast_elements(TensorView y, ConstTensorView x) {
    const std::int64_t n = y.numel();
    To* const out = y.as<To>().data();
    const From* const in = x.as<From>().data();
    for_each_element(n, [=](std::int64_t i) { out[i] = convert<To>(in[i]); });
}

}  // namespace

void zero(TensorView x) {
    if (x.empty()) return;
    constexpr std::int64_t kGrain = std::int64_t{1} << 18;
    parallel_for(x.bytes(), kGrain, [&](std::int64_t begin, std::int64_t end) {
        std::memset(x.data + begin, 0, static_cast<std::size_t>(end - begin));
    });
}

void add(TensorView y, ConstTensorView a, ConstTensorView b) {
    dispatch_dtype(y.dtype, [&]<Element T>(T) {
        b.dtype == y.dtype ? add_as<T, T>(y, a, b) : add_as<T, Wide<T>>(y, a, b);
    });
}

void add_rows(TensorView sum, ConstTensorView x) {
    const std::int64_t rows = x.rows(), cols = x.cols();
    dispatch_dtype(sum.dtype, [&]<Element T>(T) {
        T* const total = sum.as<T>().data();
        const T* const from = x.as<T>().data();
        for (std::int64_t r = 0; r < rows; ++r)
            for (std::int64_t c = 0; c < cols; ++c)
                total[c] = narrow_to<T>(widen(total[c]) + widen(from[r * cols + c]));
    });
}

void cast(TensorView y, ConstTensorView x) {
    if (y.dtype == DType::fp24)
        return dispatch_dtype(x.dtype, [&]<Element From>(From) { cast_to_fp24<From>(y, x); });
    dispatch_dtype(y.dtype, [&]<Element To>(To) {
        if (x.dtype == DType::fp24) return cast_from_fp24<To>(y, x);
        dispatch_dtype(x.dtype, [&]<Element From>(From) { cast_elements<To, From>(y, x); });
    });
}

// x - x is 0 for a number and NaN for Inf and NaN.
void flag_nonfinite(TensorView flag, ConstTensorView x) {
    std::atomic<std::int32_t> found{0};
    dispatch_dtype(x.dtype, [&]<Element T>(T) {
        const T* const in = x.as<T>().data();
        parallel_for(x.numel(), grain_for(1), [&](std::int64_t begin, std::int64_t end) {
            std::int32_t bad = 0;
            vectorised([&] {
                for (std::int64_t i = begin; i < end; ++i)
                    bad |= widen(in[i]) - widen(in[i]) == 0 ? 0 : 1;
            });
            if (bad != 0) found = 1;
        });
    });
    flag.as<std::int32_t>()[0] |= found.load();
}

void sum_of_squares(ExactSum& out, ConstTensorView x, std::int64_t piece) {
    std::mutex mutex;
    dispatch_dtype(x.dtype, [&]<Element T>(T) {
        const T* const in = x.as<T>().data();
        parallel_for(
            x.numel() / piece, grain_for(piece), [&](std::int64_t begin, std::int64_t end) {
                ExactSum sum;
                for (std::int64_t p = begin; p < end; ++p) {
                    double squares = 0.0;
                    vectorised([&] {
                        squares = lane_sum<double>(piece, [&](std::int64_t i) {
                            const auto value = static_cast<double>(widen(in[p * piece + i]));
                            return value * value;
                        });
                    });
                    sum.add(squares);
                }
                const std::scoped_lock lock(mutex);
                out.add(sum);
            });
    });
}

}  // namespace stoa::cpu
