#include <cmath>

#include "tests/support/kernel_checks/checker.h"

namespace stoa::test {
namespace {

struct AddRowsArgs {
    TensorView sum;
    ConstTensorView x;
};
auto tensors(AddRowsArgs& a) { return std::tie(a.sum, a.x); }
void add_rows_op(const AddRowsArgs& a, const Exec& exec) { add_rows(a.sum, a.x, exec); }

// What a step adds up on the device instead of on the host.
void check_sums(Checker& c) {
    c.begin("add_rows");
    for (const Shape& s : row_shapes(c))
        for (const DType t : {DType::fp32, DType::fp64}) {
            const Tensor x = random_tensor(s, t, 3);
            both(c, add_rows_op, {.sum = random_tensor({x.view.cols()}, t, 4), .x = x},
                 named(t, s));
        }
    c.begin("sum_of_squares");
    for (const Shape& s : row_shapes(c))
        for (const DType t : kTypes)
            for (const std::int64_t piece : {s[s.rank - 1], std::int64_t{1}}) {
                const Tensor x = random_tensor(s, t, 5, 1e-3), sum({kExactSumWords}, DType::int32);
                sum_of_squares(sum, random_tensor({64}, t, 6), 0, {});
                both(c, squares_op, {.sum = sum, .x = x, .piece = piece}, named(t, s));
            }
}

void check_each(Checker& c) {
    c.begin("zero");
    for (const std::int64_t n : lengths(c))
        for (const DType t : kTypes)
            both(c, zero_op, {.x = any_bits({n}, t, 1)}, named(t, {n}));
    c.begin("add");
    for (const std::int64_t n : lengths(c))
        for (const DType t : kTypes)
            for (const DType b_type : {t, wide_dtype(t)}) {
                const Tensor a = random_tensor({n}, t, 1), b = random_tensor({n}, b_type, 2);
                both(c, add_op, {.y = Tensor({n}, t), .a = a, .b = b}, named(t, {n}));
                both(c, add_op, {.y = a, .a = a, .b = b}, named(t, {n}) + " in place");
            }
    c.begin("cast");
    for (const std::int64_t n : lengths(c))
        for (const DType from : {DType::fp32, DType::bf16, DType::fp16, DType::fp64, DType::fp24})
            for (const DType to :
                 {DType::fp32, DType::bf16, DType::fp16, DType::fp64, DType::fp24}) {
                if (from == DType::fp24 && to == DType::fp24) continue;
                // Any bits of a wide type hardly ever fit a narrow one: also values near 1.
                both(c, cast_op, {.y = Tensor({n}, to), .x = any_bits({n}, from, 3)},
                     named(from, {n}) + " to " + dtype_name(to));
                if (from == DType::fp24) continue;
                both(c, cast_op, {.y = Tensor({n}, to), .x = random_tensor({n}, from, 4, 1e-4)},
                     named(from, {n}) + " to " + dtype_name(to));
            }
    c.begin("flag_nonfinite");
    for (const std::int64_t n : lengths(c))
        for (const DType t : kTypes) {
            const Tensor x = random_tensor({n}, t, 1), flag({1}, DType::int32);
            flag.as<std::int32_t>()[0] = 4;
            both(c, flag_op, {.flag = flag, .x = x}, named(t, {n}));
            for (const std::int64_t at : {std::int64_t{0}, n / 2, n - 1}) {
                dispatch_dtype(t, [&]<Element T>(T) {
                    T& e = x.as<T>()[static_cast<std::size_t>(at)];
                    const T before = e;
                    e = narrow_to<T>(static_cast<Wide<T>>(INFINITY));
                    flag.as<std::int32_t>()[0] = 4;
                    both(c, flag_op, {.flag = flag, .x = x}, named(t, {n}) + " with Inf");
                    e = before;
                });
            }
        }
}

void check_random_normal(Checker& c) {
    c.begin("random_normal");
    const Shape s = c.large ? Shape{4096, 1031} : Shape{37, 21};
    for (const DType t : {DType::fp32, DType::fp64})
        both(c, random_normal,
             {.x = Tensor(s, t),
              .key = 0x1234567890abcdefu,
              .std = 0.02,
              .row_begin = 4,
              .col_begin = 7,
              .logical_rows = s[0],
              .logical_cols = s[1]},
             named(t, s));
}

}  // namespace

void check_elementwise(Checker& c) {
    check_each(c);
    check_sums(c);
    check_random_normal(c);
}

}  // namespace stoa::test
