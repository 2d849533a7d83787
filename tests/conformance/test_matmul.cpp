#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/core/philox.h"
#include "kernels/core/thread_pool.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cuda/device.h"
#include "kernels/matmul.h"
#include "kernels/quantize.h"
#include "tests/conformance/conformance.h"

using namespace stoa;
using namespace stoa::test;

namespace {

#ifdef __SANITIZE_ADDRESS__  // slow, and the same code for the others
constexpr bool kFew = true;
#else
constexpr bool kFew = false;
#endif

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
W chain(const double* a, const double* b, std::int64_t k, bool accumulate, double c0) {
    W c = accumulate ? static_cast<W>(c0) : W{0};
    bool first = !accumulate;
    for (std::int64_t p = 0; p < k;) {
        W sum = 0;
        for (const std::int64_t end = std::min<std::int64_t>(k, p + cpu::kGemmBlockK); p < end; ++p)
            sum = std::fma(static_cast<W>(a[p]), static_cast<W>(b[p]), sum);
        c = first ? sum : c + sum;
        first = false;
    }
    return c;
}

/// A matrix as matmul reads it: codes or values, the scale of 8-bit codes, and the same in fp32.
struct Matrix {
    Tensor x, scale, wide;
    ConstTensorView scale_view() const {
        return scale.view.empty() ? ConstTensorView{} : scale.view.view();
    }
};

enum class Blocks { row, column, square };
constexpr Blocks kBlocks[] = {Blocks::row, Blocks::column, Blocks::square};

std::int64_t block_count(std::int64_t n) { return (n + kQuantBlock - 1) / kQuantBlock; }

template <class Code>
void fill_codes(Matrix& m, Blocks blocks, Draws& draws) {
    const std::int64_t rows = m.x.view.rows(), cols = m.x.view.cols();
    const std::int64_t scale_rows = blocks == Blocks::row ? rows : block_count(rows);
    const std::int64_t scale_cols = blocks == Blocks::column ? cols : block_count(cols);
    m.scale = Tensor({scale_rows, scale_cols}, DType::e8m0);
    for (e8m0& s : m.scale.as<e8m0>())
        s.bits = static_cast<std::uint8_t>(124 + draws.next_u32() % 6);
    for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t c = 0; c < cols; ++c) {
            const auto at = static_cast<std::size_t>(r * cols + c);
            Code code{static_cast<std::uint8_t>(draws.next_u32())};
            // Finite codes of moderate size, so that no sum leaves fp32; subnormals among them.
            while (!(std::abs(to_float(code)) <= 448.0f))
                code.bits = static_cast<std::uint8_t>(draws.next_u32());
            const std::int64_t i = blocks == Blocks::row ? r : r / kQuantBlock;
            const std::int64_t j = blocks == Blocks::column ? c : c / kQuantBlock;
            const auto s = static_cast<std::size_t>(i * scale_cols + j);
            m.x.as<Code>()[at] = code;
            m.wide.as<float>()[at] = to_float(code) * to_float(m.scale.as<e8m0>()[s]);
        }
}

Matrix random_matrix(Shape shape, DType dtype, std::uint64_t seed, Blocks blocks) {
    if (dtype == DType::fp64) return {random_tensor(shape, dtype, seed), {}, {}};
    Matrix m{{}, {}, Tensor(shape, DType::fp32)};
    Draws draws(mix_key(seed, 0xc0de), 0);
    if (size_of(dtype) == 1) {
        m.x = Tensor(shape, dtype);
        dtype == DType::e4m3 ? fill_codes<e4m3>(m, blocks, draws)
                             : fill_codes<e5m2>(m, blocks, draws);
        return m;
    }
    m.x = random_tensor(shape, dtype, seed);
    const auto values = to_double(m.x);
    std::transform(values.begin(), values.end(), m.wide.as<float>().begin(),
                   [](double v) { return static_cast<float>(v); });
    return m;
}

struct Dtypes {
    DType a, b, c;
};
struct Operands {
    Matrix a, b;
    Tensor c;
    bool transpose_a, transpose_b;
};

Operands make_operands(const Case& s, const Dtypes& d, bool ta, bool tb,
                       Blocks a_blocks = Blocks::row, Blocks b_blocks = Blocks::square) {
    return {random_matrix(ta ? Shape{s.k, s.m} : Shape{s.m, s.k}, d.a, 1, a_blocks),
            random_matrix(tb ? Shape{s.n, s.k} : Shape{s.k, s.n}, d.b, 2, b_blocks),
            random_tensor({s.m, s.n}, d.c, 3), ta, tb};
}

MatmulArgs args_of(const Operands& o, TensorView c, bool accumulate) {
    return {.c = c,
            .a = o.a.x,
            .b = o.b.x,
            .transpose_a = o.transpose_a,
            .transpose_b = o.transpose_b,
            .accumulate = accumulate,
            .a_scale = o.a.scale_view(),
            .b_scale = o.b.scale_view()};
}

std::vector<double> values_of(const Matrix& m) {
    return to_double(m.x.view.dtype == DType::fp64 ? m.x : m.wide);
}

/// Rows of k for chain(): x as (rows, k), or as (k, rows) that is turned.
std::vector<double> rows_of(const std::vector<double>& x, std::int64_t rows, std::int64_t k,
                            bool turn) {
    if (!turn) return x;
    std::vector<double> out(x.size());
    double* const to = out.data();
    const double* const from = x.data();
    for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t p = 0; p < k; ++p)
            to[r * k + p] = from[p * rows + r];
    return out;
}

/// Every element by the chain, and by a plain float64 sum in `exact`.
Tensor expected_bits(const Operands& o, const Case& s, bool accumulate,
                     std::vector<double>& exact) {
    const auto a = rows_of(values_of(o.a), s.m, s.k, o.transpose_a),
               b = rows_of(values_of(o.b), s.n, s.k, !o.transpose_b), c = to_double(o.c);
    Tensor out({s.m, s.n}, o.c.view.dtype);
    dispatch_dtype(o.c.view.dtype, [&]<Element T>(T) {
        for (std::int64_t i = 0; i < s.m; ++i)
            for (std::int64_t j = 0; j < s.n; ++j) {
                const double *const row = a.data() + i * s.k, *const col = b.data() + j * s.k;
                const auto e = static_cast<std::size_t>(i * s.n + j);
                const Wide<T> value = chain<Wide<T>>(row, col, s.k, accumulate, c[e]);
                out.as<T>()[e] = narrow_to<T>(value);
                double sum = accumulate ? c[e] : 0.0;
                for (std::int64_t p = 0; p < s.k; ++p)
                    sum += row[p] * col[p];
                exact.push_back(sum);
            }
    });
    return out;
}

void check_case(const Case& s, const Operands& o, const Dtypes& d, bool accumulate) {
    std::vector<double> exact;
    const Tensor expected = expected_bits(o, s, accumulate, exact);
    CAPTURE(s.m, s.n, s.k, dtype_name(d.a), dtype_name(d.b), dtype_name(d.c));
    CAPTURE(o.transpose_a, o.transpose_b, accumulate);
    const double allowed = d.c == DType::fp16 ? 1e-3 : tolerance(d.c);
    for (const cpu::Isa isa : available_isas()) {
        const IsaScope scope(isa);
        const PoisonedTensor c = poisoned_tensor({s.m, s.n}, d.c);
        if (accumulate)
            std::memcpy(c.view.data, o.c.view.data, static_cast<std::size_t>(c.view.bytes()));
        matmul(args_of(o, c, accumulate), {});
        CAPTURE(static_cast<int>(isa));
        CHECK(bytes_of(c) == bytes_of(expected));
        CHECK(relative_error(to_double(c), exact) < allowed);
        CHECK(c.guards_intact());
    }
}

struct ThreadScope {
    explicit ThreadScope(int n) { set_cpu_threads(n); }
    ~ThreadScope() { set_cpu_threads(1); }
    ThreadScope(const ThreadScope&) = delete;
    ThreadScope& operator=(const ThreadScope&) = delete;
};

constexpr DType kOperandDtypes[] = {DType::fp32, DType::bf16, DType::fp16, DType::e4m3,
                                    DType::e5m2};

}  // namespace

TEST_CASE("matmul is the documented chain, bit for bit, on every instruction set") {
    const auto d = GENERATE(Dtypes{DType::fp32, DType::fp32, DType::fp32},
                            Dtypes{DType::bf16, DType::bf16, DType::fp32},
                            Dtypes{DType::bf16, DType::bf16, DType::bf16},
                            Dtypes{DType::fp16, DType::fp16, DType::fp16},
                            Dtypes{DType::e5m2, DType::e4m3, DType::bf16},
                            Dtypes{DType::fp64, DType::fp64, DType::fp64});
    for (const Case& s : kCases)
        for (const bool ta : {false, true})
            for (const bool tb : {false, true})
                for (const bool accumulate : {false, true})
                    if (!kFew || accumulate == (ta == tb))
                        check_case(s, make_operands(s, d, ta, tb), d, accumulate);
}

TEST_CASE("matmul takes every pair of operand dtypes, and every shape of scales") {
    const Case s = GENERATE(Case{37, 41, 290}, Case{300, 19, 131}, Case{2, 270, 128});
    for (const DType a : kOperandDtypes)
        for (const DType b : kOperandDtypes)
            for (const int t : {0, 1, 2, 3}) {
                const Dtypes d{a, b, DType::fp32};
                if (kFew && a != b && b != DType::fp32) continue;
                check_case(s, make_operands(s, d, t & 1, t & 2), d, false);
            }
    for (const Blocks a_blocks : kBlocks)
        for (const Blocks b_blocks : kBlocks)
            for (const int t : {0, 1, 2, 3}) {
                const Dtypes d{DType::e4m3, DType::e5m2, DType::fp32};
                check_case(s, make_operands(s, d, t & 1, t & 2, a_blocks, b_blocks), d, true);
            }
}

TEST_CASE("matmul of narrow operands has the bits of widening them first") {
    const Case s{70, 90, 400};
    for (const DType a : kOperandDtypes)
        for (const DType b : kOperandDtypes) {
            const Operands o = make_operands(s, {a, b, DType::fp32}, false, true);
            const Tensor narrow({s.m, s.n}, DType::fp32), wide({s.m, s.n}, DType::fp32);
            matmul(args_of(o, narrow, false), {});
            matmul({.c = wide, .a = o.a.wide, .b = o.b.wide, .transpose_b = true}, {});
            CAPTURE(dtype_name(a), dtype_name(b));
            CHECK(bytes_of(narrow) == bytes_of(wide));
        }
}

TEST_CASE("matmul has the same bits on any number of threads") {
    // Few rows, shared rows, and rows in chunks; several groups of k; a narrow c in two pieces.
    const Case s = GENERATE(Case{20, 250, 600}, Case{300, 70, 1100}, Case{1100, 66, 300});
    const auto d = GENERATE(Dtypes{DType::fp32, DType::fp32, DType::fp32},
                            Dtypes{DType::e5m2, DType::e4m3, DType::bf16},
                            Dtypes{DType::bf16, DType::fp32, DType::fp16});
    for (const int t : {0, 1, 2, 3}) {
        if (kFew && t % 3 == 0) continue;
        const Operands o = make_operands(s, d, t & 1, t & 2);
        std::vector<std::byte> first;
        for (const int threads : {1, 2, 3}) {
            const ThreadScope scope(threads);
            const PoisonedTensor c = poisoned_tensor({s.m, s.n}, d.c);
            std::memcpy(c.view.data, o.c.view.data, static_cast<std::size_t>(c.view.bytes()));
            matmul(args_of(o, c, true), {});
            if (threads == 1) first = bytes_of(c);
            CAPTURE(s.m, s.n, s.k, threads, o.transpose_a, o.transpose_b);
            CHECK(bytes_of(c) == first);
            CHECK(c.guards_intact());
        }
        std::vector<double> exact;
        if (t == 1) CHECK(first == bytes_of(expected_bits(o, s, true, exact)));
    }
}

namespace {

/// What kernels/core/rounding.h says, from the generator itself.
bf16 rounded_at_random(float x, const StochasticRounding& s, std::int64_t row, std::int64_t col) {
    const auto e =
        static_cast<std::uint64_t>((s.row_begin + row) * s.logical_cols + s.col_begin + col);
    const std::uint32_t word = philox(s.key, e / 8, s.call)[e / 2 % 4];
    const std::uint32_t half = e % 2 == 0 ? word & 0xffffu : word >> 16;
    return {static_cast<std::uint16_t>((std::bit_cast<std::uint32_t>(x) + half) >> 16)};
}

}  // namespace

TEST_CASE("matmul rounds sums in bf16 at random, each element by its own draw") {
    // Few rows, shared rows, and rows in chunks; more columns than one block; several groups of k.
    const Case s =
        GENERATE(Case{20, 250, 600}, Case{300, 70, 1100}, Case{1100, 66, 300}, Case{30, 1031, 21});
    const int t = GENERATE(0, 1, 2, 3);
    const StochasticRounding rounding{
        .key = 7, .call = 3ull << 40 | 5, .row_begin = 11, .col_begin = 37, .logical_cols = 2001};
    const Operands o = make_operands(s, {DType::bf16, DType::e4m3, DType::bf16}, t & 1, t & 2);
    Tensor wide({s.m, s.n}, DType::fp32), expected({s.m, s.n}, DType::bf16);
    const std::vector<double> before = to_double(o.c);
    std::ranges::transform(before, wide.as<float>().begin(),
                           [](double x) { return static_cast<float>(x); });
    matmul(args_of(o, wide, true), {});
    for (std::int64_t i = 0; i < s.m; ++i)
        for (std::int64_t j = 0; j < s.n; ++j) {
            const auto e = static_cast<std::size_t>(i * s.n + j);
            expected.as<bf16>()[e] = rounded_at_random(wide.as<float>()[e], rounding, i, j);
        }
    for (const int threads : {1, 3})
        for (const cpu::Isa isa : available_isas()) {
            const IsaScope isa_scope(isa);
            const ThreadScope scope(threads);
            const PoisonedTensor c = poisoned_tensor({s.m, s.n}, DType::bf16);
            std::memcpy(c.view.data, o.c.view.data, static_cast<std::size_t>(c.view.bytes()));
            MatmulArgs args = args_of(o, c, true);
            args.rounding = rounding;
            matmul(args, {});
            CAPTURE(s.m, s.n, s.k, threads, static_cast<int>(isa));
            CHECK(bytes_of(c) == bytes_of(expected));
            CHECK(c.guards_intact());
        }
}

TEST_CASE("matmul keeps small addends of a bf16 sum on average") {
    // 1 + 256 times 2^-10: to nearest each one is lost, as half a step at 1 is 2^-9.
    const std::int64_t n = 4096;
    Tensor one({1, 1}, DType::fp32), small({1, n}, DType::fp32);
    Tensor nearest({1, n}, DType::bf16), random({1, n}, DType::bf16);
    one.as<float>()[0] = 1.0f;
    std::ranges::fill(small.as<float>(), 0x1p-10f);
    std::ranges::fill(nearest.as<bf16>(), to_bf16(1.0f));
    std::ranges::fill(random.as<bf16>(), to_bf16(1.0f));
    for (std::uint64_t call = 0; call < 256; ++call) {
        MatmulArgs args{.c = nearest, .a = one, .b = small, .accumulate = true};
        matmul(args, {});
        args.c = random;
        args.rounding = {.key = 1, .call = call, .logical_cols = n};
        matmul(args, {});
    }
    double mean = 0.0;
    for (const double x : to_double(random))
        mean += x / static_cast<double>(n);
    CHECK(to_float(nearest.as<bf16>()[0]) == 1.0f);
    CHECK(std::abs(mean - 1.25) < 0.004);  // 5 standard errors
}

TEST_CASE("matmul reads every 8-bit code, and keeps a NaN one") {
    const Tensor one({1, 1}, DType::fp32);
    one.as<float>()[0] = 1.0f;
    const DType dtype = GENERATE(DType::e4m3, DType::e5m2);
    Tensor codes({1, 256}, dtype), scale({1, 2}, DType::e8m0), c({1, 256}, DType::fp32);
    for (std::size_t i = 0; i < 256; ++i)
        codes.view.data[i] = static_cast<std::byte>(i);
    scale.as<e8m0>()[0].bits = 127;  // 2^0
    scale.as<e8m0>()[1].bits = 1;    // 2^-126: the products are subnormal, and still exact
    for (const cpu::Isa isa : available_isas()) {
        const IsaScope scope(isa);
        matmul({.c = c, .a = one, .b = codes, .b_scale = scale}, {});
        for (std::size_t i = 0; i < 256; ++i) {
            const auto bits = static_cast<std::uint8_t>(i);
            const float code = dtype == DType::e4m3 ? to_float(e4m3{bits}) : to_float(e5m2{bits});
            const float expected = code * (i < 128 ? 1.0f : 0x1p-126f);
            CAPTURE(static_cast<int>(isa), i);
            CHECK((std::isnan(expected) ? std::isnan(c.as<float>()[i])
                                        : c.as<float>()[i] == expected));
        }
    }
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
    const Tensor wrong({4, 6}, DType::fp32), d64({4, 5}, DType::fp64);
    const Tensor codes({8, 5}, DType::e4m3), scale({1, 1}, DType::e8m0), odd({2, 5}, DType::e8m0);
    CHECK_THROWS_AS(matmul({.c = c, .a = a, .b = b, .transpose_b = true}, {}), ShapeError);
    CHECK_THROWS_AS(matmul({.c = wrong, .a = a, .b = b}, {}), ShapeError);
    CHECK_THROWS_AS(matmul({.c = d64, .a = a, .b = b}, {}), ShapeError);
    CHECK_THROWS_AS(matmul({.c = c, .a = a, .b = codes}, {}), ShapeError);  // without a scale
    CHECK_THROWS_AS(matmul({.c = c, .a = a, .b = codes, .b_scale = odd}, {}), ShapeError);
    CHECK_THROWS_AS(matmul({.c = c, .a = a, .b = b, .b_scale = scale}, {}), ShapeError);
    CHECK_NOTHROW(matmul({.c = c, .a = a, .b = codes, .b_scale = scale}, {}));
    if (!cuda::runs_kernels())
        CHECK_THROWS_AS(matmul({.c = c, .a = a, .b = b}, {.device = {DeviceKind::cuda, 0}}),
                        DeviceError);
}

namespace {

// Steps [k0, k0 + k) of s.k.
struct Span {
    std::int64_t begin, count;
};
Tensor product(const Operands& o, const Case& s, DType c, const std::vector<Span>& spans,
               bool chain) {
    Tensor out({s.m, s.n}, c);
    bool first = true;
    for (const Span& span : spans) {
        MatmulArgs args = args_of(o, out, !first);
        args.chain = chain;
        args.k_begin = span.begin;
        args.k_count = span.count;
        matmul(args, {});
        first = false;
    }
    return out;
}

}  // namespace

TEST_CASE("a chained sum does not depend on how k is dealt out to calls") {
    const Case s = GENERATE(Case{37, 41, 700}, Case{300, 19, 640}, Case{5, 270, 384});
    const auto d = GENERATE(Dtypes{DType::fp32, DType::fp32, DType::fp32},
                            Dtypes{DType::e4m3, DType::bf16, DType::fp32},
                            Dtypes{DType::fp64, DType::fp64, DType::fp64});
    for (const bool ta : {false, true})
        for (const bool tb : {false, true}) {
            const Operands o = make_operands(s, d, ta, tb, Blocks::column, Blocks::row);
            std::vector<std::vector<std::byte>> bits;
            for (const cpu::Isa isa : available_isas()) {
                const IsaScope scope(isa);
                for (const auto& spans : {std::vector<Span>{{0, s.k}},
                                          {{0, 256}, {256, s.k - 256}},
                                          {{0, 1}, {1, 127}, {128, 130}, {258, s.k - 258}}})
                    bits.push_back(bytes_of(product(o, s, d.c, spans, true)));
            }
            CAPTURE(s.m, s.n, s.k, dtype_name(d.a), ta, tb);
            for (const auto& b : bits)
                CHECK(b == bits.front());
            // Cut into blocks, the same sum is close, but another.
            const Tensor cut = product(o, s, d.c, {{0, s.k}}, false);
            const Tensor whole = product(o, s, d.c, {{0, s.k}}, true);
            CHECK(relative_error(to_double(cut), to_double(whole)) < 1e-5);
            CHECK(bytes_of(cut) != bytes_of(whole));
        }
}

TEST_CASE("k_begin and k_count take the product of a part") {
    const Case s{33, 47, 512};
    const auto d = GENERATE(Dtypes{DType::fp32, DType::fp32, DType::fp32},
                            Dtypes{DType::e4m3, DType::e4m3, DType::fp32},
                            Dtypes{DType::bf16, DType::bf16, DType::bf16});
    for (const bool ta : {false, true})
        for (const bool tb : {false, true}) {
            const Operands o = make_operands(s, d, ta, tb);
            const auto a = values_of(o.a), b = values_of(o.b);
            const Span span = GENERATE(Span{128, 256}, Span{384, 0}, Span{130, 7});
            const std::int64_t count = span.count > 0 ? span.count : s.k - span.begin;
            std::vector<double> exact;
            for (std::int64_t i = 0; i < s.m; ++i)
                for (std::int64_t j = 0; j < s.n; ++j) {
                    double sum = 0.0;
                    for (std::int64_t p = span.begin; p < span.begin + count; ++p)
                        sum += a[static_cast<std::size_t>(ta ? p * s.m + i : i * s.k + p)] *
                               b[static_cast<std::size_t>(tb ? j * s.k + p : p * s.n + j)];
                    exact.push_back(sum);
                }
            for (const cpu::Isa isa : available_isas()) {
                const IsaScope scope(isa);
                CHECK(relative_error(to_double(product(o, s, d.c, {span}, false)), exact) <
                      tolerance(d.c));
            }
        }
    const Operands o = make_operands(s, {DType::fp32, DType::fp32, DType::fp32}, false, false);
    CHECK_THROWS_AS(product(o, s, DType::fp32, {{500, 13}}, false), ShapeError);
}
