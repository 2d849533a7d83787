#include <cmath>

#include "kernels/cuda/ops.h"
#include "kernels/cuda/packs.h"

namespace stoa::cuda {
namespace {

/// 16 threads a row. y may be x.
template <class T, class U, class W = Wide<T>>
STOA_KERNEL void forward_kernel(U* y, W* rstds, const T* x, const W* weight, std::int64_t rows,
                                std::int64_t d, W eps) {
    const std::int64_t row = global_group();
    if (row >= rows) return;
    x += row * d;
    y += row * d;
    const W sum_sq = lane_sum<W>(d, [&](std::int64_t c) { return widen(x[c]) * widen(x[c]); });
    const W rstd = W{1} / std::sqrt(sum_sq / static_cast<W>(d) + eps);
    const int lane = thread_index() % kLanes;
    for (std::int64_t at = lane * kPack; at < d; at += kLanes * kPack) {
        const auto in = load_pack<kPack>(x, at, d);
        const auto gain = load_pack<kPack>(weight, at, d);
        Pack<U, kPack> out;
        for (int i = 0; i < kPack; ++i)
            out.v[i] = narrow_to<U>(widen(in.v[i]) * rstd * gain.v[i]);
        store_pack(y, at, d, out);
    }
    if (lane == 0) rstds[row] = rstd;
}

/// 16 threads a row, which read it twice, the second time from a cache. sum may be x, and y delta:
/// nobody writes before all 16 have read.
template <class T, class D, class U, class W = Wide<T>>
STOA_KERNEL void add_kernel(T* sum, U* y, W* rstds, const T* x, const D* delta, const W* weight,
                            std::int64_t rows, std::int64_t d, W eps) {
    const std::int64_t row = global_group();
    if (row >= rows) return;
    x += row * d;
    delta += row * d;
    const W sum_sq = lane_sum<W>(d, [&](std::int64_t c) {
        const W value = widen(narrow_to<T>(widen(x[c]) + widen(delta[c])));
        return value * value;
    });
    const W rstd = W{1} / std::sqrt(sum_sq / static_cast<W>(d) + eps);
    const int lane = thread_index() % kLanes;
    for (std::int64_t at = lane * kPack; at < d; at += kLanes * kPack) {
        const auto in = load_pack<kPack>(x, at, d);
        const auto more = load_pack<kPack>(delta, at, d);
        const auto gain = load_pack<kPack>(weight, at, d);
        Pack<T, kPack> total;
        Pack<U, kPack> out;
        for (int i = 0; i < kPack; ++i) {
            total.v[i] = narrow_to<T>(widen(in.v[i]) + widen(more.v[i]));
            out.v[i] = narrow_to<U>(widen(total.v[i]) * rstd * gain.v[i]);
        }
        store_pack(sum + row * d, at, d, total);
        store_pack(y + row * d, at, d, out);
    }
    if (lane == 0) rstds[row] = rstd;
}

constexpr int kStrip = kWarp, kTileWarps = 16;
/// Rows of a tile: two of them in float or double fit 32 KiB.
template <class W>
constexpr int kTileRows = 512 / static_cast<int>(sizeof(W));

/// A block of threads a group and strip of 32 columns. All warps multiply the next tile of rows
/// into shared memory; the first adds the last one, row by row in their order.
template <class T, class D, class W = Wide<T>>
STOA_KERNEL void d_weight_kernel(W* d_weight, const D* d_y, const T* x, const W* rstds,
                                 std::int64_t rows, std::int64_t d, std::int64_t groups,
                                 std::int64_t segment_rows) {
    constexpr int kRows = kTileRows<W>;
    SharedMemory memory;
    const Shared<W> tiles = memory.array<W>(2 * kRows * kStrip);
    const std::int64_t strips = (d + kStrip - 1) / kStrip;
    const std::int64_t group = block_index() / strips;
    const int warp = thread_index() / kWarp, lane = thread_index() % kWarp;
    const std::int64_t c = block_index() % strips * kStrip + lane;
    const std::int64_t first = segment_rows > 0 ? group * segment_rows : group;
    const std::int64_t end = segment_rows > 0 ? first + segment_rows : rows;
    const std::int64_t step = segment_rows > 0 ? 1 : groups,
                       count = (end - first + step - 1) / step;
    W sum = c < d ? d_weight[group * d + c] : W{0};
    for (std::int64_t begin = 0; begin < count; begin += kRows) {
        const int tile = static_cast<int>(begin / kRows % 2) * kRows * kStrip;
        for (int k = 0; k < kRows / kTileWarps; ++k) {
            const int i = warp + k * kTileWarps;
            const std::int64_t r = first + (begin + i) * step;
            const bool here = begin + i < count && c < d;
            const W value = here ? widen(d_y[r * d + c]) * widen(x[r * d + c]) * rstds[r] : W{0};
            tiles.write(tile + i * kStrip + lane, value);
        }
        sync_block();
        const int n = count - begin < kRows ? static_cast<int>(count - begin) : kRows;
        STOA_UNROLL_8
        for (int i = 0; i < n && warp == 0; ++i)
            sum += tiles.read(tile + i * kStrip + lane);
    }
    if (warp == 0 && c < d) d_weight[group * d + c] = sum;
}

/// 16 threads a row. d_x may be d_y.
template <class T, class D, class W = Wide<T>>
STOA_KERNEL void d_x_kernel(T* d_x, const D* d_y, const T* x, const W* weight, const W* rstds,
                            std::int64_t rows, std::int64_t d, bool accumulate) {
    const std::int64_t row = global_group();
    if (row >= rows) return;
    x += row * d;
    d_y += row * d;
    d_x += row * d;
    const W rstd = rstds[row];
    const W dot =
        lane_sum<W>(d, [&](std::int64_t c) { return widen(d_y[c]) * weight[c] * widen(x[c]); });
    const W shrink = rstd * rstd * (dot / static_cast<W>(d));
    for (std::int64_t at = thread_index() % kLanes * kPack; at < d; at += kLanes * kPack) {
        const auto in = load_pack<kPack>(x, at, d);
        const auto d_out = load_pack<kPack>(d_y, at, d);
        const auto gain = load_pack<kPack>(weight, at, d);
        Pack<T, kPack> out{};
        if (accumulate) out = load_pack<kPack>(d_x, at, d);
        for (int i = 0; i < kPack; ++i) {
            const W value = rstd * (widen(d_out.v[i]) * gain.v[i] - widen(in.v[i]) * shrink);
            out.v[i] = narrow_to<T>(accumulate ? widen(out.v[i]) + value : value);
        }
        store_pack(d_x, at, d, out);
    }
}

Launch rows_launch(const char* name, std::int64_t rows, Stream stream) {
    return {.name = name,
            .blocks = blocks_for(rows * kLanes, kThreads),
            .threads = kThreads,
            .stream = stream};
}

template <class T, class D, class W = Wide<T>>
void backward(const RmsNormBackwardArgs& args, Stream stream) {
    const std::int64_t rows = args.x.rows(), d = args.x.cols(), groups = args.d_weight.numel() / d;
    const T* const x = args.x.as<T>().data();
    const D* const d_y = args.d_y.as<D>().data();
    const W* const rstds = args.rstd.as<W>().data();
    // The gains' gradients first: d_x may lie where d_y does.
    launch({.name = "rms_norm_backward: d_weight",
            .blocks = groups * blocks_for(d, kStrip),
            .threads = kTileWarps * kWarp,
            .stream = stream,
            .shared_bytes = 2 * kTileRows<W> * kStrip * static_cast<int>(sizeof(W))},
           d_weight_kernel<T, D>, args.d_weight.as<W>().data(), d_y, x, rstds, rows, d, groups,
           args.segment_rows);
    launch(rows_launch("rms_norm_backward: d_x", rows, stream), d_x_kernel<T, D>,
           args.d_x.as<T>().data(), d_y, x, args.weight.as<W>().data(), rstds, rows, d,
           args.accumulate);
}

}  // namespace

void rms_norm_forward(const RmsNormArgs& a, Stream stream) {
    const Launch rows = rows_launch("rms_norm_forward", a.x.rows(), stream);
    const auto run = [&]<Element T, Element U>(T, U) {
        U* const y = a.y.as<U>().data();
        const T* const x = a.x.as<T>().data();
        const auto rstd = a.rstd.as<Wide<T>>().data();
        const auto weight = a.weight.as<Wide<T>>().data();
        const auto add = [&]<Element D>(D) {
            launch(rows, add_kernel<T, D, U>, a.sum.as<T>().data(), y, rstd, x,
                   a.delta.as<D>().data(), weight, a.x.rows(), a.x.cols(), a.eps);
        };
        if (a.delta.empty())
            launch(rows, forward_kernel<T, U>, y, rstd, x, weight, a.x.rows(), a.x.cols(), a.eps);
        else
            a.delta.dtype == a.x.dtype ? add(T{}) : add(Wide<T>{});
    };
    dispatch_dtype(a.x.dtype, [&]<Element T>(T x) {
        dispatch_dtype(a.y.dtype, [&]<Element U>(U y) {
            if constexpr (std::is_same_v<Wide<T>, Wide<U>>) run(x, y);
        });
    });
}

void rms_norm_backward(const RmsNormBackwardArgs& args, Stream stream) {
    dispatch_dtype(args.x.dtype, [&]<Element T>(T) {
        args.d_y.dtype == args.x.dtype ? backward<T, T>(args, stream)
                                       : backward<T, Wide<T>>(args, stream);
    });
}

}  // namespace stoa::cuda
