#include "tests/support/kernel_checks/checker.h"

namespace stoa::test {
namespace {

void check_codes(Checker& c) {
    c.begin("quantize");
    const std::vector<Shape> shapes =
        c.large ? std::vector<Shape>{{4096, 1024}, {1000, 777}}
                : std::vector<Shape>{{1, 1}, {3, 127}, {130, 129}, {64, 300}, {257, 128}};
    for (const Shape& s : shapes)
        for (const DType t : {DType::fp32, DType::bf16, DType::fp16, DType::fp24})
            for (const DType code : {DType::e4m3, DType::e5m2})
                for (const QuantBlocks kind :
                     {QuantBlocks::row, QuantBlocks::column, QuantBlocks::square})
                    for (const bool any : {false, true}) {
                        if (!any && t == DType::fp24) continue;
                        const Tensor x = any ? any_bits(s, t, 3) : random_tensor(s, t, 4);
                        const Tensor codes(s, code), scale(scale_shape(s, kind), DType::e8m0);
                        both(c, quantize,
                             {.codes = codes,
                              .scale = scale,
                              .nonfinite = Tensor({1}, DType::int32),
                              .x = x},
                             named(t, s));
                        both(c, dequantize,
                             {.y = Tensor(s, DType::fp32), .codes = codes, .scale = scale},
                             named(t, s) + " dequantize");
                    }
}

void check_quantization_loss(Checker& c) {
    c.begin("quantization_loss");
    for (const Shape& s : c.large ? std::vector<Shape>{{4096, 1024}, {1000, 777}}
                                  : std::vector<Shape>{{1, 1}, {3, 127}, {65, 300}})
        for (const DType t : {DType::fp32, DType::bf16, DType::fp16})
            both(c, quantization_loss,
                 {.sums = random_tensor({4}, DType::fp64, 1), .x = random_tensor(s, t, 4)},
                 named(t, s), 1e-12);
}

void check_fused_quantize(Checker& c) {
    c.begin("fused quantize");
    for (const Shape& s : c.large ? std::vector<Shape>{{4096, 1024}, {1000, 777}}
                                  : std::vector<Shape>{{1, 1}, {3, 127}, {130, 129}, {257, 128}})
        for (const DType t : {DType::fp32, DType::bf16, DType::fp16})
            for (const DType code : {DType::e4m3, DType::e5m2})
                for (const int ways : {1, 2, 3}) {
                    std::vector<Tensor> owned;
                    const auto room = [&](bool wanted, Shape shape, DType type) {
                        if (!wanted) return TensorView{};
                        owned.emplace_back(shape, type);
                        return owned.back().view;
                    };
                    const auto codes = [&] {
                        const Shape row = scale_shape(s, QuantBlocks::row),
                                    column = scale_shape(s, QuantBlocks::column);
                        return TwoWayCodes{room((ways & 1) != 0, s, code),
                                           room((ways & 1) != 0, row, DType::e8m0),
                                           room((ways & 2) != 0, s, code),
                                           room((ways & 2) != 0, column, DType::e8m0)};
                    };
                    const std::string where = named(t, s) + " ways " + std::to_string(ways);
                    const Tensor gate = random_tensor(s, t, 1, 8.0), up = random_tensor(s, t, 2),
                                 d_y = random_tensor(s, t, 3), flag({1}, DType::int32);
                    flag.as<std::int32_t>()[0] = 4;
                    for (const Tensor& x : {any_bits(s, t, 5), random_tensor(s, t, 6)})
                        both(c, quantize_two_way, {.codes = codes(), .nonfinite = flag, .x = x},
                             where);
                    both(c, swiglu_quantize,
                         {.codes = codes(),
                          .y = Tensor(s, t),
                          .nonfinite = flag,
                          .gate = gate,
                          .up = up},
                         where + " swiglu");
                    both(c, swiglu_quantize_backward,
                         {.d_gate_codes = codes(),
                          .d_up_codes = codes(),
                          .d_gate = gate,
                          .d_up = up,
                          .nonfinite = flag,
                          .d_y = d_y,
                          .gate = gate,
                          .up = up},
                         where + " swiglu backward");
                    const Tensor sum(s, t), delta = random_tensor(s, t, 8),
                                            wide = random_tensor(s, DType::fp32, 8);
                    // Without a sum; beside x; in its place.
                    for (const auto& [more, to] :
                         {std::pair{TensorView{}, TensorView{}}, std::pair{delta.view, sum.view},
                          std::pair{wide.view, d_y.view}})
                        both(c, rms_norm_quantize,
                             {.codes = codes(),
                              .nonfinite = flag,
                              .norm = {.y = Tensor(s, t),
                                       .rstd = Tensor({s[0]}, DType::fp32),
                                       .x = d_y,
                                       .weight = random_tensor({s[1]}, DType::fp32, 7),
                                       .sum = to,
                                       .delta = more}},
                             where + " norm");
                }
}

}  // namespace

void check_quantize(Checker& c) {
    check_codes(c);
    check_quantization_loss(c);
    check_fused_quantize(c);
}

}  // namespace stoa::test
