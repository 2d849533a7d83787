#include "kernels/core/block_scale.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/lane_groups.h"
#include "kernels/cuda/library_gemm.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/transpose_codes.h"
#include "kernels/device_scratch.h"

namespace stoa::cuda {
namespace {

constexpr std::int64_t kB = kQuantBlock;

bool is_8_bit(DType t) { return size_of(t) == 1; }

/// e8m0 scales of quantize.h as LibraryGemm wants them: fp32, (blocks of k, round4(rows)) for rows'
/// blocks, (rows / 128, round4(blocks of k)) for square ones. A thread an element of `out`. The
/// stored ones of row (or 128 rows) r and block k lie at r * row_ld + k * k_ld.
STOA_KERNEL void scale_kernel(float* out, const e8m0* scale, std::int64_t n, std::int64_t rows,
                              std::int64_t k_blocks, std::int64_t row_ld, std::int64_t k_ld,
                              bool square) {
    const std::int64_t i = global_thread();
    if (i >= n) return;
    const std::int64_t width = (square ? k_blocks : rows) + 3, ld = width / 4 * 4;
    const std::int64_t r = square ? i / ld : i % ld, k = square ? i % ld : i / ld;
    out[i] = r < rows && k < k_blocks ? to_float(scale[r * row_ld + k * k_ld]) : 1.0f;
}

/// A stored operand in a wider type, its scales applied; exact, but where 2^-133 is too small for a
/// bf16. A thread an element; without scales scale_rows is 0.
template <class To, class From>
STOA_KERNEL void widen_kernel(To* out, const From* x, const e8m0* scale, std::int64_t n,
                              std::int64_t cols, std::int64_t scale_ld, int scale_rows,
                              int scale_cols) {
    const std::int64_t i = global_thread();
    if (i >= n) return;
    float value = load_float(x[i]);
    if (scale_rows > 0)
        value *= to_float(scale[i / cols / scale_rows * scale_ld + i % cols / scale_cols]);
    out[i] = narrow_to<To>(value);
}

/// c = product, or c + product, rounded to c's type: at random where that is asked for.
template <class C>
STOA_KERNEL void store_kernel(C* c, const float* product, std::int64_t n, std::int64_t cols,
                              bool accumulate, StochasticRounding rounding) {
    const std::int64_t i = global_thread();
    if (i >= n) return;
    const float value = accumulate ? widen(c[i]) + product[i] : product[i];
    if constexpr (std::is_same_v<C, bf16>) {
        if (accumulate && rounding.enabled()) {
            c[i] = to_bf16_stochastic(value,
                                      random_half(rounding, rounding.element(i / cols, i % cols)));
            return;
        }
    }
    c[i] = narrow_to<C>(value);
}

Launch over(const char* name, std::int64_t n, Stream stream) {
    return {.name = name, .blocks = blocks_for(n, kThreads), .threads = kThreads, .stream = stream};
}

/// fn(T{}) for all that matmul takes.
template <class Fn>
void dispatch_operand(DType t, const Fn& fn) {
    if (t == DType::e4m3) return fn(e4m3{});
    if (t == DType::e5m2) return fn(e5m2{});
    dispatch_dtype(t, fn);
}

/// x as To, in scratch memory.
template <class To>
void widen_into(To* out, const ConstTensorView& x, const ConstTensorView& scale, Stream stream) {
    const int rows = scale.empty() ? 0 : scale.rows() == x.rows() ? 1 : kB;
    const int cols = scale.empty() || scale.cols() == x.cols() ? 1 : kB;
    dispatch_operand(x.dtype, [&]<class From>(From) {
        if constexpr (!std::is_same_v<From, double>)
            launch(over("matmul: widen", x.numel(), stream), widen_kernel<To, From>, out,
                   x.as<From>().data(), scale.empty() ? nullptr : scale.as<e8m0>().data(),
                   x.numel(), x.cols(), scale.empty() ? 0 : scale.cols(), rows, cols);
    });
}

struct Sides {
    std::int64_t m, n, k;
};

LibraryGemm::Operand operand_of(const ConstTensorView& x, bool transpose) {
    return {.data = x.data, .dtype = x.dtype, .ld = x.cols(), .transpose = transpose};
}
/// Moves the operand to the first step of k that enters.
void skip_k(LibraryGemm::Operand& o, std::int64_t k_begin, bool k_is_row) {
    o.data += (k_is_row ? k_begin * o.ld : k_begin) * size_of(o.dtype);
}

/// An 8-bit operand as the library reads it, contracted along its rows in whole blocks, with what
/// holds it: one that is contracted along its columns is turned first, and its blocks of 128 x 1
/// are then of 1 x 128.
struct Codes {
    LibraryGemm::Operand operand;
    Scratch turned, scale;
};
void lay_out_codes(Codes& out, const ConstTensorView& x, const ConstTensorView& x_scale,
                   bool k_is_row, std::int64_t k_begin, std::int64_t rows, std::int64_t k,
                   Stream stream) {
    const QuantBlocks blocks = blocks_of({x.rows(), x.cols()}, {x_scale.rows(), x_scale.cols()});
    out.operand = operand_of(x, false);
    skip_k(out.operand, k_begin, k_is_row);
    if (k_is_row) {
        transpose_codes(out.turned.as<std::byte>(), out.operand.data, k, rows, stream);
        out.operand.data = out.turned.as<std::byte>();
        out.operand.ld = k;
    }
    const bool square = blocks == QuantBlocks::square;
    const std::int64_t k_blocks = k / kB, scale_rows = square ? (rows + kB - 1) / kB : rows,
                       count = square ? scale_rows * round4(k_blocks) : k_blocks * round4(rows),
                       row_ld = k_is_row ? 1 : x_scale.cols(), k_ld = k_is_row ? x_scale.cols() : 1;
    launch(over("matmul: scales", count, stream), scale_kernel, out.scale.as<float>(),
           x_scale.as<e8m0>().data() + k_begin / kB * k_ld, count, scale_rows, k_blocks, row_ld,
           k_ld, square);
    out.operand.scale = out.scale.as<float>();
    out.operand.blocks = square ? QuantBlocks::square : QuantBlocks::row;
}

/// 8-bit operands as 8-bit operands, where the library has such a product.
bool multiply_codes(const MatmulArgs& args, const Sides& s, const MatmulScratch& room, std::byte* c,
                    DType c_dtype, bool accumulate, Stream stream) {
    if (!room.codes) return false;
    Codes a{{}, {stream, room.turned[0]}, {stream, room.scale[0]}},
        b{{}, {stream, room.turned[1]}, {stream, room.scale[1]}};
    lay_out_codes(a, args.a, args.a_scale, args.transpose_a, args.k_begin, s.m, s.k, stream);
    lay_out_codes(b, args.b, args.b_scale, !args.transpose_b, args.k_begin, s.n, s.k, stream);
    b.operand.transpose = true;
    return library_gemm({.m = s.m,
                         .n = s.n,
                         .k = s.k,
                         .a = a.operand,
                         .b = b.operand,
                         .c = c,
                         .c_dtype = c_dtype,
                         .accumulate = accumulate},
                        stream);
}

/// In the type that both operands can be held in: bf16 with 8-bit ones, fp32 where they differ.
void multiply_wide(const MatmulArgs& args, const Sides& s, const MatmulScratch& room, DType type,
                   std::byte* c, DType c_dtype, bool accumulate, Stream stream) {
    const Scratch wide_a(stream, room.wide[0]), wide_b(stream, room.wide[1]);
    LibraryGemm g{.m = s.m,
                  .n = s.n,
                  .k = s.k,
                  .a = operand_of(args.a, args.transpose_a),
                  .b = operand_of(args.b, args.transpose_b),
                  .c = c,
                  .c_dtype = c_dtype,
                  .accumulate = accumulate};
    const auto widen_operand = [&](LibraryGemm::Operand& o, const ConstTensorView& x,
                                   const ConstTensorView& scale, std::byte* to) {
        if (x.dtype == type) return;
        type == DType::bf16 ? widen_into(reinterpret_cast<bf16*>(to), x, scale, stream)
                            : widen_into(reinterpret_cast<float*>(to), x, scale, stream);
        o.data = to;
        o.dtype = type;
    };
    widen_operand(g.a, args.a, args.a_scale, wide_a.as<std::byte>());
    widen_operand(g.b, args.b, args.b_scale, wide_b.as<std::byte>());
    skip_k(g.a, args.k_begin, args.transpose_a);
    skip_k(g.b, args.k_begin, !args.transpose_b);
    if (!library_gemm(g, stream))
        throw DeviceError({.what = "matmul: the library has no product of this shape",
                           .actual = std::to_string(s.m) + " x " + std::to_string(s.n) + " x " +
                                     std::to_string(s.k) + " in " + dtype_name(type)});
}

}  // namespace

void matmul(const MatmulArgs& args, Stream stream) {
    const std::int64_t whole_k = args.transpose_a ? args.a.rows() : args.a.cols();
    const Sides s{args.c.rows(), args.c.cols(),
                  args.k_count > 0 ? args.k_count : whole_k - args.k_begin};
    if (s.m == 0 || s.n == 0) return;
    if (s.k == 0) return args.accumulate ? void() : zero(args.c, stream);
    const auto held = [](DType t) { return is_8_bit(t) ? DType::bf16 : t; };
    const DType a_type = held(args.a.dtype), b_type = held(args.b.dtype);
    const DType type = a_type == b_type ? a_type : DType::fp32;
    const DType c_type = args.c.dtype;
    const MatmulScratch room = matmul_scratch(args);
    const bool direct = room.product == 0;
    const Scratch product(stream, room.product);
    std::byte* const c = direct ? args.c.data : product.as<std::byte>();
    const DType into = direct ? c_type : DType::fp32;
    const bool accumulate = direct && args.accumulate;
    if (!multiply_codes(args, s, room, c, into, accumulate, stream))
        multiply_wide(args, s, room, type, c, into, accumulate, stream);
    if (direct) return;
    dispatch_dtype(c_type, [&]<Element C>(C) {
        if constexpr (!std::is_same_v<C, double>)
            launch(over("matmul: store", s.m * s.n, stream), store_kernel<C>, args.c.as<C>().data(),
                   product.as<float>(), s.m * s.n, s.n, args.accumulate, args.rounding);
    });
}

}  // namespace stoa::cuda
