// Two passes over what fits the cache: the magnitudes of a block give its scale, then each value is
// scaled and rounded. Both are branchless and vectorised. A maximum has no order and a block has
// one owner, so neither the instruction set nor the number of threads shows.
#include "kernels/quantize.h"

#include <algorithm>
#include <atomic>

#include "kernels/core/block_scale.h"
#include "kernels/core/thread_pool.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/ops.h"

namespace stoa::cpu {
namespace {

constexpr std::int64_t kB = kQuantBlock;
constexpr std::int64_t kStrip = 2 * kB;  // columns of a tile: 128 rows of it stay in L2
constexpr std::int64_t kGrain = std::int64_t{1} << 15;  // values that are worth a thread's while

/// A quantised matrix, its values as T (in x or y, whichever the op has), row-major.
template <class Code, class T>
struct Matrix {
    const T* x;
    Code* codes;
    e8m0* scale;
    std::int64_t rows, cols, scale_ld;
};

/// Rows [begin, end) in blocks of 1 x 128. Returns the largest magnitude.
template <class Code, class T>
std::int32_t quantize_rows(const Matrix<Code, T> m, std::int64_t begin, std::int64_t end) {
    std::int32_t largest = 0;
    for (std::int64_t r = begin; r < end; ++r)
        for (std::int64_t c = 0; c < m.cols; c += kB) {
            const T* const x = m.x + r * m.cols + c;
            Code* const codes = m.codes + r * m.cols + c;
            const std::int64_t n = std::min(kB, m.cols - c);
            std::int32_t a = 0;
            for (std::int64_t i = 0; i < n; ++i)
                a = std::max(a, magnitude(x[i]));
            const std::int32_t byte = scale_byte<Code>(a);
            const float factor = factor_of(byte);
            m.scale[r * m.scale_ld + c / kB].bits = static_cast<std::uint8_t>(byte);
#pragma GCC ivdep
            for (std::int64_t i = 0; i < n; ++i)
                codes[i] = round_to(load_float(x[i]) * factor, Code{});
            largest = std::max(largest, a);
        }
    return largest;
}

/// The tile of up to 128 x kStrip values at row r, column c, in blocks of 128 x 1 or 128 x 128.
template <class Code, class T>
std::int32_t quantize_tile(const Matrix<Code, T> m, std::int64_t r, std::int64_t c, bool square) {
    const std::int64_t rows = std::min(kB, m.rows - r), cols = std::min(kStrip, m.cols - c);
    const T* const x = m.x + r * m.cols + c;
    Code* const codes = m.codes + r * m.cols + c;
    alignas(64) std::int32_t amax[kStrip] = {};
    for (std::int64_t i = 0; i < rows; ++i)
        for (std::int64_t j = 0; j < cols; ++j)
            amax[j] = std::max(amax[j], magnitude(x[i * m.cols + j]));
    std::int32_t largest = 0;
    for (std::int64_t b = 0; b < cols; b += kB) {
        std::int32_t a = 0;
        for (std::int64_t j = b; j < std::min(b + kB, cols); ++j)
            a = std::max(a, amax[j]);
        if (square) std::fill(amax + b, amax + std::min(b + kB, cols), a);
        largest = std::max(largest, a);
    }
    alignas(64) float factor[kStrip];
    e8m0* const scale = m.scale + r / kB * m.scale_ld + (square ? c / kB : c);
    for (std::int64_t j = 0; j < cols; ++j) {
        const std::int32_t byte = scale_byte<Code>(amax[j]);
        factor[j] = factor_of(byte);
        if (!square || j % kB == 0)
            scale[square ? j / kB : j].bits = static_cast<std::uint8_t>(byte);
    }
    for (std::int64_t i = 0; i < rows; ++i) {
        const T* const from = x + i * m.cols;
        Code* const to = codes + i * m.cols;
#pragma GCC ivdep
        for (std::int64_t j = 0; j < cols; ++j)
            to[j] = round_to(load_float(from[j]) * factor[j], Code{});
    }
    return largest;
}

template <class Code, class T>
void quantize_as(const QuantizeArgs& args, QuantBlocks kind) {
    const Matrix<Code, T> m{args.x.as<T>().data(),
                            args.codes.as<Code>().data(),
                            args.scale.as<e8m0>().data(),
                            args.codes.rows(),
                            args.codes.cols(),
                            args.scale.cols()};
    std::atomic<bool> nonfinite{false};
    const auto run = [&](std::int64_t count, std::int64_t grain, const auto& part) {
        parallel_for(count, grain, [&](std::int64_t begin, std::int64_t end) {
            std::int32_t largest = 0;
            vectorised([&] { largest = part(begin, end); });
            if (largest >= kInfBits) nonfinite.store(true, std::memory_order_relaxed);
        });
    };
    if (kind == QuantBlocks::row) {
        run(m.rows, kGrain / std::max<std::int64_t>(1, m.cols),
            [&](std::int64_t begin, std::int64_t end) { return quantize_rows(m, begin, end); });
    } else {
        const std::int64_t strips = (m.cols + kStrip - 1) / kStrip;
        const bool square = kind == QuantBlocks::square;
        run((m.rows + kB - 1) / kB * strips, 1, [&](std::int64_t begin, std::int64_t end) {
            std::int32_t largest = 0;
            for (std::int64_t t = begin; t < end; ++t)
                largest = std::max(largest,
                                   quantize_tile(m, t / strips * kB, t % strips * kStrip, square));
            return largest;
        });
    }
    if (nonfinite && !args.nonfinite.empty()) args.nonfinite.as<std::int32_t>()[0] |= 1;
}

template <class Code>
void quantize_to(const QuantizeArgs& args, QuantBlocks kind) {
    switch (args.x.dtype) {
        case DType::bf16:
            return quantize_as<Code, bf16>(args, kind);
        case DType::fp16:
            return quantize_as<Code, fp16>(args, kind);
        case DType::fp24:
            return quantize_as<Code, fp24>(args, kind);
        default:
            return quantize_as<Code, float>(args, kind);
    }
}

/// Row r, whose scales lie at `scale`: one per column, or one per 128 columns.
template <class Code>
void dequantize_row(float* y, const Code* codes, const e8m0* scale, std::int64_t cols,
                    bool per_column) {
    if (per_column) {
        for (std::int64_t c = 0; c < cols; ++c)
            y[c] = to_float(codes[c]) * to_float(scale[c]);
        return;
    }
    for (std::int64_t b = 0; b < cols; b += kB) {
        const float s = to_float(scale[b / kB]);
        for (std::int64_t c = b; c < std::min(cols, b + kB); ++c)
            y[c] = to_float(codes[c]) * s;
    }
}

template <class Code>
void dequantize_from(const DequantizeArgs& args, QuantBlocks kind) {
    const std::int64_t rows = args.codes.rows(), cols = args.codes.cols();
    const std::int64_t scale_ld = args.scale.cols();
    float* const y = args.y.as<float>().data();
    const Code* const codes = args.codes.as<Code>().data();
    const e8m0* const scale = args.scale.as<e8m0>().data();
    parallel_for(
        rows, kGrain / std::max<std::int64_t>(1, cols), [&](std::int64_t begin, std::int64_t end) {
            vectorised([&] {
                for (std::int64_t r = begin; r < end; ++r)
                    dequantize_row(y + r * cols, codes + r * cols,
                                   scale + (kind == QuantBlocks::row ? r : r / kB) * scale_ld, cols,
                                   kind == QuantBlocks::column);
            });
        });
}

/// One row's blocks of 1 x 128, each rounded and widened again.
template <class T>
void add_loss(double* sums, const T* x, std::int64_t cols) {
    for (std::int64_t c = 0; c < cols; c += kB) {
        const std::int64_t n = std::min(kB, cols - c);
        std::int32_t a = 0;
        for (std::int64_t i = 0; i < n; ++i)
            a = std::max(a, magnitude(x[c + i]));
        const float factor = factor_of(scale_byte<e4m3>(a));
        alignas(64) double loss[kB], value[kB];
        alignas(64) std::int32_t nonzero[kB], lost[kB];
        for (std::int64_t i = 0; i < n; ++i) {
            const float scaled = load_float(x[c + i]) * factor, kept = to_float(to_e4m3(scaled));
            nonzero[i] = scaled != 0.0f;
            lost[i] = scaled != 0.0f && kept == 0.0f;
            const double inverse = 1.0 / static_cast<double>(factor);
            value[i] = static_cast<double>(scaled) * inverse;
            loss[i] = static_cast<double>(kept - scaled) * inverse;
        }
        for (std::int64_t i = 0; i < n; ++i) {
            sums[0] += nonzero[i];
            sums[1] += lost[i];
            sums[2] += loss[i] * loss[i];
            sums[3] += value[i] * value[i];
        }
    }
}

QuantBlocks kind_of(const ConstTensorView& codes, const ConstTensorView& scale) {
    return blocks_of({codes.rows(), codes.cols()}, {scale.rows(), scale.cols()});
}

}  // namespace

void quantize(const QuantizeArgs& args) {
    const QuantBlocks kind = kind_of(args.codes, args.scale);
    args.codes.dtype == DType::e4m3 ? quantize_to<e4m3>(args, kind) : quantize_to<e5m2>(args, kind);
}

// Taken once in many steps: one thread and one order of the sums.
void quantization_loss(const QuantizationLossArgs& args) {
    const std::int64_t rows = args.x.rows(), cols = args.x.cols();
    double* const sums = args.sums.as<double>().data();
    dispatch_dtype(args.x.dtype, [&]<Element T>(T) {
        if constexpr (!std::is_same_v<T, double>) {
            const T* const x = args.x.as<T>().data();
            vectorised([&] {
                for (std::int64_t r = 0; r < rows; ++r)
                    add_loss(sums, x + r * cols, cols);
            });
        }
    });
}

void dequantize(const DequantizeArgs& args) {
    const QuantBlocks kind = kind_of(args.codes, args.scale);
    args.codes.dtype == DType::e4m3 ? dequantize_from<e4m3>(args, kind)
                                    : dequantize_from<e5m2>(args, kind);
}

}  // namespace stoa::cpu
