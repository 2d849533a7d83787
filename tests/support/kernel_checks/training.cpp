#include "tests/support/kernel_checks/checker.h"

namespace stoa::test {
namespace {

void check_embedding(Checker& c) {
    c.begin("embedding");
    struct Case {
        std::int64_t rows, d, vocab;
    };
    for (const Case& s :
         c.large ? std::vector<Case>{{8192, 1024, 32000}, {4096, 768, 50}}
                 : std::vector<Case>{{1, 1, 3}, {7, 33, 5}, {100, 130, 9}, {70, 1030, 2}})
        for (const DType t : kTypes) {
            const auto vocab = static_cast<std::int32_t>(s.vocab);
            const Tensor tokens = ints(s.rows, 5, vocab + 12, 8);  // two to each side are others'
            const Shape rows{s.rows, s.d}, table{s.vocab, s.d};
            both(c, embedding_forward,
                 {.y = Tensor(rows, t),
                  .table = random_tensor(table, t, 1),
                  .tokens = tokens,
                  .vocab_begin = 10},
                 named(t, rows));
            for (const DType g : {wide_dtype(t), DType::bf16})
                for (const bool at_random : {false, true}) {
                    if (g == DType::bf16 && t == DType::fp64) continue;
                    StochasticRounding rounding{
                        .key = 5, .call = 100, .row_begin = 10, .col_begin = 3};
                    rounding.logical_cols = at_random ? s.d + 7 : 0;
                    both(c, embedding_backward,
                         {.d_table = random_tensor(table, g, 2),
                          .d_y = random_tensor(rows, t, 3),
                          .tokens = tokens,
                          .vocab_begin = 10,
                          .rounding = rounding},
                         named(t, rows) + " into " + dtype_name(g));
                }
        }
}

void check_cross_entropy(Checker& c) {
    c.begin("cross_entropy");
    struct Case {
        std::int64_t rows, cols, valid, chunk;
    };
    for (const Case& s :
         c.large ? std::vector<Case>{{2048, 32000, 31990, 1000}, {100, 50257, 50257, 0}}
                 : std::vector<Case>{
                       {1, 1, 1, 0}, {5, 40, 37, 8}, {9, 1100, 1031, 100}, {300, 48, 20, 16}})
        for (const DType t : kTypes) {
            const Shape shape{s.rows, s.cols};
            const DType wide = wide_dtype(t);
            const Tensor logits = random_tensor(shape, t, 1, 6.0);
            const Tensor targets = ints(s.rows, 2, static_cast<std::int32_t>(s.valid + 2), -2);
            const Tensor max({s.rows}, wide), sum({s.rows}, wide), target({s.rows}, wide);
            const Tensor loss({1}, DType::fp64);
            both(c, cross_entropy_row_max,
                 {.row_max = max, .logits = logits, .vocab_valid = s.valid}, named(t, shape));
            both(c, cross_entropy_exp_sum,
                 {.exp_sum = sum,
                  .target_logit = target,
                  .logits = logits,
                  .row_max = max,
                  .targets = targets,
                  .vocab_begin = 1,
                  .vocab_valid = s.valid,
                  .chunk = s.chunk},
                 named(t, shape), exp_tolerance(t));
            const Tensor d_logits(shape, t);
            for (const TensorView out : {TensorView{}, d_logits.view, logits.view})
                both(c, cross_entropy_finish,
                     {.d_logits = out,
                      .loss_sum = loss,
                      .logits = logits,
                      .row_max = max,
                      .exp_sum = sum,
                      .target_logit = target,
                      .targets = targets,
                      .vocab_begin = 1,
                      .vocab_valid = s.valid,
                      .d_loss = 0.37},
                     named(t, shape), exp_tolerance(t));
        }
}

void check_adamw(Checker& c) {
    c.begin("adamw");
    const std::vector<Shape> shapes =
        c.large ? std::vector<Shape>{{1000, 1500}}
                : std::vector<Shape>{{1, 1}, {3, 127}, {5, 300}, {9, 256}};
    for (const Shape& s : shapes) {
        const auto step_of = [&](DType param, DType m, DType v, DType grad, double beta2) {
            const Shape scales = scale_shape(s, QuantBlocks::row);
            const Tensor m_scale(scales, DType::e8m0), v_scale(scales, DType::e8m0);
            const auto state = [&](DType t, std::uint64_t seed, const Tensor& scale, bool square) {
                Tensor x = random_tensor(s, DType::fp32, seed);
                if (square)
                    for (float& value : x.as<float>())
                        value *= value;
                Tensor y(s, t);
                if (t == DType::e4m3)
                    quantize({.codes = y, .scale = scale, .x = x}, {});
                else
                    cast(y, x, {});
                return y;
            };
            const Tensor p0 = state(param, 1, m_scale, false), m0 = state(m, 2, m_scale, false),
                         v0 = state(v, 3, v_scale, true), g0 = state(grad, 4, m_scale, false);
            both(c, adamw,
                 {.param = p0,
                  .m = m0,
                  .v = v0,
                  .grad = g0,
                  .lr = 0.01,
                  .beta2 = beta2,
                  .weight_decay = 0.1,
                  .grad_scale = 0.5,
                  .step = 7,
                  .m_scale = m == DType::e4m3 ? m_scale.view : TensorView{},
                  .v_scale = v == DType::e4m3 ? v_scale.view : TensorView{},
                  .rounding_key = 5,
                  .row_begin = 3,
                  .col_begin = 2,
                  .logical_cols = s[1] + 9},
                 named(param, s) + " " + dtype_name(m) + " " + dtype_name(v) + " " +
                     dtype_name(grad));
        };
        step_of(DType::fp64, DType::fp64, DType::fp64, DType::fp64, 0.95);
        for (const DType param : {DType::fp32, DType::fp24})
            for (const DType m : {DType::fp32, DType::bf16, DType::e4m3})
                for (const DType v : {DType::fp32, DType::bf16, DType::e4m3})
                    for (const DType grad : {DType::fp32, DType::bf16})
                        for (const double beta2 : {0.95, 0.999})
                            step_of(param, m, v, grad, beta2);
    }
}

}  // namespace

void check_training(Checker& c) {
    check_embedding(c);
    check_cross_entropy(c);
    check_adamw(c);
}

}  // namespace stoa::test
