// Tiles of 128 x 128 whose values a source makes: a warp has 8 rows, a lane four neighbouring
// columns, all in registers. A row's largest is its warp's and its codes go out at once; a column's
// comes by way of shared memory, and its codes from the registers.
#include "kernels/core/block_scale.h"
#include "kernels/core/fast_exp.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/packs.h"

namespace stoa::cuda {
namespace {

constexpr int kB = static_cast<int>(kQuantBlock), kEach = kB / kWarp;
constexpr int kWarps = 16, kRows = kB / kWarps;  // of a block; of a warp

/// The sources: four values at (row, at) of each of their matrices, and what else they write.
template <class T>
struct Stored {
    static constexpr int kCount = 1;
    const T* x;
    std::int64_t cols;
    STOA_DEVICE void values(Pack<T, kEach>* out, std::int64_t row, std::int64_t at) const {
        *out = load_pack<kEach>(x + row * cols, at, cols);
    }
};
template <class T>
struct Swiglu {
    static constexpr int kCount = 1;
    T* y;
    const T *gate, *up;
    std::int64_t cols;
    STOA_DEVICE void values(Pack<T, kEach>* out, std::int64_t row, std::int64_t at) const {
        const auto gates = load_pack<kEach>(gate + row * cols, at, cols);
        const auto ups = load_pack<kEach>(up + row * cols, at, cols);
        for (int i = 0; i < kEach; ++i) {
            const float x = widen(gates.v[i]);
            out->v[i] = narrow_to<T>(x / (1 + fast_exp(-x)) * widen(ups.v[i]));
        }
        store_pack(y + row * cols, at, cols, *out);
    }
};
template <class T>
struct SwigluGradient {
    static constexpr int kCount = 2;
    T *d_gate, *d_up;
    const T *d_y, *gate, *up;
    std::int64_t cols;
    STOA_DEVICE void values(Pack<T, kEach>* out, std::int64_t row, std::int64_t at) const {
        const auto gates = load_pack<kEach>(gate + row * cols, at, cols);
        const auto ups = load_pack<kEach>(up + row * cols, at, cols);
        const auto d_ys = load_pack<kEach>(d_y + row * cols, at, cols);
        for (int i = 0; i < kEach; ++i) {
            const float x = widen(gates.v[i]), u = widen(ups.v[i]), d = widen(d_ys.v[i]);
            const float s = 1 / (1 + fast_exp(-x));
            out[0].v[i] = narrow_to<T>(d * u * s * (1 + x * (1 - s)));
            out[1].v[i] = narrow_to<T>(d * x * s);
        }
        store_pack(d_gate + row * cols, at, cols, out[0]);
        store_pack(d_up + row * cols, at, cols, out[1]);
    }
};
template <class T, class X>
struct Normed {
    static constexpr int kCount = 1;
    T* y;
    const X* x;
    const float *rstd, *weight;
    std::int64_t cols;
    STOA_DEVICE void values(Pack<T, kEach>* out, std::int64_t row, std::int64_t at) const {
        const auto in = load_pack<kEach>(x + row * cols, at, cols);
        const auto gain = load_pack<kEach>(weight, at, cols);
        const float scale = rstd[row];
        for (int i = 0; i < kEach; ++i)
            out->v[i] = narrow_to<T>(widen(in.v[i]) * scale * gain.v[i]);
        store_pack(y + row * cols, at, cols, *out);
    }
};

/// Where the codes of one matrix go; null: not wanted.
template <class Code>
struct Ways {
    Code *row, *column;
    e8m0 *row_scale, *column_scale;
    std::int64_t row_ld, column_ld;  // of the scales
};

/// Both matrices of a source, or its one.
template <class Code, int N>
struct AllWays {
    Ways<Code> of[N];
};

template <class Code, class T, class Source>
STOA_KERNEL void tile_kernel(AllWays<Code, Source::kCount> to, std::int32_t* flag, Source source,
                             std::int64_t rows, std::int64_t cols) {
    constexpr int kCount = Source::kCount;
    SharedMemory memory;
    const Shared<std::int32_t> largest = memory.array<std::int32_t>(kCount * kWarps * kB);
    const std::int64_t tiles = (cols + kB - 1) / kB;
    const std::int64_t tile_row = block_index() / tiles, tile = block_index() % tiles;
    const int warp = thread_index() / kWarp, lane = thread_index() % kWarp;
    const std::int64_t at = tile * kB + lane * kEach;
    Pack<T, kEach> own[kRows][kCount] = {};
    std::int32_t column_max[kCount][kEach] = {};
    bool bad = false;
    STOA_UNROLL_8
    for (int k = 0; k < kRows; ++k) {
        const std::int64_t row = tile_row * kB + warp * kRows + k;
        if (row < rows) source.values(own[k], row, at);
        for (int m = 0; m < kCount; ++m) {
            std::int32_t row_max = 0;
            for (int i = 0; i < kEach; ++i) {
                if (at + i >= cols) own[k][m].v[i] = T{};  // a source may make more of its zeros
                const std::int32_t size = magnitude(own[k][m].v[i]);
                row_max = size > row_max ? size : row_max;
                column_max[m][i] = size > column_max[m][i] ? size : column_max[m][i];
            }
            bad = bad || row_max >= kInfBits;
            const Ways<Code>& way = to.of[m];
            if (way.row == nullptr) continue;
            const std::int32_t byte = scale_byte<Code>(warp_max(row_max));
            if (row >= rows) continue;
            Pack<Code, kEach> out;
            for (int i = 0; i < kEach; ++i)
                out.v[i] = round_to(load_float(own[k][m].v[i]) * factor_of(byte), Code{});
            store_pack(way.row + row * cols, at, cols, out);
            if (lane == 0)
                way.row_scale[row * way.row_ld + tile].bits = static_cast<std::uint8_t>(byte);
        }
    }
    const bool any_bad = warp_ballot(bad) != 0;
    if (flag != nullptr && any_bad && lane == 0) atomic_or(flag, 1);
    for (int m = 0; m < kCount; ++m)
        for (int i = 0; i < kEach; ++i)
            largest.write((m * kWarps + warp) * kB + lane * kEach + i, column_max[m][i]);
    sync_block();
    for (int m = 0; m < kCount; ++m) {
        const Ways<Code>& way = to.of[m];
        if (way.column == nullptr) continue;
        std::int32_t byte[kEach];
        for (int i = 0; i < kEach; ++i) {
            std::int32_t a = 0;
            for (int w = 0; w < kWarps; ++w) {
                const std::int32_t other = largest.read((m * kWarps + w) * kB + lane * kEach + i);
                a = other > a ? other : a;
            }
            byte[i] = scale_byte<Code>(a);
            if (warp == 0 && at + i < cols)
                way.column_scale[tile_row * way.column_ld + at + i].bits =
                    static_cast<std::uint8_t>(byte[i]);
        }
        STOA_UNROLL_8
        for (int k = 0; k < kRows; ++k) {
            const std::int64_t row = tile_row * kB + warp * kRows + k;
            if (row >= rows) continue;
            Pack<Code, kEach> out;
            for (int i = 0; i < kEach; ++i)
                out.v[i] = round_to(load_float(own[k][m].v[i]) * factor_of(byte[i]), Code{});
            store_pack(way.column + row * cols, at, cols, out);
        }
    }
}

/// 1 / sqrt(mean(x^2) + eps), 16 threads a row; with a delta of sum = x + delta, which may be x: a
/// thread reads what it writes, and nothing that another does.
template <class T, class D>
STOA_KERNEL void rstd_kernel(float* rstds, T* sum, const T* x, const D* delta, std::int64_t rows,
                             std::int64_t d, float eps) {
    const std::int64_t row = global_group();
    if (row >= rows) return;
    const float sum_sq = lane_sum<float>(d, [&](std::int64_t c) {
        const std::int64_t at = row * d + c;
        float value = widen(x[at]);
        if (delta != nullptr) {
            sum[at] = narrow_to<T>(value + widen(delta[at]));
            value = widen(sum[at]);
        }
        return value * value;
    });
    if (thread_index() % kLanes == 0)
        rstds[row] = 1.0f / std::sqrt(sum_sq / static_cast<float>(d) + eps);
}

template <class Code>
Ways<Code> ways_of(const TwoWayCodes& c) {
    const auto codes = [](const TensorView& t) {
        return t.empty() ? nullptr : t.as<Code>().data();
    };
    const auto scales = [](const TensorView& t) {
        return t.empty() ? nullptr : t.as<e8m0>().data();
    };
    return {codes(c.row),
            codes(c.column),
            scales(c.row_scale),
            scales(c.column_scale),
            c.row_scale.empty() ? 0 : c.row_scale.cols(),
            c.column_scale.empty() ? 0 : c.column_scale.cols()};
}

/// `codes` of each of the source's matrices.
template <class T, class Source>
void quantize_source(const char* name, const TwoWayCodes* codes, const TensorView& nonfinite,
                     const Source& source, std::int64_t rows, std::int64_t cols, Stream stream) {
    std::int32_t* const flag = nonfinite.empty() ? nullptr : nonfinite.as<std::int32_t>().data();
    const auto run = [&]<class Code>(Code) {
        AllWays<Code, Source::kCount> to;
        for (int m = 0; m < Source::kCount; ++m)
            to.of[m] = ways_of<Code>(codes[m]);
        launch({.name = name,
                .blocks = blocks_for(rows, kB) * blocks_for(cols, kB),
                .threads = kWarps * kWarp,
                .stream = stream,
                .shared_bytes = Source::kCount * kWarps * kB * 4},
               tile_kernel<Code, T, Source>, to, flag, source, rows, cols);
    };
    const DType type = codes->row.empty() ? codes->column.dtype : codes->row.dtype;
    type == DType::e5m2 ? run(e5m2{}) : run(e4m3{});
}

template <class Fn>
void dispatch_float(DType t, const Fn& fn) {
    dispatch_dtype(t, [&]<Element T>(T x) {
        if constexpr (!std::is_same_v<T, double>) fn(x);
    });
}

}  // namespace

void quantize_two_way(const QuantizeTwoWayArgs& a, Stream stream) {
    dispatch_float(a.x.dtype, [&]<Element T>(T) {
        quantize_source<T>("quantize_two_way", &a.codes, a.nonfinite,
                           Stored<T>{a.x.as<T>().data(), a.x.cols()}, a.x.rows(), a.x.cols(),
                           stream);
    });
}

void swiglu_quantize(const SwigluQuantizeArgs& a, Stream stream) {
    dispatch_float(a.y.dtype, [&]<Element T>(T) {
        quantize_source<T>(
            "swiglu_quantize", &a.codes, a.nonfinite,
            Swiglu<T>{a.y.as<T>().data(), a.gate.as<T>().data(), a.up.as<T>().data(), a.y.cols()},
            a.y.rows(), a.y.cols(), stream);
    });
}

void swiglu_quantize_backward(const SwigluQuantizeBackwardArgs& a, Stream stream) {
    const TwoWayCodes codes[2] = {a.d_gate_codes, a.d_up_codes};
    dispatch_float(a.d_gate.dtype, [&]<Element T>(T) {
        quantize_source<T>(
            "swiglu_quantize_backward", codes, a.nonfinite,
            SwigluGradient<T>{a.d_gate.as<T>().data(), a.d_up.as<T>().data(), a.d_y.as<T>().data(),
                              a.gate.as<T>().data(), a.up.as<T>().data(), a.d_gate.cols()},
            a.d_gate.rows(), a.d_gate.cols(), stream);
    });
}

void rms_norm_quantize(const RmsNormQuantizeArgs& a, Stream stream) {
    const RmsNormArgs& n = a.norm;
    const std::int64_t rows = n.x.rows(), cols = n.x.cols();
    float* const rstd = n.rstd.as<float>().data();
    dispatch_float(n.x.dtype, [&]<Element X>(X) {
        X* const sum = n.delta.empty() ? nullptr : n.sum.as<X>().data();
        const X* const x = n.x.as<X>().data();
        const auto row_statistics = [&]<Element D>(D) {
            launch({.name = "rms_norm_quantize: rstd",
                    .blocks = blocks_for(rows * kLanes, kThreads),
                    .threads = kThreads,
                    .stream = stream},
                   rstd_kernel<X, D>, rstd, sum, x,
                   n.delta.empty() ? nullptr : n.delta.as<D>().data(), rows, cols, n.eps);
        };
        n.delta.dtype == n.x.dtype ? row_statistics(X{}) : row_statistics(float{});
        dispatch_float(n.y.dtype, [&]<Element T>(T) {
            quantize_source<T>("rms_norm_quantize", &a.codes, a.nonfinite,
                               Normed<T, X>{n.y.as<T>().data(), sum == nullptr ? x : sum, rstd,
                                            n.weight.as<float>().data(), cols},
                               rows, cols, stream);
        });
    });
}

}  // namespace stoa::cuda
