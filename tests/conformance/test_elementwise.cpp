#include <cstring>
#include <limits>

#include "kernels/core/philox.h"
#include "kernels/elementwise.h"
#include "tests/conformance/conformance.h"
#include "tests/support/execs.h"

using namespace stoa;
using namespace stoa::test;

namespace {

/// Nearest bf16 by search among the two neighbours, ties to the even code: arithmetic, not bit
/// tricks.
std::uint16_t nearest_bf16(double x) {
    const auto value = [](std::uint32_t code) {
        // The first code past the largest finite one stands for 2^128, where rounding overflows.
        return (code & 0x7fffu) == 0x7f80u
                   ? 0x1p128
                   : static_cast<double>(to_float(bf16{static_cast<std::uint16_t>(code)}));
    };
    const double size = std::abs(x);
    std::uint32_t low = 0, high = 0x7f80;  // value(low) <= size < value(high)
    if (size >= 0x1p128) low = 0x7f80;
    while (high - low > 1 && low != 0x7f80) {
        const std::uint32_t middle = (low + high) / 2;
        (value(middle) <= size ? low : high) = middle;
    }
    std::uint32_t code = low;
    if (low != 0x7f80) {
        const double below = size - value(low), above = value(high) - size;
        if (above < below || (above == below && low % 2 == 1)) code = high;
    }
    return static_cast<std::uint16_t>(code | (std::signbit(x) ? 0x8000u : 0u));
}

}  // namespace

TEST_CASE("every bf16 code survives the way to fp32 and fp64 and back") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const Tensor codes({65536}, DType::bf16), wide({65536}, DType::fp32),
        wider({65536}, DType::fp64);
    const Tensor back({65536}, DType::bf16);
    for (std::size_t i = 0; i < 65536; ++i)
        codes.as<bf16>()[i].bits = static_cast<std::uint16_t>(i);
    for (const Tensor* middle : {&wide, &wider}) {
        run(cast_op, {*middle, codes}, exec);
        run(cast_op, {back, *middle}, exec);
        std::size_t wrong = 0;
        for (std::size_t i = 0; i < 65536; ++i) {
            const bool nan = std::isnan(to_float(codes.as<bf16>()[i]));
            const bf16 b = back.as<bf16>()[i];
            if (nan ? !std::isnan(to_float(b)) : b.bits != i) ++wrong;
        }
        CHECK(wrong == 0);
    }
}

TEST_CASE("fp32 and fp64 round to the nearest bf16, ties to even") {
    const Exec exec = GENERATE(from_range(available_execs()));
    Draws draws(77, 0);
    std::vector<float> values = {
        0.0f,    -0.0f,    1.00390625f, 1.01171875f,
        3.4e38f, -3.4e38f, 1e-40f,      std::numeric_limits<float>::infinity()};
    for (int i = 0; i < 20000; ++i) {
        const auto x = std::bit_cast<float>(draws.next_u32());
        if (!std::isnan(x)) values.push_back(x);
        if (std::isfinite(x))  // a tie
            values.push_back(
                std::bit_cast<float>((std::bit_cast<std::uint32_t>(x) & 0xffff0000u) | 0x8000u));
    }
    const auto n = static_cast<std::int64_t>(values.size());
    const Tensor x({n}, DType::fp32), x64({n}, DType::fp64), y({n}, DType::bf16),
        y64({n}, DType::bf16);
    for (std::size_t i = 0; i < values.size(); ++i) {
        x.as<float>()[i] = values[i];
        // Just off the fp32 value: rounding to fp32 first would hide on which side of a tie it
        // lies.
        x64.as<double>()[i] = values[i] * (1.0 + (i % 2 == 0 ? 1e-12 : -1e-12));
    }
    run(cast_op, {y, x}, exec);
    run(cast_op, {y64, x64}, exec);
    std::size_t wrong = 0, wrong64 = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
        if (y.as<bf16>()[i].bits != nearest_bf16(values[i])) ++wrong;
        if (y64.as<bf16>()[i].bits != nearest_bf16(x64.as<double>()[i])) ++wrong64;
    }
    CHECK(wrong == 0);
    CHECK(wrong64 == 0);
}

TEST_CASE("add and zero, also in place") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const DType dtype = GENERATE(DType::fp32, DType::bf16, DType::fp64);
    for (const std::int64_t n : {1, 31, 1000}) {
        const Tensor a = random_tensor({n}, dtype, 1), b = random_tensor({n}, dtype, 2);
        auto sum = to_double(a);
        for (std::size_t i = 0; i < sum.size(); ++i)
            sum[i] += to_double(b)[i];
        const PoisonedTensor y = poisoned_tensor({n}, dtype);
        run(add_op, {y, a, b}, exec);
        CHECK(relative_error(to_double(y), sum) < tolerance(dtype));
        CHECK(y.guards_intact());
        run(add_op, {a, a, b}, exec);
        CHECK(bytes_of(a) == bytes_of(y));
        run(zero_op, {y}, exec);
        CHECK(bytes_of(y) == std::vector<std::byte>(static_cast<std::size_t>(y.view.bytes())));
        CHECK(y.guards_intact());
    }
    zero(TensorView{}, {});  // an absent tensor
}

namespace {

/// Words to which sum_of_squares adds.
struct Squares {
    Tensor words{{kExactSumWords}, DType::int32};
    void add(ConstTensorView x, std::int64_t piece, const Exec& exec) {
        run(squares_op, {words, x, piece}, exec);
    }
    ExactSum sum() const { return exact_sum_of(words.as<std::int32_t>()); }
};

}  // namespace

TEST_CASE("sum_of_squares is exact up to the pieces, however they are dealt out") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const DType dtype = GENERATE(DType::fp32, DType::bf16, DType::fp64);
    for (const Shape& shape : {Shape{1}, Shape{37}, Shape{300, 48}, Shape{7, 1024}}) {
        const Tensor x = random_tensor(shape, dtype, 1);
        const std::int64_t cols = x.view.cols(), piece = cols % 16 == 0 ? 8 : cols;
        double expected = 0.0;
        for (const double v : to_double(x))
            expected += v * v;
        Squares all;
        all.add(x, piece, exec);
        CHECK(std::abs(all.sum().value() - expected) < 1e-12 * expected);
        check_same_bits([&] {
            Squares again;
            again.add(x, piece, exec);
            return bytes_of(again.words);
        });
        // By rows, last first; and by columns, each rank with half of the pieces.
        Squares rows;
        for (std::int64_t r = x.view.rows(); r-- > 0;)
            rows.add(x.view.shape.rank == 1 ? x.view : x.view.slice_rows(r, 1), piece, exec);
        CHECK(bytes_of(rows.words) == bytes_of(all.words));
        if (shape.rank == 1) continue;
        Squares columns;
        for (const std::int64_t half : {1, 0}) {
            const Tensor part({shape[0], cols / 2}, dtype);
            for (std::int64_t r = 0; r < shape[0]; ++r)
                std::memcpy(part.view.slice_rows(r, 1).data,
                            x.view.slice_rows(r, 1).data + half * cols / 2 * size_of(dtype),
                            static_cast<std::size_t>(cols / 2 * size_of(dtype)));
            columns.add(part, piece, exec);
        }
        CHECK(bytes_of(columns.words) == bytes_of(all.words));
    }
}

TEST_CASE("sum_of_squares holds the range of fp32, and shows Inf and NaN") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const Tensor x({4}, DType::fp32);
    const auto values = x.as<float>();
    values[0] = 3e38f, values[1] = 1e-38f, values[2] = -2.0f, values[3] = 0.0f;
    const auto squares_of = [&] {
        Squares squares;
        squares.add(x, 1, exec);
        return squares.sum();
    };
    ExactSum same = squares_of();
    CHECK(std::abs(same.value() / 9e76 - 1.0) < 1e-6);
    values[0] = 0.0f;
    const ExactSum rest = squares_of();
    CHECK(rest.value() == 4.0);  // and 1e-76, which a double cannot hold beside it
    for (std::size_t i = 0; i < same.limb.size(); ++i)
        same.limb[i] -= rest.limb[i];
    CHECK(same.value() == static_cast<double>(3e38f) * static_cast<double>(3e38f));
    for (const float bad : {INFINITY, -INFINITY, NAN}) {
        values[3] = bad;
        CHECK(std::isnan(squares_of().value()));
    }
}

TEST_CASE("flag_nonfinite finds one Inf or NaN anywhere, and nothing else") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const DType dtype = GENERATE(DType::fp32, DType::bf16, DType::fp16, DType::fp64);
    const double inf = std::numeric_limits<double>::infinity();
    for (const std::int64_t n : {1, 17, 100001})
        for (const cpu::Isa isa : available_isas()) {
            if (exec.device.is_cuda() && isa != available_isas().back()) continue;  // not looked at
            const IsaScope scope(isa);
            const Tensor x = random_tensor({n}, dtype, 1), flag({1}, DType::int32);
            const auto flagged = [&](std::int64_t at, double value) {
                std::int32_t bit = 0;
                dispatch_dtype(dtype, [&]<Element T>(T) {
                    T& e = x.as<T>()[static_cast<std::size_t>(at)];
                    const T before = e;
                    e = narrow_to<T>(static_cast<Wide<T>>(value));
                    flag.as<std::int32_t>()[0] = 4;  // other bits stay
                    run(flag_op, {flag, x}, exec);
                    bit = flag.as<std::int32_t>()[0];
                    e = before;
                });
                return bit;
            };
            const double largest = dtype == DType::fp16 ? 65504.0 : 3.3e38;
            CAPTURE(dtype_name(dtype), n, static_cast<int>(isa));
            for (const std::int64_t at : {std::int64_t{0}, n / 2, n - 1}) {
                for (const double bad : {inf, -inf, std::nan("")})
                    CHECK(flagged(at, bad) == 5);
                for (const double good : {0.0, -0.0, largest, -largest, 1e-42})
                    CHECK(flagged(at, good) == 4);
            }
        }
}

TEST_CASE("elementwise ops refuse what does not fit") {
    const Tensor a({8}, DType::fp32), b({7}, DType::fp32), h({8}, DType::bf16),
        out({1}, DType::fp64);
    CHECK_THROWS_AS(add(a, a, b, {}), ShapeError);
    CHECK_THROWS_AS(add(a, h, h, {}), ShapeError);
    CHECK_THROWS_AS(cast(a, b, {}), ShapeError);
    const Tensor words({kExactSumWords}, DType::int32);
    CHECK_THROWS_AS(sum_of_squares(words, a, 3, {}), ShapeError);
    CHECK_THROWS_AS(sum_of_squares(a, a, 4, {}), ShapeError);
    CHECK_THROWS_AS(flag_nonfinite(out, a, {}), ShapeError);
}
