#include <bit>

#include "kernels/embedding.h"
#include "tests/conformance/conformance.h"
#include "tests/support/execs.h"

using namespace stoa;
using namespace stoa::test;

TEST_CASE("embedding_forward copies rows and leaves other shards' tokens at zero") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const DType dtype = GENERATE(DType::fp32, DType::bf16, DType::fp64);
    const std::int64_t d = GENERATE(1, 7, 64);
    const Tensor table = random_tensor({5, d}, dtype, 1);
    const Tensor tokens = int_tensor({10, 14, 9, 15, 12, -1, 12});  // this shard holds 10 .. 14
    const PoisonedTensor y = poisoned_tensor({7, d}, dtype);
    run(embedding_forward, {.y = y, .table = table, .tokens = tokens, .vocab_begin = 10}, exec);
    CHECK(y.guards_intact());
    const Tensor zero({1, d}, dtype);
    const std::vector<std::int64_t> rows = {0, 4, -1, -1, 2, -1, 2};
    for (std::int64_t r = 0; r < 7; ++r) {
        const std::int64_t row = rows[static_cast<std::size_t>(r)];
        const ConstTensorView expected =
            row < 0 ? zero.view.view() : table.view.view().slice_rows(row, 1);
        CHECK(bytes_of(y.view.slice_rows(r, 1)) == bytes_of(expected));
    }
}

TEST_CASE("embedding_backward adds rows in ascending order") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const DType dtype = GENERATE(DType::fp32, DType::bf16, DType::fp64);
    const DType wide = wide_dtype(dtype);
    const Tensor d_y = random_tensor({6, 33}, dtype, 1), before = random_tensor({4, 33}, wide, 2);
    const Tensor tokens = int_tensor({3, 1, 3, 9, 3, 0});
    const Tensor d_table = copy_of(before);
    run(embedding_backward, {.d_table = d_table, .d_y = d_y, .tokens = tokens}, exec);
    const Tensor expected = copy_of(before);
    dispatch_dtype(wide, [&]<Element W>(W) {
        if constexpr (std::is_same_v<W, Wide<W>>)
            for (std::int64_t r = 0; r < 6; ++r) {
                const std::int32_t token = tokens.as<std::int32_t>()[static_cast<std::size_t>(r)];
                const auto values = to_double(d_y.view.slice_rows(r, 1));
                for (std::size_t c = 0; c < 33 && token < 4; ++c)
                    expected.view.row<W>(token)[c] += static_cast<W>(values[c]);
            }
    });
    CHECK(bytes_of(d_table) == bytes_of(expected));
}

TEST_CASE("embedding_backward rounds bf16 sums at random, each row by its own draw") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const std::int64_t d = 300;
    const Tensor d_y = random_tensor({5, d}, DType::fp32, 1);
    const Tensor before = random_tensor({4, d}, DType::bf16, 2), d_table = copy_of(before);
    const Tensor tokens = int_tensor({13, 11, 13, 9, 13});  // this shard holds 10 .. 13
    const StochasticRounding rounding{
        .key = 5, .call = 100, .row_begin = 10, .col_begin = 3, .logical_cols = 305};
    run(embedding_backward,
        {.d_table = d_table, .d_y = d_y, .tokens = tokens, .vocab_begin = 10, .rounding = rounding},
        exec);
    const Tensor expected = copy_of(before);
    for (std::int64_t r = 0; r < 5; ++r) {
        const std::int64_t row = tokens.as<std::int32_t>()[static_cast<std::size_t>(r)] - 10;
        for (std::int64_t c = 0; c < d && row >= 0; ++c) {
            const auto e = static_cast<std::uint64_t>((10 + row) * 305 + 3 + c);
            const std::uint32_t word =
                philox(5, e / 8, 100 + static_cast<std::uint64_t>(r))[e / 2 % 4];
            bf16& sum = expected.view.row<bf16>(row)[static_cast<std::size_t>(c)];
            const float x = to_float(sum) + d_y.view.row<float>(r)[static_cast<std::size_t>(c)];
            const std::uint32_t half = e % 2 == 0 ? word & 0xffffu : word >> 16;
            sum.bits = static_cast<std::uint16_t>((std::bit_cast<std::uint32_t>(x) + half) >> 16);
        }
    }
    CHECK(bytes_of(d_table) == bytes_of(expected));
}

TEST_CASE("embedding_backward is the gradient of the forward") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const Tensor table = random_tensor({4, 3}, DType::fp64, 1),
                 d_y = random_tensor({3, 3}, DType::fp64, 2);
    const Tensor tokens = int_tensor({2, 0, 2}), y({3, 3}, DType::fp64),
                 d_table({4, 3}, DType::fp64);
    run(embedding_backward, {.d_table = d_table, .d_y = d_y, .tokens = tokens}, exec);
    const auto difference = central_differences(table, [&] {
        run(embedding_forward, {.y = y, .table = table, .tokens = tokens}, exec);
        return weighted_sum(y, d_y);
    });
    CHECK(relative_error(to_double(d_table), difference) < kDifferenceTolerance);
}

TEST_CASE("embedding refuses what does not fit") {
    const Tensor table({4, 3}, DType::fp32), y({2, 3}, DType::fp32), y4({2, 4}, DType::fp32);
    const Tensor three = int_tensor({0, 1, 2}), two = int_tensor({0, 1});
    CHECK_THROWS_AS(embedding_forward({.y = y, .table = table, .tokens = three}, {}), ShapeError);
    CHECK_THROWS_AS(embedding_forward({.y = y4, .table = table, .tokens = two}, {}), ShapeError);
    CHECK_THROWS_AS(embedding_forward({.y = y, .table = table, .tokens = y}, {}), ShapeError);
}
