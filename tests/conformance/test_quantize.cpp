// The quantiser against its definition in plain float64, and what the definition is for: the same
// bytes from any instruction set, any number of threads and any shard, and blindness to powers
// of 2.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/core/philox.h"
#include "kernels/core/thread_pool.h"
#include "kernels/quantize.h"
#include "tests/conformance/conformance.h"
#include "tests/support/execs.h"
#include "tests/support/narrow_formats.h"

using namespace stoa;
using namespace stoa::test;

namespace {

constexpr QuantBlocks kKinds[] = {QuantBlocks::row, QuantBlocks::column, QuantBlocks::square};
constexpr DType kCodeDtypes[] = {DType::e4m3, DType::e5m2};
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Quantised {
    Tensor codes, scale;
    std::int32_t nonfinite = 0;
    std::vector<std::byte> bytes() const {
        std::vector<std::byte> all = bytes_of(codes);
        const std::vector<std::byte> s = bytes_of(scale);
        all.insert(all.end(), s.begin(), s.end());
        all.push_back(static_cast<std::byte>(nonfinite));
        return all;
    }
};

/// Where an op has to give the same bytes. The CUDA kernels do not look at the CPU's instruction
/// set: they run beside the best one alone.
std::vector<Exec> execs_of_isa() {
    const bool best = cpu::current_isa() == available_isas().back();
    return best ? available_execs() : std::vector<Exec>{Exec{}};
}

Quantised quantised(ConstTensorView x, DType dtype, QuantBlocks kind) {
    const PoisonedTensor codes = poisoned_tensor(x.shape, dtype);
    const PoisonedTensor scale = poisoned_tensor(scale_shape(x.shape, kind), DType::e8m0);
    const Tensor flag({1}, DType::int32);
    quantize({.codes = codes, .scale = scale, .nonfinite = flag, .x = x}, {});
    CHECK(codes.guards_intact());
    CHECK(scale.guards_intact());
    for (const Exec& exec : execs_of_isa()) {  // the same bytes everywhere
        const Tensor more_codes(x.shape, dtype), more_scale(scale.view.shape, DType::e8m0);
        const Tensor more_flag({1}, DType::int32);
        run(quantize, {.codes = more_codes, .scale = more_scale, .nonfinite = more_flag, .x = x},
            exec);
        CHECK(bytes_of(more_codes) == bytes_of(codes));
        CHECK(bytes_of(more_scale) == bytes_of(scale));
        CHECK(bytes_of(more_flag) == bytes_of(flag));
    }
    return {copy_of(codes), copy_of(scale), flag.as<std::int32_t>()[0]};
}

std::vector<double> dequantised(const Quantised& q) {
    const PoisonedTensor y = poisoned_tensor(q.codes.view.shape, DType::fp32);
    dequantize({.y = y, .codes = q.codes, .scale = q.scale}, {});
    CHECK(y.guards_intact());
    for (const Exec& exec : execs_of_isa()) {
        const Tensor more(q.codes.view.shape, DType::fp32);
        run(dequantize, {.y = more, .codes = q.codes, .scale = q.scale}, exec);
        CHECK(std::ranges::equal(to_double(more), to_double(y), [](double a, double b) {
            return a == b || (std::isnan(a) && std::isnan(b));
        }));
    }
    return to_double(y);
}

Tensor normal_tensor(Shape shape, std::uint64_t seed) {
    Tensor t(shape, DType::fp32);
    Draws draws(mix_key(seed, 0x9a55), 0);
    for (float& v : t.as<float>()) {  // the sum of 12 uniforms
        double sum = -6.0;
        for (int i = 0; i < 12; ++i)
            sum += 0x1p-32 * draws.next_u32();
        v = static_cast<float>(sum);
    }
    return t;
}

/// Magnitudes from 2^-30 to 2^30, so that blocks hold subnormal codes and zeros.
Tensor wide_tensor(Shape shape, std::uint64_t seed) {
    Tensor t = normal_tensor(shape, seed);
    Draws draws(mix_key(seed, 0x31de), 0);
    for (float& v : t.as<float>())
        v = std::ldexp(v, static_cast<int>(draws.next_u32() % 61) - 30);
    return t;
}

Tensor cast_to(const Tensor& x, DType dtype) {
    Tensor y(x.view.shape, dtype);
    if (dtype == DType::fp24) {
        std::transform(x.as<float>().begin(), x.as<float>().end(), y.as<fp24>().begin(), to_fp24);
        return y;
    }
    dispatch_dtype(dtype, [&]<Element T>(T) {
        std::transform(x.as<float>().begin(), x.as<float>().end(), y.as<T>().begin(),
                       [](float v) { return narrow_to<T>(static_cast<Wide<T>>(v)); });
    });
    return y;
}

/// The values of x in fp32, whatever it is stored as.
std::vector<float> values_of(const Tensor& x) {
    std::vector<float> out;
    if (x.view.dtype == DType::fp24) {
        for (const fp24 v : x.as<fp24>())
            out.push_back(to_float(v));
        return out;
    }
    for (const double v : to_double(x))
        out.push_back(static_cast<float>(v));
    return out;
}

/// s of the header's formula, in float64: the division's rounding to fp32 never crosses a power of
/// two, which the exhaustive acceptance program shows for every fp32.
double reference_factor(double a, DType dtype) {
    if (a == 0.0 || !std::isfinite(a)) return 1.0;
    return std::ldexp(1.0, std::min(std::ilogb(format_of(dtype).max / a), 126));
}

/// Which block element (r, c) is in, as an index into the scales.
std::size_t block_index(std::int64_t r, std::int64_t c, QuantBlocks kind, std::int64_t cols) {
    const std::int64_t i = kind == QuantBlocks::row ? r : r / kQuantBlock;
    const std::int64_t j = kind == QuantBlocks::column ? c : c / kQuantBlock;
    const std::int64_t ld =
        kind == QuantBlocks::column ? cols : (cols + kQuantBlock - 1) / kQuantBlock;
    return static_cast<std::size_t>(i * ld + j);
}

void check_against_reference(const Tensor& x, DType dtype, QuantBlocks kind) {
    const std::int64_t rows = x.view.rows(), cols = x.view.cols();
    const std::vector<float> v = values_of(x);
    const Quantised q = quantised(x, dtype, kind);
    std::vector<double> amax(static_cast<std::size_t>(q.scale.view.numel()), 0.0);
    bool nonfinite = false;
    for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t c = 0; c < cols; ++c) {
            const double a = std::abs(double{v[static_cast<std::size_t>(r * cols + c)]});
            double& largest = amax[block_index(r, c, kind, cols)];
            nonfinite |= !std::isfinite(a);
            largest = std::isnan(a) || std::isnan(largest) ? double{kNan} : std::max(largest, a);
        }
    std::int64_t wrong_scales = 0, wrong_codes = 0, wrong_values = 0;
    for (std::size_t b = 0; b < amax.size(); ++b) {
        const double inverse = 1.0 / reference_factor(amax[b], dtype);
        wrong_scales += q.scale.as<e8m0>()[b].bits != std::ilogb(inverse) + 127;
    }
    const std::vector<double> y = dequantised(q);
    for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t c = 0; c < cols; ++c) {
            const auto at = static_cast<std::size_t>(r * cols + c);
            const double s = reference_factor(amax[block_index(r, c, kind, cols)], dtype);
            const auto code = std::to_integer<std::uint8_t>(q.codes.view.data[at]);
            wrong_codes += code != code_of_value(double{v[at]} * s, format_of(dtype));
            const float decoded =
                dtype == DType::e4m3 ? to_float(e4m3{code}) : to_float(e5m2{code});
            const double expected = double{decoded} / s;
            wrong_values += std::isnan(expected) ? !std::isnan(y[at])
                                                 : y[at] != double{static_cast<float>(expected)};
        }
    CAPTURE(rows, cols, dtype_name(x.view.dtype), dtype_name(dtype), static_cast<int>(kind));
    CHECK(wrong_scales == 0);
    CHECK(wrong_codes == 0);
    CHECK(wrong_values == 0);
    CHECK(q.nonfinite == (nonfinite ? 1 : 0));
}

}  // namespace

TEST_CASE("quantize is its definition, code by code, on every instruction set") {
    const Shape shape = GENERATE(Shape{1, 1}, Shape{1, 128}, Shape{3, 256}, Shape{128, 128},
                                 Shape{200, 256}, Shape{129, 70}, Shape{300, 1});
    const DType stored = GENERATE(DType::fp32, DType::bf16, DType::fp16, DType::fp24);
    const Tensor x =
        cast_to(stored == DType::fp16 ? normal_tensor(shape, 3) : wide_tensor(shape, 3), stored);
    for (const cpu::Isa isa : available_isas()) {
        const IsaScope scope(isa);
        CAPTURE(static_cast<int>(isa));
        for (const DType dtype : kCodeDtypes)
            for (const QuantBlocks kind : kKinds)
                check_against_reference(x, dtype, kind);
    }
}

TEST_CASE("quantize meets the edges of fp32") {
    const float special = GENERATE(0.0f, -0.0f, 0x1p-149f, 0x1p-133f, 0x1p-126f, 0x1.cp-118f,
                                   0x1.cp-119f, 448.0f, 0x1.c00002p8f, 0x1.bffffep8f, 57344.0f,
                                   0x1p127f, 0x1.dfffffp127f, 0x1.fffffep127f, kInf, -kInf, kNan);
    const Tensor x({130, 256}, DType::fp32);  // most blocks are zeros: their scale is 1
    x.as<float>()[5] = special;
    x.as<float>()[6] = special / 3.0f;
    x.as<float>()[129 * 256 + 200] = special;
    x.as<float>()[77 * 256 + 3] = std::isfinite(special) ? special / 1000.0f : 1000.0f;
    for (const cpu::Isa isa : available_isas()) {
        const IsaScope scope(isa);
        CAPTURE(special, static_cast<int>(isa));
        for (const DType dtype : kCodeDtypes)
            for (const QuantBlocks kind : kKinds)
                check_against_reference(x, dtype, kind);
    }
}

TEST_CASE("quantize raises the flag, and never lowers it") {
    const Tensor x = random_tensor({4, 256}, DType::fp32, 1), codes({4, 256}, DType::e4m3);
    const Tensor scale({4, 2}, DType::e8m0), flag({1}, DType::int32);
    const auto run = [&] {
        quantize({.codes = codes, .scale = scale, .nonfinite = flag, .x = x}, {});
        return flag.as<std::int32_t>()[0];
    };
    CHECK(run() == 0);
    flag.as<std::int32_t>()[0] = 6;
    CHECK(run() == 6);
    x.as<float>()[300] = kNan;
    CHECK(run() == 7);
    CHECK(codes.as<e4m3>()[300].bits == 0x7f);
    CHECK(scale.as<e8m0>()[2].bits == 127);  // of the second row's first block: 1
    CHECK_NOTHROW(quantize({.codes = codes, .scale = scale, .x = x}, {}));  // nobody asks
}

TEST_CASE("quantize gives the same bytes on every instruction set and with every thread count") {
    const Tensor x = wide_tensor({400, 384}, 5);
    x.as<float>()[100000] = kInf;
    for (const DType dtype : kCodeDtypes)
        for (const QuantBlocks kind : kKinds) {
            check_same_bits([&] { return quantised(x, dtype, kind).bytes(); });
            const Quantised one = quantised(x, dtype, kind);
            const std::vector<double> y = dequantised(one);
            set_cpu_threads(3);
            CHECK(quantised(x, dtype, kind).bytes() == one.bytes());
            CHECK(std::ranges::equal(dequantised(one), y));
            set_cpu_threads(1);
        }
}

TEST_CASE("quantize sees a power of two in the scales alone") {
    const Tensor x = normal_tensor({256, 256}, 7), shifted = copy_of(x);
    const int k = GENERATE(-40, -1, 3, 60);
    for (float& v : shifted.as<float>())
        v = std::ldexp(v, k);
    for (const DType dtype : kCodeDtypes)
        for (const QuantBlocks kind : kKinds) {
            const Quantised a = quantised(x, dtype, kind), b = quantised(shifted, dtype, kind);
            CHECK(bytes_of(a.codes) == bytes_of(b.codes));
            std::int64_t wrong = 0;
            for (std::size_t i = 0; i < a.scale.as<e8m0>().size(); ++i)
                wrong += a.scale.as<e8m0>()[i].bits + k != b.scale.as<e8m0>()[i].bits;
            CHECK(wrong == 0);
        }
}

namespace {

/// Rows [row, row + rows) and columns [col, col + cols) of a matrix.
Tensor part_of(ConstTensorView t, std::int64_t row, std::int64_t rows, std::int64_t col,
               std::int64_t cols) {
    Tensor part({rows, cols}, t.dtype);
    const std::int64_t size = size_of(t.dtype);
    for (std::int64_t r = 0; r < rows; ++r)
        std::memcpy(part.view.data + r * cols * size, t.data + ((row + r) * t.cols() + col) * size,
                    static_cast<std::size_t>(cols * size));
    return part;
}

}  // namespace

TEST_CASE("a shard cut at multiples of 128 quantises to its part of the whole") {
    const Tensor x = wide_tensor({384, 512}, 9);
    const std::int64_t row = 128, rows = 256, col = 256, cols = 256;
    for (const DType dtype : kCodeDtypes)
        for (const QuantBlocks kind : kKinds) {
            const Quantised whole = quantised(x, dtype, kind);
            const Quantised shard = quantised(part_of(x, row, rows, col, cols), dtype, kind);
            const std::int64_t dr = kind == QuantBlocks::row ? 1 : kQuantBlock;
            const std::int64_t dc = kind == QuantBlocks::column ? 1 : kQuantBlock;
            CHECK(bytes_of(shard.codes) == bytes_of(part_of(whole.codes, row, rows, col, cols)));
            CHECK(bytes_of(shard.scale) ==
                  bytes_of(part_of(whole.scale, row / dr, rows / dr, col / dc, cols / dc)));
        }
}

TEST_CASE("a transposed matrix has the transposed codes, its rows' blocks as columns' blocks") {
    const Tensor x = wide_tensor({256, 384}, 11), t({384, 256}, DType::fp32);
    for (std::size_t r = 0; r < 256; ++r)
        for (std::size_t c = 0; c < 384; ++c)
            t.as<float>()[c * 256 + r] = x.as<float>()[r * 384 + c];
    const auto check = [&](QuantBlocks kind, QuantBlocks transposed) {
        const Quantised a = quantised(x, DType::e4m3, kind),
                        b = quantised(t, DType::e4m3, transposed);
        std::int64_t wrong = 0;
        for (std::size_t r = 0; r < 256; ++r)
            for (std::size_t c = 0; c < 384; ++c)
                wrong += a.codes.view.data[r * 384 + c] != b.codes.view.data[c * 256 + r];
        CHECK(wrong == 0);
    };
    check(QuantBlocks::row, QuantBlocks::column);
    check(QuantBlocks::square, QuantBlocks::square);
}

TEST_CASE("quantising what was quantised changes nothing") {
    const Tensor x = normal_tensor({256, 256}, 13), y({256, 256}, DType::fp32);
    for (const DType dtype : kCodeDtypes)
        for (const QuantBlocks kind : kKinds) {
            const Quantised q = quantised(x, dtype, kind);
            dequantize({.y = y, .codes = q.codes, .scale = q.scale}, {});
            CHECK(dequantised(quantised(y, dtype, kind)) == to_double(y));
        }
}

TEST_CASE("e4m3 holds Gaussian values to 2.65 %") {
    const Tensor x = normal_tensor({1024, 512}, 15);
    const std::vector<double> exact = to_double(x);
    for (const QuantBlocks kind : kKinds) {
        const std::vector<double> y = dequantised(quantised(x, DType::e4m3, kind));
        double error = 0.0, size = 0.0;
        for (std::size_t i = 0; i < y.size(); ++i) {
            error += (y[i] - exact[i]) * (y[i] - exact[i]);
            size += exact[i] * exact[i];
        }
        CHECK(std::sqrt(error / size) == Approx(0.0265).epsilon(0.02));
    }
}

TEST_CASE("scale_shape counts blocks upwards, and blocks_of reads them back") {
    const Shape codes{300, 520};
    CHECK(scale_shape(codes, QuantBlocks::row) == Shape{300, 5});
    CHECK(scale_shape(codes, QuantBlocks::column) == Shape{3, 520});
    CHECK(scale_shape(codes, QuantBlocks::square) == Shape{3, 5});
    CHECK(scale_shape({2, 150, 520}, QuantBlocks::square) == Shape{3, 5});  // leading axes are rows
    for (const QuantBlocks kind : kKinds)
        CHECK(blocks_of(codes, scale_shape(codes, kind)) == kind);
    CHECK_THROWS_AS(blocks_of(codes, {3, 4}), ShapeError);
}

TEST_CASE("quantize refuses what does not fit") {
    const Tensor x({4, 256}, DType::fp32), x64({4, 256}, DType::fp64), small({4, 128}, DType::fp32);
    const Tensor turned({8, 128}, DType::fp32);
    const Tensor codes({4, 256}, DType::e4m3), scale({4, 2}, DType::e8m0), odd({3, 2}, DType::e8m0);
    const Tensor flag({1}, DType::int32), wide_flag({2}, DType::int32), bytes({4, 2}, DType::e4m3);
    const auto run = [&](ConstTensorView from, TensorView to, TensorView s, TensorView f) {
        quantize({.codes = to, .scale = s, .nonfinite = f, .x = from}, {});
        dequantize({.y = Tensor(from.shape, DType::fp32), .codes = to, .scale = s}, {});
    };
    CHECK_NOTHROW(run(x, codes, scale, flag));
    CHECK_THROWS_AS(run(x64, codes, scale, flag), ShapeError);
    CHECK_THROWS_AS(run(small, codes, scale, flag), ShapeError);
    CHECK_THROWS_AS(run(turned, codes, scale, flag), ShapeError);
    CHECK_THROWS_AS(run(x, x, scale, flag), ShapeError);
    CHECK_THROWS_AS(run(x, codes, odd, flag), ShapeError);
    CHECK_THROWS_AS(run(x, codes, bytes, flag), ShapeError);
    CHECK_THROWS_AS(run(x, codes, scale, wide_flag), ShapeError);
    CHECK_THROWS_AS(dequantize({.y = small, .codes = codes, .scale = scale}, {}), ShapeError);
}

TEST_CASE("quantization_loss counts what the quantiser loses, and adds it to its sums") {
    const DType dtype = GENERATE(DType::fp32, DType::bf16, DType::fp16);
    const Shape shape = GENERATE(Shape{1, 1}, Shape{3, 128}, Shape{5, 300});
    const Tensor wide = wide_tensor(shape, 4);
    for (float& value : wide.as<float>())
        value *= 0x1p-18f;  // within fp16
    Tensor x = cast_to(wide, dtype);
    dispatch_dtype(dtype, [&]<Element T>(T) { x.as<T>()[0] = T{}; });  // a zero loses nothing
    const std::vector<float> v = values_of(x);
    const std::vector<double> kept = dequantised(quantised(x, DType::e4m3, QuantBlocks::row));
    double expected[4] = {1.0, 2.0, 3.0, 4.0};  // as it was
    for (std::size_t i = 0; i < v.size(); ++i) {
        const double value = static_cast<double>(v[i]), loss = kept[i] - value;
        expected[0] += value != 0.0;
        expected[1] += value != 0.0 && kept[i] == 0.0;
        expected[2] += loss * loss;
        expected[3] += value * value;
    }
    if (shape.rank == 2 && shape[0] > 1) REQUIRE(expected[1] > 2.0);  // some did become 0
    const auto check = [&](const Exec& exec) {
        const Tensor sums({4}, DType::fp64);
        std::ranges::copy(std::vector<double>{1.0, 2.0, 3.0, 4.0}, sums.as<double>().begin());
        run(quantization_loss, {.sums = sums, .x = x}, exec);
        CAPTURE(dtype_name(dtype), shape.str(), exec.device.is_cuda());
        CHECK(sums.as<double>()[0] == expected[0]);
        CHECK(sums.as<double>()[1] == expected[1]);
        CHECK(std::abs(sums.as<double>()[2] - expected[2]) <= 1e-9 * expected[2]);
        CHECK(std::abs(sums.as<double>()[3] - expected[3]) <= 1e-9 * expected[3]);
    };
    for (const cpu::Isa isa : available_isas()) {
        const IsaScope scope(isa);
        check({});
    }
    for (const Exec& exec : available_execs())
        check(exec);
}

TEST_CASE("quantization_loss refuses what does not fit") {
    const Tensor x({2, 128}, DType::fp32), codes({2, 128}, DType::e4m3);
    const Tensor sums({4}, DType::fp64), three({3}, DType::fp64), narrow({4}, DType::fp32);
    CHECK_THROWS_AS(quantization_loss({.sums = three, .x = x}, {}), ShapeError);
    CHECK_THROWS_AS(quantization_loss({.sums = narrow, .x = x}, {}), ShapeError);
    CHECK_THROWS_AS(quantization_loss({.sums = sums, .x = codes}, {}), ShapeError);
}
