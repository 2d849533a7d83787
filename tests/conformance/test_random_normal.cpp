#include <numbers>

#include "kernels/core/philox.h"
#include "kernels/random_normal.h"
#include "tests/conformance/conformance.h"
#include "tests/support/execs.h"

using namespace stoa;
using namespace stoa::test;

TEST_CASE("philox gives the published answers") {
    // Known-answer vectors of Philox4x32-10 [Salmon et al. 2011, Random123].
    CHECK(philox(0, 0, 0) == PhiloxBlock{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
    const std::uint64_t ones = ~std::uint64_t{0};
    CHECK(philox(ones, ones, ones) == PhiloxBlock{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
    CHECK(philox(0x299f31d0a4093822, 0x85a308d3243f6a88, 0x0370734413198a2e) ==
          PhiloxBlock{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("random_normal is Box-Muller on the philox block of each element") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const Tensor x({3, 5}, DType::fp64);
    run(random_normal, {.x = x, .key = 42, .std = 0.02, .logical_rows = 3, .logical_cols = 5},
        exec);
    for (std::uint64_t e = 0; e < 15; ++e) {
        const PhiloxBlock r = philox(42, e, 0);
        const auto word = [&](std::size_t i) { return r[i] | (std::uint64_t{r[i + 1]} << 32); };
        const double u1 = static_cast<double>((word(0) >> 11) + 1) * 0x1p-53;
        const double u2 = static_cast<double>(word(2) >> 11) * 0x1p-53;
        const double z = std::sqrt(-2.0 * std::log(u1)) * std::cos(2.0 * std::numbers::pi * u2);
        CHECK(std::abs(x.as<double>()[e] - 0.02 * z) < 1e-15);
    }
}

TEST_CASE("random_normal has the moments of a normal") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const std::int64_t n = 200000;
    const Tensor x({n / 100, 100}, DType::fp32);
    run(random_normal, {.x = x, .key = 7, .std = 2.0, .logical_rows = n / 100, .logical_cols = 100},
        exec);
    double mean = 0.0, square = 0.0, fourth = 0.0;
    for (const double v : to_double(x)) {
        mean += v / static_cast<double>(n);
        square += v * v / static_cast<double>(n);
        fourth += v * v * v * v / static_cast<double>(n);
    }
    CHECK(std::abs(mean) < 0.02);
    CHECK(std::abs(square - 4.0) < 0.06);
    CHECK(std::abs(fourth / (square * square) - 3.0) < 0.1);
}

TEST_CASE("a shard holds the values of the whole, and zero as padding") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const DType dtype = GENERATE(DType::fp32, DType::fp64);
    const Tensor whole({6, 10}, dtype);
    run(random_normal, {.x = whole, .key = 9, .logical_rows = 6, .logical_cols = 10}, exec);
    const PoisonedTensor part = poisoned_tensor({4, 5}, dtype);  // rows 4..7, columns 7..11
    run(random_normal,
        {.x = part,
         .key = 9,
         .row_begin = 4,
         .col_begin = 7,
         .logical_rows = 6,
         .logical_cols = 10},
        exec);
    CHECK(part.guards_intact());
    const auto w = to_double(whole), p = to_double(part);
    for (std::size_t i = 0; i < 4; ++i)
        for (std::size_t j = 0; j < 5; ++j)
            CHECK(p[i * 5 + j] == (i < 2 && j < 3 ? w[(4 + i) * 10 + 7 + j] : 0.0));
}

TEST_CASE("random_normal refuses what it cannot fill") {
    const Tensor h({2, 2}, DType::bf16), x({2, 2}, DType::fp32);
    CHECK_THROWS_AS(random_normal({.x = h, .logical_rows = 2, .logical_cols = 2}, {}), ShapeError);
    CHECK_THROWS_AS(
        random_normal({.x = x, .row_begin = -1, .logical_rows = 2, .logical_cols = 2}, {}),
        ShapeError);
}
