// An op and its quantiser together: the bytes of one op after the other, in every place.
#include "kernels/elementwise.h"
#include "kernels/fused_quantize.h"
#include "kernels/rms_norm.h"
#include "kernels/swiglu.h"
#include "tests/conformance/conformance.h"
#include "tests/support/execs.h"

using namespace stoa;
using namespace stoa::test;

namespace {

/// Codes of one matrix with their memory.
struct Codes {
    PoisonedTensor row, row_scale, column, column_scale;
    explicit Codes(const Shape& s)
        : row(poisoned_tensor(s, DType::e4m3)),
          row_scale(poisoned_tensor(scale_shape(s, QuantBlocks::row), DType::e8m0)),
          column(poisoned_tensor(s, DType::e4m3)),
          column_scale(poisoned_tensor(scale_shape(s, QuantBlocks::column), DType::e8m0)) {}
    TwoWayCodes views() const { return {row.view, row_scale.view, column.view, column_scale.view}; }
};

/// Whether codes are those that the quantiser gives x.
void check_codes(const Codes& got, const ConstTensorView& x) {
    const Codes expected({x.rows(), x.cols()});
    quantize({.codes = expected.row, .scale = expected.row_scale, .x = x}, {});
    quantize({.codes = expected.column, .scale = expected.column_scale, .x = x}, {});
    CHECK(bytes_of(got.row) == bytes_of(expected.row));
    CHECK(bytes_of(got.row_scale) == bytes_of(expected.row_scale));
    CHECK(bytes_of(got.column) == bytes_of(expected.column));
    CHECK(bytes_of(got.column_scale) == bytes_of(expected.column_scale));
    for (const PoisonedTensor* t : {&got.row, &got.row_scale, &got.column, &got.column_scale})
        CHECK(t->guards_intact());
}

}  // namespace

TEST_CASE("fused ops give the bytes of their parts") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const DType t = GENERATE(DType::fp32, DType::bf16);
    const Shape s = GENERATE(Shape{5, 40}, Shape{130, 257});
    const Tensor gate = random_tensor(s, t, 1, 8.0), up = random_tensor(s, t, 2),
                 d_y = random_tensor(s, t, 3), y(s, t), flag({1}, DType::int32);
    CAPTURE(exec.device.is_cuda(), dtype_name(t), s.str());
    const Codes codes(s), more(s);
    run(swiglu_quantize,
        {.codes = codes.views(), .y = y, .nonfinite = flag, .gate = gate, .up = up}, exec);
    const Tensor expected(s, t);
    swiglu_forward({.y = expected, .gate = gate, .up = up}, {});
    CHECK(bytes_of(y) == bytes_of(expected));
    check_codes(codes, expected);

    const Tensor d_gate(s, t), d_up(s, t), expected_gate(s, t), expected_up(s, t);
    run(swiglu_quantize_backward,
        {.d_gate_codes = codes.views(),
         .d_up_codes = more.views(),
         .d_gate = d_gate,
         .d_up = d_up,
         .nonfinite = flag,
         .d_y = d_y,
         .gate = gate,
         .up = up},
        exec);
    swiglu_backward(
        {.d_gate = expected_gate, .d_up = expected_up, .d_y = d_y, .gate = gate, .up = up}, {});
    CHECK(bytes_of(d_gate) == bytes_of(expected_gate));
    CHECK(bytes_of(d_up) == bytes_of(expected_up));
    check_codes(codes, expected_gate);
    check_codes(more, expected_up);

    const Tensor weight = random_tensor({s[1]}, DType::fp32, 4), rstd({s[0]}, DType::fp32),
                 expected_rstd({s[0]}, DType::fp32);
    const RmsNormArgs norm{.y = y, .rstd = rstd, .x = up, .weight = weight};
    run(rms_norm_quantize, {.codes = codes.views(), .nonfinite = flag, .norm = norm}, exec);
    rms_norm_forward({.y = expected, .rstd = expected_rstd, .x = up, .weight = weight}, {});
    CHECK(bytes_of(y) == bytes_of(expected));
    CHECK(bytes_of(rstd) == bytes_of(expected_rstd));
    check_codes(codes, expected);
    CHECK(flag.as<std::int32_t>()[0] == 0);
}

TEST_CASE("a norm of a sum gives the bytes of its parts, with and without codes") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const DType t = GENERATE(DType::fp32, DType::bf16);
    const DType wide = GENERATE(DType::fp32, DType::bf16);  // of delta and y
    if (t == DType::fp32 && wide == DType::bf16) return;
    const Shape s = GENERATE(Shape{5, 40}, Shape{130, 257});
    const Tensor x = random_tensor(s, t, 1), delta = random_tensor(s, wide, 2),
                 weight = random_tensor({s[1]}, DType::fp32, 4), flag({1}, DType::int32);
    CAPTURE(exec.device.is_cuda(), dtype_name(t), dtype_name(wide), s.str());
    const Tensor expected_sum(s, t), expected(s, wide), expected_rstd({s[0]}, DType::fp32);
    add(expected_sum, x, delta, {});
    rms_norm_forward({.y = expected, .rstd = expected_rstd, .x = expected_sum, .weight = weight},
                     {});
    for (const bool in_place : {false, true})
        for (const bool quantised : {false, true}) {
            const Tensor own_x = copy_of(x), own_delta = copy_of(delta), sum(s, t), y(s, wide),
                         rstd({s[0]}, DType::fp32);
            const RmsNormArgs norm{.y = in_place ? own_delta.view : y.view,
                                   .rstd = rstd,
                                   .x = own_x,
                                   .weight = weight,
                                   .sum = in_place ? own_x.view : sum.view,
                                   .delta = own_delta};
            CAPTURE(in_place, quantised);
            const Codes codes(s);
            if (quantised) {
                run(rms_norm_quantize, {.codes = codes.views(), .nonfinite = flag, .norm = norm},
                    exec);
                check_codes(codes, expected);
            } else {
                run(rms_norm_forward, norm, exec);
            }
            CHECK(bytes_of(norm.sum) == bytes_of(expected_sum));
            CHECK(bytes_of(norm.y) == bytes_of(expected));
            CHECK(bytes_of(rstd) == bytes_of(expected_rstd));
        }
    CHECK(flag.as<std::int32_t>()[0] == 0);
    const Tensor y(s, wide), rstd({s[0]}, DType::fp32);
    CHECK_THROWS_AS(
        rms_norm_forward({.y = y, .rstd = rstd, .x = x, .weight = weight, .delta = delta}, {}),
        ShapeError);
}

TEST_CASE("two ways of codes come from one read, and what is infinite is noted") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const Shape s{140, 130};
    const Tensor x = random_tensor(s, DType::fp32, 1), flag({1}, DType::int32);
    const Codes codes(s);
    run(quantize_two_way, {.codes = codes.views(), .nonfinite = flag, .x = x}, exec);
    check_codes(codes, x);
    CHECK(flag.as<std::int32_t>()[0] == 0);
    x.as<float>()[139 * 130 + 129] = INFINITY;
    run(quantize_two_way, {.codes = codes.views(), .nonfinite = flag, .x = x}, exec);
    check_codes(codes, x);
    CHECK(flag.as<std::int32_t>()[0] == 1);
    TwoWayCodes wrong = codes.views();
    std::swap(wrong.row_scale, wrong.column_scale);
    CHECK_THROWS_AS(quantize_two_way({.codes = wrong, .x = x}, {}), ShapeError);
    wrong = codes.views();
    wrong.column = {};
    wrong.column_scale = {};
    CHECK_NOTHROW(quantize_two_way({.codes = wrong, .x = x}, {}));
}
