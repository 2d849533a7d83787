#include "tests/support/kernel_checks/checker.h"

namespace stoa::test {
namespace {

void check_rms_norm(Checker& c) {
    c.begin("rms_norm_forward");
    for (const Shape& s : row_shapes(c))
        for (const DType t : kTypes)
            for (const DType u : {t, wide_dtype(t)}) {
                const Tensor x = random_tensor(s, t, 7, 3.0),
                             w = random_tensor({x.view.cols()}, wide_dtype(t), 8);
                const Tensor rstd({x.view.rows()}, wide_dtype(t));
                both(c, rms_norm_forward, {.y = Tensor(s, u), .rstd = rstd, .x = x, .weight = w},
                     named(t, s));
                if (u == t)
                    both(c, rms_norm_forward, {.y = x, .rstd = rstd, .x = x, .weight = w},
                         named(t, s) + " in place");
            }
    c.begin("rms_norm_backward");
    for (const Shape& s : row_shapes(c))
        for (const DType t : kTypes)
            for (const bool accumulate : {false, true})
                for (const DType d : {t, wide_dtype(t)}) {
                    const Tensor x = random_tensor(s, t, 7, 3.0), d_y = random_tensor(s, d, 9);
                    const std::int64_t rows = x.view.rows(), cols = x.view.cols();
                    const Tensor w = random_tensor({cols}, wide_dtype(t), 8);
                    const Tensor rstd = random_tensor({rows}, wide_dtype(t), 10);
                    const Tensor d_x = random_tensor(s, t, 11);
                    const std::int64_t groups = rows % 3 == 0 ? 3 : 1;
                    for (const std::int64_t segment : {std::int64_t{0}, rows / groups}) {
                        const Tensor d_w = random_tensor({groups, cols}, wide_dtype(t), 12);
                        both(c, rms_norm_backward,
                             {.d_x = d_x,
                              .d_weight = d_w,
                              .d_y = d_y,
                              .x = x,
                              .weight = w,
                              .rstd = rstd,
                              .accumulate = accumulate,
                              .segment_rows = segment},
                             named(t, s));
                    }
                    if (accumulate || d != t) continue;
                    both(c, rms_norm_backward,
                         {.d_x = d_y,
                          .d_weight = Tensor({cols}, wide_dtype(t)),
                          .d_y = d_y,
                          .x = x,
                          .weight = w,
                          .rstd = rstd},
                         named(t, s) + " in place");
                }
}

void check_residual_norm(Checker& c) {
    c.begin("rms_norm_forward of a sum");
    for (const Shape& s : row_shapes(c))
        for (const DType t : kTypes)
            for (const DType d : {t, wide_dtype(t)})
                for (const DType y : {t, wide_dtype(t)}) {
                    const Tensor x = random_tensor(s, t, 1), delta = random_tensor(s, d, 2),
                                 sum(s, t), own(s, y);
                    for (const bool in_place : {false, true})
                        both(c, rms_norm_forward,
                             {.y = in_place && d == y ? delta.view : own.view,
                              .rstd = Tensor({s.numel() / s[s.rank - 1]}, wide_dtype(t)),
                              .x = x,
                              .weight = random_tensor({s[s.rank - 1]}, wide_dtype(t), 3),
                              .sum = in_place ? x.view : sum.view,
                              .delta = delta},
                             named(t, s));
                }
}

void check_rope_and_swiglu(Checker& c) {
    const std::int64_t positions = c.large ? 4096 : 100;
    c.begin("rope_table");
    for (const DType t : {DType::fp32, DType::fp64})
        both(c, rope_table_op,
             {.cos = Tensor({positions, 32}, t), .sin = Tensor({positions, 32}, t), .theta = 1e4},
             dtype_name(t));
    c.begin("rope");
    for (const Shape& s : c.large ? std::vector<Shape>{{4096, 16, 128}}
                                  : std::vector<Shape>{{5, 3, 2}, {7, 1, 34}, {9, 4, 64}})
        for (const DType t : kTypes)
            for (const bool inverse : {false, true}) {
                const Tensor cos({positions, s[2] / 2}, wide_dtype(t)),
                    sin({positions, s[2] / 2}, wide_dtype(t));
                rope_table(cos, sin, {.theta = 1e4}, {});
                both(c, rope,
                     {.x = random_tensor(s, t, 1),
                      .cos = cos,
                      .sin = sin,
                      .positions = ints(s[0], 2, static_cast<std::int32_t>(positions)),
                      .inverse = inverse},
                     named(t, s));
            }
    c.begin("swiglu");
    for (const std::int64_t n : lengths(c))
        for (const DType t : kTypes) {
            const Tensor gate = random_tensor({n}, t, 1, 8.0), up = random_tensor({n}, t, 2),
                         d_y = random_tensor({n}, t, 3);
            both(c, swiglu_forward, {.y = Tensor({n}, t), .gate = gate, .up = up}, named(t, {n}),
                 exp_tolerance(t));
            both(c, swiglu_backward,
                 {.d_gate = gate, .d_up = up, .d_y = d_y, .gate = gate, .up = up}, named(t, {n}),
                 exp_tolerance(t));
        }
}

}  // namespace

void check_rows(Checker& c) {
    check_rms_norm(c);
    check_residual_norm(c);
    check_rope_and_swiglu(c);
}

}  // namespace stoa::test
