#include "kernels/rope.h"
#include "tests/conformance/conformance.h"
#include "tests/support/execs.h"

using namespace stoa;
using namespace stoa::test;

namespace {

constexpr double kTheta = 10000.0;

struct Table {
    Tensor cos, sin;
};
Table make_table(std::int64_t positions, std::int64_t dim, DType dtype) {
    Table t{Tensor({positions, dim / 2}, dtype), Tensor({positions, dim / 2}, dtype)};
    rope_table(t.cos, t.sin, {.theta = kTheta}, {});
    return t;
}

std::vector<double> rope_float64(const Tensor& x_in, const Tensor& positions, double sign) {
    auto x = to_double(x_in);
    const auto n_heads = static_cast<std::size_t>(x_in.view.shape[1]);
    const auto dim = static_cast<std::size_t>(x_in.view.shape[2]);
    for (std::size_t at = 0; at < x.size(); at += dim) {
        const double position = positions.as<std::int32_t>()[at / dim / n_heads];
        for (std::size_t i = 0; i < dim / 2; ++i) {
            const double angle =
                sign * position *
                std::pow(kTheta, -2.0 * static_cast<double>(i) / static_cast<double>(dim));
            const double a = x[at + i], b = x[at + dim / 2 + i];
            x[at + i] = a * std::cos(angle) - b * std::sin(angle);
            x[at + dim / 2 + i] = b * std::cos(angle) + a * std::sin(angle);
        }
    }
    return x;
}

}  // namespace

TEST_CASE("rope meets float64, and its inverse undoes it") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const DType dtype = GENERATE(DType::fp32, DType::bf16, DType::fp64);
    for (const std::int64_t dim : {2, 6, 32, 70}) {
        const Table t = make_table(100, dim, wide_dtype(dtype));
        const Tensor positions = int_tensor({0, 1, 99, 7, 7});
        const Tensor x = random_tensor({5, 3, dim}, dtype, 1), before = copy_of(x);
        CAPTURE(dtype_name(dtype), dim);
        run(rope, {.x = x, .cos = t.cos, .sin = t.sin, .positions = positions}, exec);
        CHECK(relative_error(to_double(x), rope_float64(before, positions, 1.0)) <
              tolerance(dtype));
        CHECK(x.view.dtype == dtype);
        const Tensor d_x = copy_of(before);
        run(rope, {.x = d_x, .cos = t.cos, .sin = t.sin, .positions = positions, .inverse = true},
            exec);
        CHECK(relative_error(to_double(d_x), rope_float64(before, positions, -1.0)) <
              tolerance(dtype));
        run(rope, {.x = x, .cos = t.cos, .sin = t.sin, .positions = positions, .inverse = true},
            exec);
        CHECK(relative_error(to_double(x), to_double(before)) < 2 * tolerance(dtype));
    }
}

TEST_CASE("the inverse rope is the gradient of rope") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const Table t = make_table(20, 8, DType::fp64);
    const Tensor positions = int_tensor({3, 19}), x = random_tensor({2, 2, 8}, DType::fp64, 1);
    const Tensor d_y = random_tensor({2, 2, 8}, DType::fp64, 2);
    const auto difference = central_differences(x, [&] {
        const Tensor y = copy_of(x);
        run(rope, {.x = y, .cos = t.cos, .sin = t.sin, .positions = positions}, exec);
        return weighted_sum(y, d_y);
    });
    const Tensor d_x = copy_of(d_y);
    run(rope, {.x = d_x, .cos = t.cos, .sin = t.sin, .positions = positions, .inverse = true},
        exec);
    CHECK(relative_error(to_double(d_x), difference) < kDifferenceTolerance);
}

TEST_CASE("rope gives the same bits on every instruction set") {
    const DType dtype = GENERATE(DType::fp32, DType::bf16);
    const Table t = make_table(20, 34, DType::fp32);
    const Tensor positions = int_tensor({3, 19}), x = random_tensor({2, 3, 34}, dtype, 1);
    check_same_bits([&] {
        const Tensor y = copy_of(x);
        rope({.x = y, .cos = t.cos, .sin = t.sin, .positions = positions}, {});
        return bytes_of(y);
    });
}

TEST_CASE("rope refuses positions outside the table and odd shapes") {
    const Table t = make_table(4, 8, DType::fp32);
    const Tensor x({1, 1, 8}, DType::fp32), x6({1, 1, 6}, DType::fp32);
    CHECK_THROWS_AS(rope({.x = x, .cos = t.cos, .sin = t.sin, .positions = int_tensor({4})}, {}),
                    ShapeError);
    CHECK_THROWS_AS(rope({.x = x, .cos = t.cos, .sin = t.sin, .positions = int_tensor({-1})}, {}),
                    ShapeError);
    CHECK_THROWS_AS(rope({.x = x6, .cos = t.cos, .sin = t.sin, .positions = int_tensor({0})}, {}),
                    ShapeError);
}

TEST_CASE("pairs beyond the rotated part keep still, and a stretched position turns less") {
    Table t{Tensor({9, 4}, DType::fp64), Tensor({9, 4}, DType::fp64)};
    rope_table(t.cos, t.sin, {.theta = kTheta, .rotate = 0.5, .stretch = 4.0}, {});
    for (std::size_t position = 0; position < 9; ++position)
        for (std::size_t i = 0; i < 4; ++i) {
            const double angle =
                i < 2 ? static_cast<double>(position) / 4.0 *
                            std::pow(kTheta, -static_cast<double>(i) / 2.0)  // as a head of 2 pairs
                      : 0.0;
            CHECK(t.cos.as<double>()[position * 4 + i] == Approx(std::cos(angle)));
            CHECK(t.sin.as<double>()[position * 4 + i] == Approx(std::sin(angle)));
        }
    CHECK_THROWS_AS(rope_table(t.cos, t.sin, {.rotate = 0.3}, {}), ShapeError);
}
