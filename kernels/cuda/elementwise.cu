#include "kernels/core/convert.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/packs.h"

namespace stoa::cuda {
namespace {

template <class T, class B>
STOA_KERNEL void add_kernel(T* y, const T* a, const B* b, std::int64_t n) {
    const std::int64_t at = pack_begin();
    if (at >= n) return;
    const auto left = load_pack<kPack>(a, at, n);
    const auto right = load_pack<kPack>(b, at, n);
    Pack<T, kPack> sum;
    for (int i = 0; i < kPack; ++i)
        sum.v[i] = narrow_to<T>(widen(left.v[i]) + widen(right.v[i]));
    store_pack(y, at, n, sum);
}

template <class To, class From>
STOA_KERNEL void cast_kernel(To* y, const From* x, std::int64_t n) {
    const std::int64_t at = pack_begin();
    if (at >= n) return;
    const auto in = load_pack<kPack>(x, at, n);
    Pack<To, kPack> out;
    for (int i = 0; i < kPack; ++i)
        out.v[i] = convert<To>(in.v[i]);
    store_pack(y, at, n, out);
}

/// A thread a column, whose rows it adds in their order.
template <class T>
STOA_KERNEL void add_rows_kernel(T* sum, const T* x, std::int64_t rows, std::int64_t cols) {
    const std::int64_t c = global_thread();
    if (c >= cols) return;
    T total = sum[c];
    for (std::int64_t r = 0; r < rows; ++r)
        total = narrow_to<T>(widen(total) + widen(x[r * cols + c]));
    sum[c] = total;
}

// x - x is 0 for a number and NaN for Inf and NaN.
template <class T>
STOA_KERNEL void flag_nonfinite_kernel(std::int32_t* flag, const T* x, std::int64_t n) {
    const auto in = load_pack<kPack>(x, pack_begin(), n);  // all zeros behind the end
    bool bad = false;
    for (int i = 0; i < kPack; ++i)
        bad |= !(widen(in.v[i]) - widen(in.v[i]) == 0);
    if (warp_ballot(bad) != 0 && thread_index() % kWarp == 0) atomic_or(flag, 1);
}

/// sum: the limbs of an ExactSum and the count of values that are not finite. 16 threads take a
/// piece; the first of them keeps the limbs of all its pieces.
template <class T>
STOA_KERNEL void sum_of_squares_kernel(std::int64_t* sum, const T* x, std::int64_t piece,
                                       std::int64_t pieces) {
    std::int64_t limb[ExactSum::kLimbs + 1] = {};
    const std::int64_t groups = grid_blocks() * block_threads() / kLanes;
    for (std::int64_t p = global_group(); p < pieces; p += groups) {
        const T* const in = x + p * piece;
        const double squares = lane_sum<double>(piece, [&](std::int64_t i) {
            const auto value = static_cast<double>(widen(in[i]));
            return value * value;
        });
        const ExactSum::Parts parts = ExactSum::parts_of(squares);
        if (parts.at == ExactSum::kLimbs) ++limb[ExactSum::kLimbs];
        for (int i = 0; i < 3 && parts.at >= 0 && parts.at < ExactSum::kLimbs; ++i)
            limb[parts.at + i] += static_cast<std::int64_t>(parts.limb[i]);
    }
    if (thread_index() % kLanes != 0) return;
    for (int i = 0; i <= ExactSum::kLimbs; ++i)
        if (limb[i] != 0) atomic_add(sum + i, limb[i]);
}

/// fn(T{}) also for fp24, which only stores masters.
template <class Fn>
void dispatch_with_fp24(DType t, const Fn& fn) {
    t == DType::fp24 ? fn(fp24{}) : dispatch_dtype(t, fn);
}

}  // namespace

void zero(TensorView x, Stream stream) {
    if (!x.empty()) fill_bytes(x.data, 0, x.bytes(), stream);
}

void add(TensorView y, ConstTensorView a, ConstTensorView b, Stream stream) {
    const std::int64_t n = y.numel();
    dispatch_dtype(y.dtype, [&]<Element T>(T) {
        const auto run = [&]<Element B>(B) {
            launch(over_packs("add", n, stream), add_kernel<T, B>, y.as<T>().data(),
                   a.as<T>().data(), b.as<B>().data(), n);
        };
        b.dtype == y.dtype ? run(T{}) : run(Wide<T>{});
    });
}

void cast(TensorView y, ConstTensorView x, Stream stream) {
    const std::int64_t n = y.numel();
    dispatch_with_fp24(y.dtype, [&]<class To>(To) {
        dispatch_with_fp24(x.dtype, [&]<class From>(From) {
            if constexpr (std::is_same_v<To, fp24> && std::is_same_v<From, fp24>)
                throw ShapeError({.what = "cast: dtype of x", .expected = "not fp24"});
            else
                launch(over_packs("cast", n, stream), cast_kernel<To, From>, y.as<To>().data(),
                       x.as<From>().data(), n);
        });
    });
}

void flag_nonfinite(TensorView flag, ConstTensorView x, Stream stream) {
    dispatch_dtype(x.dtype, [&]<Element T>(T) {
        launch(over_packs("flag_nonfinite", x.numel(), stream), flag_nonfinite_kernel<T>,
               flag.as<std::int32_t>().data(), x.as<T>().data(), x.numel());
    });
}

void add_rows(TensorView sum, ConstTensorView x, Stream stream) {
    dispatch_dtype(sum.dtype, [&]<Element T>(T) {
        launch({.name = "add_rows",
                .blocks = blocks_for(x.cols(), kThreads),
                .threads = kThreads,
                .stream = stream},
               add_rows_kernel<T>, sum.as<T>().data(), x.as<T>().data(), x.rows(), x.cols());
    });
}

void sum_of_squares(TensorView out, ConstTensorView x, std::int64_t piece, Stream stream) {
    constexpr std::int64_t kMostBlocks = 1024;
    const std::int64_t pieces = x.numel() / piece;
    dispatch_dtype(x.dtype, [&]<Element T>(T) {
        launch({.name = "sum_of_squares",
                .blocks = std::min(blocks_for(pieces * kLanes, kThreads), kMostBlocks),
                .threads = kThreads,
                .stream = stream},
               sum_of_squares_kernel<T>, reinterpret_cast<std::int64_t*>(out.data),
               x.as<T>().data(), piece, pieces);
    });
}

}  // namespace stoa::cuda
