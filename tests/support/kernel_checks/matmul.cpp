#include "tests/support/kernel_checks/checker.h"

namespace stoa::test {
namespace {

/// 8-bit operands are quantised from fp32.
struct Operand {
    Tensor x, scale;
    Operand(Shape shape, DType t, QuantBlocks blocks, std::uint64_t seed) {
        const Tensor wide = random_tensor(shape, t == DType::fp64 ? t : DType::fp32, seed);
        x = Tensor(shape, t);
        if (size_of(t) > 1) {
            cast(x, wide, {});
            return;
        }
        scale = Tensor(scale_shape(shape, blocks), DType::e8m0);
        quantize({.codes = x, .scale = scale, .x = wide}, {});
    }
};

struct Product {
    std::int64_t m, n, k;
    DType a, b, c;
    bool transpose_a = false, transpose_b = false;
    QuantBlocks a_blocks = QuantBlocks::row, b_blocks = QuantBlocks::square;
};

/// Sums in another order: compared in value, to the rounding of c and the length of the sums. The
/// tensor cores hold the sums of 8-bit products in some 14 bits and add those of each 128 in fp32.
void check_product(Checker& c, const Product& p) {
    const Operand a(p.transpose_a ? Shape{p.k, p.m} : Shape{p.m, p.k}, p.a, p.a_blocks, 1);
    const Operand b(p.transpose_b ? Shape{p.n, p.k} : Shape{p.k, p.n}, p.b, p.b_blocks, 2);
    const Tensor start = random_tensor({p.m, p.n}, p.c, 3, 5.0);
    const bool codes = size_of(p.a) == 1 && size_of(p.b) == 1;
    const double tolerance = p.c == DType::fp64   ? 1e-12
                             : p.c == DType::fp32 ? (codes ? 5e-4 : 2e-5)
                             : p.c == DType::fp16 ? 1e-3
                                                  : 1e-2;
    for (const bool accumulate : {false, true})
        for (const bool at_random : {false, true}) {
            if (at_random && (!accumulate || p.c != DType::bf16)) continue;
            MatmulArgs args{.c = start,
                            .a = a.x,
                            .b = b.x,
                            .transpose_a = p.transpose_a,
                            .transpose_b = p.transpose_b,
                            .accumulate = accumulate,
                            .a_scale = a.scale,
                            .b_scale = b.scale};
            args.rounding.logical_cols = at_random ? p.n : 0;
            both(c, matmul, args, named(p.a, a.x.view.shape) + named(p.b, b.x.view.shape),
                 tolerance);
            if (p.k < 256) continue;
            args.k_begin = 128;
            args.k_count = p.k - 128;
            both(c, matmul, args, named(p.a, a.x.view.shape) + " part of k", tolerance);
        }
}

}  // namespace

void check_matmul(Checker& c) {
    c.begin("matmul");
    struct Sides {
        std::int64_t m, n, k;
    };
    const auto sides = c.large
                           ? std::vector<Sides>{{512, 1024, 768}, {1000, 257, 513}}
                           : std::vector<Sides>{{1, 1, 1}, {5, 7, 3}, {17, 32, 64}, {33, 65, 130}};
    for (const Sides& s : sides)
        for (const auto& [a, b, out] : {std::tuple{DType::fp32, DType::fp32, DType::fp32},
                                        std::tuple{DType::fp64, DType::fp64, DType::fp64},
                                        std::tuple{DType::bf16, DType::bf16, DType::fp32},
                                        std::tuple{DType::bf16, DType::bf16, DType::bf16},
                                        std::tuple{DType::fp16, DType::fp16, DType::fp16},
                                        std::tuple{DType::bf16, DType::fp32, DType::fp32},
                                        std::tuple{DType::fp16, DType::bf16, DType::bf16},
                                        std::tuple{DType::fp32, DType::fp32, DType::bf16}})
            for (const bool ta : {false, true})
                for (const bool tb : {false, true})
                    check_product(c, {s.m, s.n, s.k, a, b, out, ta, tb});
    c.begin("matmul 8-bit");
    using enum QuantBlocks;
    const std::int64_t k = c.large ? 2048 : 256, m = c.large ? 1024 : 48, n = c.large ? 640 : 160;
    for (const DType out : {DType::bf16, DType::fp32, DType::fp16}) {
        check_product(c, {m, n, k, DType::e4m3, DType::e4m3, out, false, true, row, square});
        check_product(c, {m, n, k, DType::e5m2, DType::e4m3, out, false, true, row, square});
        check_product(c, {m, n, k, DType::e4m3, DType::e4m3, out, false, true, row, row});
        check_product(c, {m, n, k, DType::e4m3, DType::e4m3, out, false, true, square, row});
        check_product(c, {m, n, k, DType::e4m3, DType::e4m3, out, false, false, row, square});
        check_product(c, {m, n, k, DType::e4m3, DType::e4m3, out, true, false, column, column});
        check_product(c, {m, n, k, DType::e5m2, DType::e5m2, out, false, true, row, square});
        check_product(c, {m + 3, n + 5, k + 7, DType::e4m3, DType::bf16, out, false, true, row});
    }
}

}  // namespace stoa::test
