#include "kernels/cpu/gemm.h"
#include "kernels/matmul.h"
#include "tests/conformance/conformance.h"

using namespace stoa;
using namespace stoa::test;

namespace {

struct Case {
    std::int64_t m, n, k;
};
// One element, odd sizes, exactly one tile, past a tile, past a k block (256), past an m block
// (480) and an n block (1024), few rows (b is read in place).
const std::vector<Case> kCases = {{1, 1, 1},     {3, 5, 7},     {12, 32, 16},  {13, 33, 257},
                                  {65, 50, 300}, {1, 64, 512},  {24, 70, 513}, {25, 40, 256},
                                  {491, 9, 33},  {30, 1031, 21}};

/// The contract, literally: one fma chain per block of k, blocks added in order.
template <class W>
W chain(const std::vector<double>& a, const std::vector<double>& b, bool accumulate, double c0) {
    W c = accumulate ? static_cast<W>(c0) : W{0};
    bool first = !accumulate;
    for (std::size_t p = 0; p < a.size();) {
        W sum = 0;
        for (const std::size_t end = std::min(a.size(), p + cpu::kGemmBlockK); p < end; ++p)
            sum = std::fma(static_cast<W>(a[p]), static_cast<W>(b[p]), sum);
        c = first ? sum : c + sum;
        first = false;
    }
    return c;
}

struct Operands {
    Tensor a, b, c;
    bool transpose_a, transpose_b;
};

Operands make_operands(const Case& s, DType dtype, DType c_dtype, bool ta, bool tb) {
    return {random_tensor(ta ? Shape{s.k, s.m} : Shape{s.m, s.k}, dtype, 1),
            random_tensor(tb ? Shape{s.n, s.k} : Shape{s.k, s.n}, dtype, 2),
            random_tensor({s.m, s.n}, c_dtype, 3), ta, tb};
}

/// Every element by the chain, and by a plain float64 sum in `exact`.
Tensor expected_bits(const Operands& o, const Case& s, bool accumulate,
                     std::vector<double>& exact) {
    const auto a = to_double(o.a), b = to_double(o.b), c = to_double(o.c);
    Tensor out({s.m, s.n}, o.c.view.dtype);
    std::vector<double> a_row(static_cast<std::size_t>(s.k)), b_col(a_row.size());
    dispatch_dtype(o.c.view.dtype, [&]<Element T>(T) {
        for (std::int64_t i = 0; i < s.m; ++i)
            for (std::int64_t j = 0; j < s.n; ++j) {
                for (std::int64_t p = 0; p < s.k; ++p) {
                    const std::int64_t ai = o.transpose_a ? p * s.m + i : i * s.k + p;
                    const std::int64_t bj = o.transpose_b ? j * s.k + p : p * s.n + j;
                    a_row[static_cast<std::size_t>(p)] = a[static_cast<std::size_t>(ai)];
                    b_col[static_cast<std::size_t>(p)] = b[static_cast<std::size_t>(bj)];
                }
                const auto e = static_cast<std::size_t>(i * s.n + j);
                const Wide<T> value = chain<Wide<T>>(a_row, b_col, accumulate, c[e]);
                out.as<T>()[e] = narrow_to<T>(value);
                double sum = accumulate ? c[e] : 0.0;
                for (std::size_t p = 0; p < a_row.size(); ++p)
                    sum += a_row[p] * b_col[p];
                exact.push_back(sum);
            }
    });
    return out;
}

void check_case(const Case& s, DType dtype, DType c_dtype, bool ta, bool tb, bool accumulate) {
    const Operands o = make_operands(s, dtype, c_dtype, ta, tb);
    std::vector<double> exact;
    const Tensor expected = expected_bits(o, s, accumulate, exact);
    CAPTURE(s.m, s.n, s.k, dtype_name(dtype), dtype_name(c_dtype), ta, tb, accumulate);
    for (const cpu::Isa isa : available_isas()) {
        const IsaScope scope(isa);
        const PoisonedTensor c = poisoned_tensor({s.m, s.n}, c_dtype);
        if (accumulate)
            std::memcpy(c.view.data, o.c.view.data, static_cast<std::size_t>(c.view.bytes()));
        matmul({.c = c,
                .a = o.a,
                .b = o.b,
                .transpose_a = ta,
                .transpose_b = tb,
                .accumulate = accumulate},
               {});
        CAPTURE(static_cast<int>(isa));
        CHECK(bytes_of(c) == bytes_of(expected));
        CHECK(relative_error(to_double(c), exact) < tolerance(c_dtype));
        CHECK(c.guards_intact());
    }
}

}  // namespace

TEST_CASE("matmul is the documented chain, bit for bit, on every instruction set") {
    const auto [dtype, c_dtype] = GENERATE(table<DType, DType>({{DType::fp32, DType::fp32},
                                                                {DType::bf16, DType::fp32},
                                                                {DType::bf16, DType::bf16},
                                                                {DType::fp64, DType::fp64}}));
    for (const Case& s : kCases)
        for (const bool ta : {false, true})
            for (const bool tb : {false, true})
                for (const bool accumulate : {false, true})
                    check_case(s, dtype, c_dtype, ta, tb, accumulate);
}

TEST_CASE("matmul rows do not depend on how many rows there are") {
    const Tensor a = random_tensor({100, 300}, DType::fp32, 1);
    const Tensor b = random_tensor({300, 70}, DType::fp32, 2);
    const Tensor all({100, 70}, DType::fp32), one({1, 70}, DType::fp32);
    matmul({.c = all, .a = a, .b = b}, {});
    for (const std::int64_t row : {0, 41, 99}) {
        matmul({.c = one, .a = a.view.slice_rows(row, 1), .b = b}, {});
        CHECK(bytes_of(one) == bytes_of(all.view.slice_rows(row, 1)));
    }
}

TEST_CASE("matmul counts leading axes as rows") {
    const Tensor a = random_tensor({2, 3, 8}, DType::fp32, 1),
                 b = random_tensor({8, 5}, DType::fp32, 2);
    const Tensor c({2, 3, 5}, DType::fp32), flat({6, 5}, DType::fp32);
    matmul({.c = c, .a = a, .b = b}, {});
    matmul({.c = flat, .a = a.view.reshaped({6, 8}), .b = b}, {});
    CHECK(bytes_of(c) == bytes_of(flat));
}

TEST_CASE("matmul refuses what does not fit") {
    const Tensor a({4, 8}, DType::fp32), b({8, 5}, DType::fp32), c({4, 5}, DType::fp32);
    const Tensor b16({8, 5}, DType::bf16), c16({4, 5}, DType::bf16), wrong({4, 6}, DType::fp32);
    CHECK_THROWS_AS(matmul({.c = c, .a = a, .b = b, .transpose_b = true}, {}), ShapeError);
    CHECK_THROWS_AS(matmul({.c = wrong, .a = a, .b = b}, {}), ShapeError);
    CHECK_THROWS_AS(matmul({.c = c, .a = a, .b = b16}, {}), ShapeError);
    CHECK_THROWS_AS(matmul({.c = c16, .a = a, .b = b}, {}), ShapeError);
    CHECK_THROWS_AS(matmul({.c = c, .a = a, .b = b}, {.device = {DeviceKind::cuda, 0}}),
                    DeviceError);
}
