#include "tests/support/kernel_checks.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/core/philox.h"
#include "tests/support/attention_cases.h"
#include "tests/support/execs.h"
#include "tests/support/tensors.h"

namespace stoa::test {
namespace {

struct Checker {
    Exec exec;
    bool large;
    std::vector<KernelCheck> all;
    KernelCheck& now() { return all.back(); }
    void begin(const std::string& op) { all.push_back({.op = op}); }
};

bool is_nan(const std::byte* p, DType t) {
    const auto load = [&]<class T>(T x) {
        std::memcpy(&x, p, sizeof x);
        return x;
    };
    switch (t) {
        case DType::fp32:
            return std::isnan(load(float{}));
        case DType::fp64:
            return std::isnan(load(double{}));
        case DType::bf16:
            return std::isnan(to_float(load(bf16{})));
        case DType::fp16:
            return std::isnan(to_float(load(fp16{})));
        case DType::fp24:
            return std::isnan(to_float(load(fp24{})));
        default:
            return false;
    }
}

/// Values that differ in a bit; one NaN is as good as another.
void compare_bits(KernelCheck& check, ConstTensorView got, ConstTensorView expected,
                  const std::string& where) {
    const std::int64_t size = size_of(got.dtype);
    check.values += got.numel();
    for (std::int64_t i = 0; i < got.numel(); ++i) {
        const std::byte *const a = got.data + i * size, *const b = expected.data + i * size;
        if (std::memcmp(a, b, static_cast<std::size_t>(size)) == 0) continue;
        if (is_nan(a, got.dtype) && is_nan(b, got.dtype)) continue;
        if (++check.differences == 1) check.first = where + ", element " + std::to_string(i);
    }
}
void compare_values(KernelCheck& check, ConstTensorView got, ConstTensorView expected,
                    double tolerance, const std::string& where) {
    check.values += got.numel();
    const double error = relative_error(to_double(got), to_double(expected));
    check.worst = std::max(check.worst, error);
    if (error <= tolerance) return;
    ++check.differences;
    if (check.first.empty()) check.first = where + ", error " + std::to_string(error);
}

/// Copies in host memory; views of the same memory share theirs.
struct HostCopies {
    std::vector<std::pair<const std::byte*, Tensor>> copies;
    template <class View>
    void move(View& view) {
        if (view.empty()) return;
        for (const auto& [from, copy] : copies)
            if (from == view.data && copy.view.bytes() == view.bytes()) {
                view.data = copy.view.data;
                return;
            }
        Tensor t(view.shape, view.dtype);
        std::memcpy(t.view.data, view.data, static_cast<std::size_t>(view.bytes()));
        copies.emplace_back(view.data, std::move(t));
        view.data = copies.back().second.view.data;
    }
};

void compare_written(KernelCheck& check, const TensorView& got, const TensorView& expected,
                     double tolerance, const std::string& where) {
    if (got.empty()) return;
    const bool bits = tolerance == 0.0 || size_of(got.dtype) == 1 || got.dtype == DType::int32;
    bits ? compare_bits(check, got, expected, where)
         : compare_values(check, got, expected, tolerance, where);
}
void compare_written(KernelCheck&, const ConstTensorView&, const ConstTensorView&, double,
                     const std::string&) {}

/// The op on the CPU and on exec, from the same start, and all that it may write compared.
template <class Args>
void both(Checker& c, void (*op)(const Args&, const Exec&), std::type_identity_t<Args> args,
          const std::string& where, double tolerance = 0.0) {
    Args on_cpu = args;
    HostCopies copies;
    std::apply([&](auto&... views) { (copies.move(views), ...); }, tensors(on_cpu));
    op(on_cpu, {});
    run(op, args, c.exec);
    auto got = tensors(args);
    auto expected = tensors(on_cpu);
    ++c.now().runs;
    [&]<std::size_t... I>(std::index_sequence<I...>) {
        (compare_written(c.now(), std::get<I>(got), std::get<I>(expected), tolerance, where), ...);
    }
    (std::make_index_sequence<std::tuple_size_v<decltype(got)>>{});
}

constexpr DType kTypes[] = {DType::fp32, DType::bf16, DType::fp16, DType::fp64};
std::string named(DType t, const Shape& s) { return std::string(dtype_name(t)) + " " + s.str(); }

/// fp64 that takes exp or sums in parallel agrees in value only.
double exp_tolerance(DType t) { return t == DType::fp64 ? 1e-13 : 0.0; }

/// A GPU has an exp and a log of its own; kernels on the host have the CPU's.
double library_tolerance(DType t) {
    static const bool on_gpu = [] {
        std::string reason;
        return !cuda::list_devices(reason).empty();
    }();
    return !on_gpu ? 0.0 : t == DType::fp64 ? 1e-12 : t == DType::bf16 ? 1e-2 : 1e-3;
}

Tensor ints(std::int64_t n, std::uint64_t seed, std::int32_t below, std::int32_t least = 0) {
    Tensor t({n}, DType::int32);
    Draws draws(mix_key(seed, 0x1275), 0);
    for (std::int32_t& x : t.as<std::int32_t>())
        x = static_cast<std::int32_t>(draws.between(least, below - 1));
    return t;
}

/// Any bits at all: subnormals, Inf and NaN too.
Tensor any_bits(Shape shape, DType dtype, std::uint64_t seed) {
    Tensor t(shape, dtype);
    Draws draws(mix_key(seed, 0xb175), 0);
    for (std::int64_t i = 0; i < t.view.bytes(); ++i)
        t.view.data[i] = static_cast<std::byte>(draws.next_u32() >> 24);
    return t;
}

std::vector<std::int64_t> lengths(const Checker& c) {
    if (c.large) return {(std::int64_t{1} << 22) + 5};
    return {1, 31, 256, 1000};
}
std::vector<Shape> row_shapes(const Checker& c) {
    if (c.large) return {{4096, 1024}, {1000, 4096}, {777, 1283}};
    return {{1, 1}, {3, 127}, {17, 16}, {2, 3, 96}, {33, 1040}};
}

struct AddRowsArgs {
    TensorView sum;
    ConstTensorView x;
};
struct AddSquaresArgs {
    TensorView sum;
    ConstTensorView x;
    std::int64_t piece;
};
auto tensors(AddRowsArgs& a) { return std::tie(a.sum, a.x); }
auto tensors(AddSquaresArgs& a) { return std::tie(a.sum, a.x); }
void add_rows_op(const AddRowsArgs& a, const Exec& exec) { add_rows(a.sum, a.x, exec); }
void add_squares_op(const AddSquaresArgs& a, const Exec& exec) {
    sum_of_squares(a.sum, a.x, a.piece, exec);
}

// What a step adds up on the device instead of on the host.
void check_sums(Checker& c) {
    c.begin("add_rows");
    for (const Shape& s : row_shapes(c))
        for (const DType t : {DType::fp32, DType::fp64}) {
            const Tensor x = random_tensor(s, t, 3);
            both(c, add_rows_op, {.sum = random_tensor({x.view.cols()}, t, 4), .x = x},
                 named(t, s));
        }
    c.begin("sum_of_squares, added up");
    for (const Shape& s : row_shapes(c))
        for (const DType t : kTypes) {
            const Tensor x = random_tensor(s, t, 5, 1e-3), sum({kExactSumWords}, DType::int32);
            sum_of_squares(sum, random_tensor({64}, t, 6), 0, {});
            both(c, add_squares_op, {.sum = sum, .x = x, .piece = x.view.cols()}, named(t, s));
        }
}

void check_elementwise(Checker& c) {
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
    c.begin("sum_of_squares");
    for (const Shape& s : row_shapes(c))
        for (const DType t : kTypes)
            for (const std::int64_t piece : {s[s.rank - 1], std::int64_t{1}}) {
                const Tensor x = random_tensor(s, t, 5, 1e-3);
                ExactSum cpu_sum, sum;
                squares_op({&cpu_sum, x, piece}, {});
                run(squares_op, {&sum, x, piece}, c.exec);
                ++c.now().runs;
                c.now().values += x.view.numel();
                if (sum.limb == cpu_sum.limb && sum.nonfinite == cpu_sum.nonfinite) continue;
                ++c.now().differences;
                c.now().first = named(t, s);
            }
}

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

void check_quantize(Checker& c) {
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

void check_rms_norm_add(Checker& c) {
    c.begin("rms_norm_add");
    for (const Shape& s : row_shapes(c))
        for (const DType t : kTypes)
            for (const DType d : {t, wide_dtype(t)})
                for (const DType y : {t, wide_dtype(t)}) {
                    const Tensor x = random_tensor(s, t, 1), sum(s, t);
                    for (const TensorView& to : {sum.view, x.view})
                        both(c, rms_norm_add,
                             {.sum = to,
                              .y = Tensor(s, y),
                              .rstd = Tensor({s.numel() / s[s.rank - 1]}, wide_dtype(t)),
                              .x = x,
                              .delta = random_tensor(s, d, 2),
                              .weight = random_tensor({s[s.rank - 1]}, wide_dtype(t), 3)},
                             named(t, s));
                }
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
                    both(c, rms_norm_quantize,
                         {.codes = codes(),
                          .y = Tensor(s, t),
                          .rstd = Tensor({s[0]}, DType::fp32),
                          .nonfinite = flag,
                          .x = d_y,
                          .weight = random_tensor({s[1]}, DType::fp32, 7)},
                         where + " norm");
                }
}

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

struct SparseCase {
    std::int64_t batch, len, q_len, n_heads, n_kv_heads, dim, document, dense;
    KeyRule rule;
};
void check_importance_case(Checker& c, const SparseCase& s, DType t) {
    const DType wide = wide_dtype(t);
    const std::string where = named(t, {s.len, s.n_heads, s.n_kv_heads, s.dim});
    const Shape columns{s.batch, s.len, s.n_kv_heads}, keys{s.batch, s.len, s.n_kv_heads, s.dim},
        queries{s.batch, s.q_len, s.n_heads, s.dim};
    const Tensor key_begin = packed_documents(s.batch, s.len, s.document),
                 importance = random_tensor(columns, wide, 4),
                 expiry({s.batch, s.n_kv_heads, s.len}, DType::int32);
    both(c, select_keys,
         {.expiry = expiry, .importance = importance, .key_begin = key_begin, .rule = s.rule},
         where);
    Tensor dense_rows;
    if (s.dense > 0) {
        dense_rows = Tensor({s.batch, s.dense}, DType::int32);
        for (std::int64_t i = 0; i < s.batch * s.dense; ++i)
            dense_rows.as<std::int32_t>()[static_cast<std::size_t>(i)] =
                static_cast<std::int32_t>((i % s.dense + 1) * s.len / (s.dense + 1));
    }
    const Tensor q = random_tensor(queries, t, 1, 2.0), k = random_tensor(keys, t, 2, 2.0),
                 v = random_tensor(keys, t, 3), gate = random_gates(columns, wide, 5),
                 sink = random_tensor({s.n_heads}, wide, 6), out(queries, t),
                 lse({s.batch, s.n_heads, s.q_len}, wide);
    both(c, importance_attention_forward,
         {.out = out,
          .lse = lse,
          .q = q,
          .k = k,
          .v = v,
          .expiry = expiry,
          .key_begin = key_begin,
          .gate = gate,
          .sink_logit = sink,
          .dense_rows = dense_rows,
          .rule = s.rule,
          .scale = 0.3},
         where, library_tolerance(t));
    if (s.q_len < s.len) return;
    both(c, importance_attention_backward,
         {.d_q = Tensor(queries, t),
          .d_k = Tensor(keys, t),
          .d_v = Tensor(keys, t),
          .d_gate = Tensor(columns, wide),
          .d_sink = Tensor({s.batch, s.len, s.n_heads}, wide),
          .far_mass = s.dense > 0 ? Tensor(columns, wide).view : TensorView{},
          .d_out = random_tensor(queries, t, 9),
          .out = out,
          .lse = lse,
          .q = q,
          .k = k,
          .v = v,
          .expiry = expiry,
          .key_begin = key_begin,
          .gate = gate,
          .sink_logit = sink,
          .dense_rows = dense_rows,
          .rule = s.rule,
          .scale = 0.3},
         where + " backward", library_tolerance(t));
    both(c, importance_distil,
         {.d_importance = random_tensor(columns, wide, 7),
          .importance = importance,
          .key_begin = key_begin,
          .targets = ints(s.batch * s.len, 8, 3, -1),
          .rule = s.rule,
          .d_loss = 0.3},
         where + " distil", library_tolerance(t));
}

void check_importance(Checker& c) {
    c.begin("importance");
    for (const SparseCase& s :
         c.large ? std::vector<SparseCase>{{1, 4700, 4700, 2, 1, 40, 3100, 0, {200, 4, 50}}}
                 : std::vector<SparseCase>{{2, 7, 7, 4, 2, 8, 3, 0, {2, 1, 1}},
                                           {1, 150, 150, 2, 1, 32, 1000, 9, {20, 4, 5}},
                                           {2, 200, 200, 3, 3, 18, 90, 70, {16, 0, 0}},
                                           {1, 140, 60, 2, 2, 9, 110, 0, {8, 0, 40}},
                                           {1, 70, 70, 9, 1, 4, 50, 0, {5, 1, 3}},
                                           {1, 66, 66, 1, 1, 300, 60, 3, {5, 1, 3}}})
        for (const DType t : kTypes)
            check_importance_case(c, s, t);
    if (!c.large)  // queries of two chunks
        check_importance_case(c, {1, 2200, 2200, 1, 1, 2, 2150, 0, {20, 2, 4}}, DType::fp32);
    c.begin("importance_gate");
    for (const DType t : {DType::fp32, DType::fp64}) {
        const Tensor importance = random_tensor({70, 3}, t, 1, 20.0);
        both(c, importance_gate_forward,
             {.gate = Tensor({70, 3}, t),
              .importance = importance,
              .bias = random_tensor({3}, t, 2)},
             named(t, {70, 3}), library_tolerance(t));
        both(c, importance_gate_backward,
             {.d_gate = random_tensor({70, 3}, t, 3),
              .d_bias = random_tensor({3}, t, 4),
              .importance = importance},
             named(t, {70, 3}), library_tolerance(t));
    }
}

/// Rows [begin, begin + count) of (tokens, ...).
ConstTensorView rows_of(const Tensor& t, std::int64_t begin, std::int64_t count) {
    return t.view.empty() ? ConstTensorView{} : t.view.view().slice_rows(begin, count);
}
/// A sequence in parts of these lengths, over and over: of every fifth part only the keys.
/// step(begin, count, attends)
template <class Step>
void in_parts(std::int64_t len, const std::vector<std::int64_t>& parts, const Step& step) {
    std::size_t i = 0;
    for (std::int64_t begin = 0, count = 0; begin < len; begin += count, ++i) {
        count = std::min(parts[i % parts.size()], len - begin);
        step(begin, count, i % 5 != 3);
    }
}

struct CacheCase {
    std::int64_t len, n_heads, n_kv_heads, dim;
    KeyRule rule;
    std::vector<std::int64_t> parts;
    bool gated = true;
};
void check_importance_cache_case(Checker& c, const CacheCase& s, DType t) {
    const DType wide = wide_dtype(t);
    const Tensor q = random_tensor({s.len, s.n_heads, s.dim}, t, 1, 2.0),
                 k = random_tensor({s.len, s.n_kv_heads, s.dim}, t, 2, 2.0),
                 v = random_tensor({s.len, s.n_kv_heads, s.dim}, t, 3),
                 importance = random_tensor({s.len, s.n_kv_heads}, wide, 4),
                 gate = s.gated ? random_gates({s.len, s.n_kv_heads}, wide, 5) : Tensor{},
                 sink = s.gated ? random_tensor({s.n_heads}, wide, 6) : Tensor{};
    ImportanceCache on_cpu = make_importance_cache(s.rule, s.n_kv_heads, s.dim, t),
                    there = make_importance_cache(s.rule, s.n_kv_heads, s.dim, t, c.exec.device);
    in_parts(s.len, s.parts, [&](std::int64_t begin, std::int64_t count, bool attends) {
        const auto of = [&](const Tensor& x) { return rows_of(x, begin, count); };
        const ImportanceCacheKeys keys{of(k), of(v), of(gate), of(importance)};
        if (!attends) {
            importance_cache_append(on_cpu, keys, {});
            return run_append(there, keys, c.exec);
        }
        const Shape shape{count, s.n_heads, s.dim};
        const Tensor expected(shape, t), got(shape, t);
        ImportanceCacheArgs a{.out = expected,
                              .q = of(q),
                              .k = keys.k,
                              .v = keys.v,
                              .gate = keys.gate,
                              .importance = keys.importance,
                              .sink_logit = sink,
                              .scale = 0.3};
        importance_cache_attend(on_cpu, a, {});
        a.out = got;
        run_attend(there, a, c.exec);
        ++c.now().runs;
        compare_written(c.now(), got.view, expected.view, library_tolerance(t),
                        named(t, shape) + " at " + std::to_string(begin));
    });
}
void check_importance_cache(Checker& c) {
    c.begin("importance_cache");
    for (const CacheCase& s :
         c.large ? std::vector<CacheCase>{{3000, 8, 2, 64, {512, 4, 128}, {2000, 1, 1, 1, 60}}}
                 : std::vector<CacheCase>{{90, 4, 2, 18, {16, 2, 5}, {1, 7, 1, 33, 1, 1}},
                                          {70, 9, 1, 8, {8, 0, 7}, {40, 1, 1}, false},
                                          {50, 2, 2, 300, {5, 3, 0}, {1, 1, 20}},
                                          {40, 2, 1, 8, {300, 4, 8}, {1, 13}}})
        for (const DType t : kTypes)
            check_importance_cache_case(c, s, t);
}

struct TreeCase {
    std::int64_t batch, len, n_heads, n_kv_heads, dim, document;
    TreeRule rule;
};
void check_tree_case(Checker& c, const TreeCase& s, DType t) {
    const DType wide = wide_dtype(t);
    const std::string where = named(t, {s.len, s.n_heads, s.n_kv_heads, s.dim});
    const Shape columns{s.batch, s.len, s.n_kv_heads}, keys{s.batch, s.len, s.n_kv_heads, s.dim},
        queries{s.batch, s.len, s.n_heads, s.dim};
    const Tensor key_begin = packed_documents(s.batch, s.len, s.document),
                 q = random_tensor(queries, t, 1, 2.0), k = random_tensor(keys, t, 2, 2.0),
                 v = random_tensor(keys, t, 3), gate = random_gates(columns, wide, 5),
                 sink = random_tensor({s.n_heads}, wide, 6), out(queries, t),
                 lse({s.batch, s.n_heads, s.len}, wide),
                 selection({s.batch * s.n_kv_heads, s.len, tree_levels(s.rule, s.len),
                            tree_slots(s.rule)},
                           DType::int32);
    both(c, tree_attention_forward,
         {.out = out,
          .lse = lse,
          .selection = selection,
          .q = q,
          .k = k,
          .v = v,
          .key_begin = key_begin,
          .gate = gate,
          .sink_logit = sink,
          .rule = s.rule,
          .scale = 0.3},
         where, library_tolerance(t));
    both(c, tree_attention_backward,
         {.d_q = Tensor(queries, t),
          .d_k = Tensor(keys, t),
          .d_v = Tensor(keys, t),
          .d_gate = Tensor(columns, wide),
          .d_sink = Tensor({s.batch, s.len, s.n_heads}, wide),
          .d_out = random_tensor(queries, t, 9),
          .out = out,
          .lse = lse,
          .selection = selection,
          .q = q,
          .k = k,
          .v = v,
          .key_begin = key_begin,
          .gate = gate,
          .sink_logit = sink,
          .rule = s.rule,
          .scale = 0.3},
         where + " backward", library_tolerance(t));
}

struct TreeCacheCase {
    std::int64_t len, n_heads, n_kv_heads, dim;
    TreeRule rule;
    std::vector<std::int64_t> parts;
    bool gated = true;
};
void check_tree_cache_case(Checker& c, const TreeCacheCase& s, DType t) {
    const DType wide = wide_dtype(t);
    const Tensor q = random_tensor({s.len, s.n_heads, s.dim}, t, 1, 2.0),
                 k = random_tensor({s.len, s.n_kv_heads, s.dim}, t, 2, 2.0),
                 v = random_tensor({s.len, s.n_kv_heads, s.dim}, t, 3),
                 gate = s.gated ? random_gates({s.len, s.n_kv_heads}, wide, 5) : Tensor{},
                 sink = s.gated ? random_tensor({s.n_heads}, wide, 6) : Tensor{};
    const std::int64_t capacity = s.len + 20;
    TreeCache on_cpu = make_tree_cache(s.rule, s.n_kv_heads, s.dim, capacity, t),
              there = make_tree_cache(s.rule, s.n_kv_heads, s.dim, capacity, t, c.exec.device);
    in_parts(s.len, s.parts, [&](std::int64_t begin, std::int64_t count, bool attends) {
        const auto of = [&](const Tensor& x) { return rows_of(x, begin, count); };
        tree_cache_append(on_cpu, of(k), of(v), of(gate), {});
        run_append(there, {of(k), of(v), of(gate)}, c.exec);
        if (!attends) return;
        const Shape shape{count, s.n_heads, s.dim};
        const Tensor expected(shape, t), got(shape, t);
        TreeCacheAttendArgs a{
            .out = expected, .q = of(q), .sink_logit = sink, .begin = begin, .scale = 0.3};
        tree_cache_attend(on_cpu, a, {});
        a.out = got;
        run_attend(there, a, c.exec);
        ++c.now().runs;
        compare_written(c.now(), got.view, expected.view, library_tolerance(t),
                        named(t, shape) + " at " + std::to_string(begin));
    });
}
void check_tree_cache(Checker& c) {
    c.begin("tree_cache");
    for (const TreeCacheCase& s :
         c.large
             ? std::vector<TreeCacheCase>{{4000, 8, 2, 64, {512, 64, 8, 4, 4}, {3000, 1, 1, 1, 60}}}
             : std::vector<TreeCacheCase>{{120, 4, 2, 18, {16, 8, 3, 2, 4}, {1, 31, 1, 17, 1, 1}},
                                          {80, 9, 1, 5, {4, 1, 2, 3, 1}, {50, 1}, false},
                                          {90, 1, 1, 300, {6, 3, 9, 2, 0}, {1, 1, 40}}})
        for (const DType t : kTypes)
            check_tree_cache_case(c, s, t);
}

void check_tree(Checker& c) {
    c.begin("tree");
    for (const TreeCase& s :
         c.large ? std::vector<TreeCase>{{1, 3000, 2, 1, 40, 2200, {128, 16, 8, 4, 4}}}
                 : std::vector<TreeCase>{{2, 30, 4, 2, 8, 17, {4, 2, 2, 1, 1}},
                                         {1, 200, 2, 1, 16, 1000, {16, 4, 3, 2, 4}},
                                         {1, 130, 1, 1, 18, 1000, {8, 8, 2, 3, 0}},
                                         {2, 70, 4, 2, 8, 50, {8, 1, 4, 2, 1}},
                                         {1, 150, 9, 1, 4, 140, {12, 6, 9, 2, 3}},
                                         {1, 80, 2, 1, 300, 70, {10, 5, 2, 2, 5}}})
        for (const DType t : kTypes)
            if (s.len < 100 || t == DType::fp32 || t == DType::bf16) check_tree_case(c, s, t);
}

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

struct AttentionCase {
    std::int64_t batch, q_len, k_len, n_heads, n_kv_heads, dim, document;
    bool causal() const { return q_len == k_len; }
};

/// Sums in another order, and the library's p and d_s in the elements' type: compared in value.
template <class Forward, class Backward>
void check_attention_case(Checker& c, const AttentionCase& s, DType t, Forward forward,
                          Backward backward) {
    const Shape queries{s.batch, s.q_len, s.n_heads, s.dim},
        keys{s.batch, s.k_len, s.n_kv_heads, s.dim}, rows{s.batch, s.n_heads, s.q_len};
    const double tolerance = t == DType::fp64   ? 1e-12
                             : t == DType::fp32 ? 1e-5
                             : t == DType::fp16 ? 3e-3
                                                : 2e-2;
    const Tensor begin({s.batch * s.q_len}, DType::int32), end({s.batch * s.q_len}, DType::int32);
    for (std::int64_t r = 0; r < s.batch * s.q_len; ++r) {
        const std::int64_t key = s.k_len - s.q_len + r % s.q_len, b = r / s.q_len;
        const std::int64_t start =
            std::max<std::int64_t>(0, (key + b) / s.document * s.document - b);
        begin.as<std::int32_t>()[static_cast<std::size_t>(r)] = static_cast<std::int32_t>(start);
        end.as<std::int32_t>()[static_cast<std::size_t>(r)] = static_cast<std::int32_t>(key + 1);
    }
    AttentionArgs a{.out = {},
                    .lse = {},
                    .key_begin = begin,
                    .key_end = end,
                    .scale = 1.0 / std::sqrt(static_cast<double>(s.dim)),
                    .causal = s.causal()};
    const Tensor out(queries, t), lse(rows, wide_dtype(t)), d_out = random_tensor(queries, t, 9);
    const Tensor q = random_tensor(queries, t, 1, 2.0), k = random_tensor(keys, t, 2, 2.0),
                 v = random_tensor(keys, t, 3);
    a.out = out, a.lse = lse, a.q = q, a.k = k, a.v = v;
    both(c, forward, a, named(t, queries), tolerance);
    attention_forward(a, {});
    both(c, backward,
         {.d_q = Tensor(queries, t),
          .d_k = Tensor(keys, t),
          .d_v = Tensor(keys, t),
          .d_out = d_out,
          .out = out,
          .lse = lse,
          .q = q,
          .k = k,
          .v = v,
          .key_begin = begin,
          .key_end = end,
          .scale = a.scale,
          .causal = a.causal},
         named(t, queries) + " backward", tolerance);
}

void check_own_attention(Checker& c) {
    c.begin("attention");
    for (const AttentionCase& s : c.large
                                      ? std::vector<AttentionCase>{{2, 300, 300, 8, 2, 128, 200}}
                                      : std::vector<AttentionCase>{{2, 7, 7, 4, 2, 8, 3},
                                                                   {2, 70, 70, 2, 1, 34, 50},
                                                                   {1, 40, 40, 2, 2, 256, 100},
                                                                   {2, 3, 100, 4, 1, 20, 70}})
        for (const DType t : kTypes)
            check_attention_case(c, s, t, own_attention, own_attention_gradient);
}

/// On a GPU cuDNN, on the host its graphs' operations.
void check_library_attention(Checker& c) {
    c.begin("attention by cuDNN");
    const std::vector<AttentionCase> cases =
        c.large
            ? std::vector<AttentionCase>{{2, 256, 256, 4, 1, 128, 200}}
            : std::vector<AttentionCase>{{2, 130, 130, 4, 2, 64, 50}, {1, 64, 64, 2, 2, 8, 100}};
    for (const AttentionCase& s : cases)
        for (const DType t : {DType::bf16, DType::fp16})
            check_attention_case(c, s, t, library_attention,
                                 library_attention_gradient<cuda::kSdpaScoreBytes>);
}

}  // namespace

std::vector<KernelCheck> check_kernels(const Exec& exec, bool large, bool library) {
    Checker c{exec, large, {}};
    check_elementwise(c);
    check_sums(c);
    check_rms_norm(c);
    check_rope_and_swiglu(c);
    check_quantize(c);
    check_quantization_loss(c);
    check_rms_norm_add(c);
    check_fused_quantize(c);
    check_embedding(c);
    check_cross_entropy(c);
    check_adamw(c);
    check_random_normal(c);
    check_own_attention(c);
    check_importance(c);
    check_importance_cache(c);
    check_tree(c);
    check_tree_cache(c);
    if (library) check_matmul(c);
    if (library) check_library_attention(c);
    return c.all;
}

}  // namespace stoa::test
