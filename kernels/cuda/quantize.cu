#include "kernels/core/block_scale.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/packs.h"
#include "kernels/device_scratch.h"

namespace stoa::cuda {
namespace {

constexpr int kB = static_cast<int>(kQuantBlock);

STOA_DEVICE inline void note_nonfinite(std::int32_t* flag, std::int32_t largest) {
    if (flag != nullptr && largest >= kInfBits) atomic_or(flag, 1);
}

/// Blocks of 1 x 128: a warp each, four neighbouring values a thread.
template <class Code, class T>
STOA_KERNEL void row_kernel(Code* codes, e8m0* scale, std::int32_t* flag, const T* x,
                            std::int64_t rows, std::int64_t cols, std::int64_t scale_ld) {
    constexpr int kEach = kB / kWarp;
    const std::int64_t block = global_thread() / kWarp;
    if (block >= rows * scale_ld) return;
    const std::int64_t row = block / scale_ld, first = block % scale_ld * kB;
    const int lane = thread_index() % kWarp;
    const std::int64_t n = cols - first < kB ? cols - first : kB;
    const auto in = load_pack<kEach>(x + row * cols + first, lane * kEach, n);
    std::int32_t a = 0;
    for (int i = 0; i < kEach; ++i) {
        const std::int32_t size = magnitude(in.v[i]);
        a = size > a ? size : a;
    }
    a = warp_max(a);
    const std::int32_t byte = scale_byte<Code>(a);
    const float factor = factor_of(byte);
    Pack<Code, kEach> out;
    for (int i = 0; i < kEach; ++i)
        out.v[i] = round_to(load_float(in.v[i]) * factor, Code{});
    store_pack(codes + row * cols + first, lane * kEach, n, out);
    if (lane != 0) return;
    scale[block].bits = static_cast<std::uint8_t>(byte);
    note_nonfinite(flag, a);
}

/// Blocks of 128 x 1 or 128 x 128: a tile of 128 x 128 values a block of threads, a column and half
/// of its rows a thread.
template <class Code, class T>
STOA_KERNEL void tile_kernel(Code* codes, e8m0* scale, std::int32_t* flag, const T* x,
                             std::int64_t rows, std::int64_t cols, std::int64_t scale_ld,
                             bool square) {
    SharedMemory memory;
    const Shared<std::int32_t> halves = memory.array<std::int32_t>(2 * kB);
    const Shared<std::int32_t> warps = memory.array<std::int32_t>(2 * kB / kWarp);
    const std::int64_t tiles = (cols + kB - 1) / kB;
    const std::int64_t tile_row = block_index() / tiles, tile = block_index() % tiles;
    const int column = thread_index() % kB, half = thread_index() / kB;
    const std::int64_t c = tile * kB + column;
    const std::int64_t begin = tile_row * kB + half * (kB / 2);
    const std::int64_t end = begin + kB / 2 < rows ? begin + kB / 2 : rows;
    std::int32_t a = 0;
    for (std::int64_t r = begin; r < end && c < cols; ++r) {
        const std::int32_t size = magnitude(x[r * cols + c]);
        a = size > a ? size : a;
    }
    halves.write(thread_index(), a);
    sync_block();
    const std::int32_t other = halves.read((thread_index() + kB) % (2 * kB));
    a = other > a ? other : a;
    if (square) {
        a = warp_max(a);
        if (thread_index() % kWarp == 0) warps.write(thread_index() / kWarp, a);
        sync_block();
        for (int w = 0; w < kB / kWarp; ++w)
            a = warps.read(w) > a ? warps.read(w) : a;
    }
    const std::int32_t byte = scale_byte<Code>(a);
    const float factor = factor_of(byte);
    for (std::int64_t r = begin; r < end && c < cols; ++r)
        codes[r * cols + c] = round_to(load_float(x[r * cols + c]) * factor, Code{});
    if (half != 0 || c >= cols || (square && column != 0)) return;
    scale[tile_row * scale_ld + (square ? tile : c)].bits = static_cast<std::uint8_t>(byte);
    note_nonfinite(flag, a);
}

/// A thread a value; a scale per column, or per 128 columns, and per row or per 128 rows.
template <class Code>
STOA_KERNEL void dequantize_kernel(float* y, const Code* codes, const e8m0* scale, std::int64_t n,
                                   std::int64_t cols, std::int64_t scale_ld, int scale_rows,
                                   int scale_cols) {
    const std::int64_t i = global_thread();
    if (i >= n) return;
    const std::int64_t r = i / cols, c = i % cols;
    y[i] = to_float(codes[i]) * to_float(scale[r / scale_rows * scale_ld + c / scale_cols]);
}

/// What e4m3 would lose of blocks of 1 x 128. A warp takes every `warps`-th block, four
/// neighbouring values a thread, and leaves its four sums in partial (4, warps).
template <class T>
STOA_KERNEL void loss_kernel(double* partial, const T* x, std::int64_t rows, std::int64_t cols,
                             std::int64_t row_blocks, std::int64_t warps) {
    constexpr int kEach = kB / kWarp;
    const std::int64_t warp = global_thread() / kWarp;
    if (warp >= warps) return;
    const int lane = thread_index() % kWarp;
    double sums[4] = {};
    for (std::int64_t block = warp; block < rows * row_blocks; block += warps) {
        const std::int64_t first = block % row_blocks * kB;
        const std::int64_t n = cols - first < kB ? cols - first : kB;
        const auto in = load_pack<kEach>(x + block / row_blocks * cols + first, lane * kEach, n);
        std::int32_t a = 0;
        for (int i = 0; i < kEach; ++i) {
            const std::int32_t size = magnitude(in.v[i]);
            a = size > a ? size : a;
        }
        const float factor = factor_of(scale_byte<e4m3>(warp_max(a)));
        const double inverse = 1.0 / static_cast<double>(factor);
        for (int i = 0; i < kEach; ++i) {
            const float scaled = load_float(in.v[i]) * factor, kept = to_float(to_e4m3(scaled));
            const double value = static_cast<double>(scaled) * inverse,
                         loss = static_cast<double>(kept - scaled) * inverse;
            sums[0] += scaled != 0.0f ? 1.0 : 0.0;
            sums[1] += scaled != 0.0f && kept == 0.0f ? 1.0 : 0.0;
            sums[2] += loss * loss;
            sums[3] += value * value;
        }
    }
    for (int i = 0; i < 4; ++i) {
        const double sum = warp_sum(sums[i]);
        if (lane == 0) partial[i * warps + warp] = sum;
    }
}
/// A warp a sum: adds the warps' partial ones to it, in one order.
STOA_KERNEL void add_loss_kernel(double* sums, const double* partial, std::int64_t warps) {
    const int i = thread_index() / kWarp, lane = thread_index() % kWarp;
    double sum = 0.0;
    for (std::int64_t w = lane; w < warps; w += kWarp)
        sum += partial[i * warps + w];
    sum = warp_sum(sum);
    if (lane == 0) sums[i] += sum;
}

QuantBlocks kind_of(const ConstTensorView& codes, const ConstTensorView& scale) {
    return blocks_of({codes.rows(), codes.cols()}, {scale.rows(), scale.cols()});
}

template <class Code, class T>
void quantize_as(const QuantizeArgs& args, Stream stream) {
    const std::int64_t rows = args.codes.rows(), cols = args.codes.cols();
    const std::int64_t scale_ld = args.scale.cols();
    const QuantBlocks kind = kind_of(args.codes, args.scale);
    Code* const codes = args.codes.as<Code>().data();
    e8m0* const scale = args.scale.as<e8m0>().data();
    std::int32_t* const flag =
        args.nonfinite.empty() ? nullptr : args.nonfinite.as<std::int32_t>().data();
    const T* const x = args.x.as<T>().data();
    if (kind == QuantBlocks::row)
        launch({.name = "quantize: rows",
                .blocks = blocks_for(rows * scale_ld, kThreads / kWarp),
                .threads = kThreads,
                .stream = stream},
               row_kernel<Code, T>, codes, scale, flag, x, rows, cols, scale_ld);
    else
        launch({.name = "quantize: tiles",
                .blocks = blocks_for(rows, kB) * blocks_for(cols, kB),
                .threads = 2 * kB,
                .stream = stream,
                .shared_bytes = 2 * kB * 4 + 2 * kB / kWarp * 4},
               tile_kernel<Code, T>, codes, scale, flag, x, rows, cols, scale_ld,
               kind == QuantBlocks::square);
}

template <class Code>
void quantize_to(const QuantizeArgs& args, Stream stream) {
    switch (args.x.dtype) {
        case DType::bf16:
            return quantize_as<Code, bf16>(args, stream);
        case DType::fp16:
            return quantize_as<Code, fp16>(args, stream);
        case DType::fp24:
            return quantize_as<Code, fp24>(args, stream);
        default:
            return quantize_as<Code, float>(args, stream);
    }
}

template <class Code>
void dequantize_from(const DequantizeArgs& args, Stream stream) {
    const std::int64_t n = args.codes.numel(), cols = args.codes.cols();
    const QuantBlocks kind = kind_of(args.codes, args.scale);
    launch({.name = "dequantize",
            .blocks = blocks_for(n, kThreads),
            .threads = kThreads,
            .stream = stream},
           dequantize_kernel<Code>, args.y.as<float>().data(), args.codes.as<Code>().data(),
           args.scale.as<e8m0>().data(), n, cols, args.scale.cols(),
           kind == QuantBlocks::row ? 1 : kB, kind == QuantBlocks::column ? 1 : kB);
}

}  // namespace

void quantize(const QuantizeArgs& args, Stream stream) {
    args.codes.dtype == DType::e4m3 ? quantize_to<e4m3>(args, stream)
                                    : quantize_to<e5m2>(args, stream);
}

void dequantize(const DequantizeArgs& args, Stream stream) {
    args.codes.dtype == DType::e4m3 ? dequantize_from<e4m3>(args, stream)
                                    : dequantize_from<e5m2>(args, stream);
}

void quantization_loss(const QuantizationLossArgs& args, Stream stream) {
    const std::int64_t rows = args.x.rows(), cols = args.x.cols();
    const std::int64_t row_blocks = (cols + kB - 1) / kB;
    const std::int64_t warps = quantization_loss_warps(args.x);
    const Scratch partial(stream, 4 * warps * 8);
    dispatch_dtype(args.x.dtype, [&]<Element T>(T) {
        if constexpr (!std::is_same_v<T, double>)
            launch({.name = "quantization_loss",
                    .blocks = blocks_for(warps, kThreads / kWarp),
                    .threads = kThreads,
                    .stream = stream},
                   loss_kernel<T>, partial.as<double>(), args.x.as<T>().data(), rows, cols,
                   row_blocks, warps);
    });
    launch({.name = "quantization_loss: sums", .blocks = 1, .threads = 4 * kWarp, .stream = stream},
           add_loss_kernel, args.sums.as<double>().data(), partial.as<double>(), warps);
}

}  // namespace stoa::cuda
