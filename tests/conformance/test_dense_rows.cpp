// The importance attention whose dense rows see all keys, and what importance learns from them,
// against their definitions.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/core/philox.h"
#include "kernels/core/thread_pool.h"
#include "kernels/importance_attention.h"
#include "kernels/importance_distil.h"
#include "tests/conformance/conformance.h"
#include "tests/support/attention_cases.h"
#include "tests/support/execs.h"

using namespace stoa;
using namespace stoa::test;

namespace {

struct Case {
    std::int64_t batch, len, n_heads, n_kv_heads, dim, document, rows;  // rows: dense ones
    KeyRule rule;
    Shape queries() const { return {batch, len, n_heads, dim}; }
    Shape keys() const { return {batch, len, n_kv_heads, dim}; }
    Shape gates() const { return {batch, len, n_kv_heads}; }
    Shape lse() const { return {batch, n_heads, len}; }
};
// Several tiles and columns, documents that begin within them; groups, one row, all rows.
const std::vector<Case> kCases = {{1, 1, 1, 1, 2, 100, 1, {4, 0, 2}},
                                  {2, 40, 4, 2, 8, 13, 9, {4, 1, 2}},
                                  {2, 150, 2, 1, 32, 1000, 30, {20, 4, 5}},
                                  {1, 130, 3, 3, 18, 90, 130, {16, 0, 3}},
                                  {1, 700, 2, 1, 4, 400, 330, {30, 4, 9}}};

struct Inputs {
    Tensor q, k, v, gate, sink_logit, key_begin, expiry, dense_rows;
    KeyRule rule;
    double scale;
    Exec exec{};
};

Tensor draw_rows(const Case& s) {
    Tensor rows({s.batch, s.rows}, DType::int32);
    for (std::int64_t b = 0; b < s.batch; ++b) {
        const auto row = rows.view.row<std::int32_t>(b);
        for (std::size_t i = 0; i < row.size(); ++i)
            row[i] = static_cast<std::int32_t>(
                permute(77 + static_cast<std::uint64_t>(b), static_cast<std::uint64_t>(s.len), i));
        std::ranges::sort(row);
    }
    return rows;
}

Inputs make_inputs(const Case& s, DType dtype, const Exec& exec = {}) {
    const DType wide = wide_dtype(dtype);
    Inputs in{.q = random_tensor(s.queries(), dtype, 1, 2.0),
              .k = random_tensor(s.keys(), dtype, 2, 2.0),
              .v = random_tensor(s.keys(), dtype, 3),
              .gate = random_gates(s.gates(), wide, 5),
              .sink_logit = random_tensor({s.n_heads}, wide, 6),
              .key_begin = packed_documents(s.batch, s.len, s.document),
              .expiry = Tensor({s.batch, s.n_kv_heads, s.len}, DType::int32),
              .dense_rows = draw_rows(s),
              .rule = s.rule,
              .scale = 1.0 / std::sqrt(static_cast<double>(s.dim)),
              .exec = exec};
    select_keys({.expiry = in.expiry,
                 .importance = random_tensor(s.gates(), wide, 4),
                 .key_begin = in.key_begin,
                 .rule = in.rule},
                {});
    return in;
}

/// p (batch, n_heads, len, len) straight from the rule, with out and lse.
struct Reference {
    std::vector<double> out, lse, far_mass;
};
Reference dense_rows_float64(const Case& s, const Inputs& in) {
    const auto q = to_double(in.q), k = to_double(in.k), v = to_double(in.v),
               gate = to_double(in.gate), sink = to_double(in.sink_logit);
    const auto begins = in.key_begin.as<std::int32_t>(), expiry = in.expiry.as<std::int32_t>();
    Reference r{std::vector<double>(q.size()),
                std::vector<double>(static_cast<std::size_t>(s.lse().numel())),
                std::vector<double>(static_cast<std::size_t>(s.gates().numel()))};
    const auto at = [](std::int64_t i) { return static_cast<std::size_t>(i); };
    for (std::int64_t b = 0; b < s.batch; ++b)
        for (std::int64_t h = 0; h < s.n_heads; ++h)
            for (std::int64_t t = 0; t < s.len; ++t) {
                const std::int64_t g = h / (s.n_heads / s.n_kv_heads),
                                   begin = begins[at(b * s.len + t)];
                const bool dense = std::ranges::binary_search(
                    in.dense_rows.view.row<std::int32_t>(b), static_cast<std::int32_t>(t));
                const std::size_t row = at(((b * s.len + t) * s.n_heads + h) * s.dim);
                std::vector<double> p(at(s.len));
                double sum = std::exp(sink[at(h)]);
                for (std::int64_t x = begin; x <= t; ++x) {
                    if (!dense && t >= expiry[at((b * s.n_kv_heads + g) * s.len + x)]) continue;
                    const std::size_t key = at((b * s.len + x) * s.n_kv_heads + g);
                    double z = 0.0;
                    for (std::size_t c = 0; c < at(s.dim); ++c)
                        z += in.scale * q[row + c] * k[key * at(s.dim) + c];
                    if (x - begin >= s.rule.sinks)
                        z += std::min(1.0, double(t - x) / double(s.rule.window)) * gate[key];
                    p[at(x)] = std::exp(z);
                    sum += p[at(x)];
                }
                r.lse[at((b * s.n_heads + h) * s.len + t)] = std::log(sum);
                for (std::int64_t x = begin; x <= t; ++x) {
                    const std::size_t key = at((b * s.len + x) * s.n_kv_heads + g);
                    for (std::size_t c = 0; c < at(s.dim); ++c)
                        r.out[row + c] += p[at(x)] / sum * v[key * at(s.dim) + c];
                    if (dense && t - x >= s.rule.window) r.far_mass[key] += p[at(x)] / sum;
                }
            }
    return r;
}

void forward(TensorView out, TensorView lse, const Inputs& in) {
    run(importance_attention_forward,
        {.out = out,
         .lse = lse,
         .q = in.q,
         .k = in.k,
         .v = in.v,
         .expiry = in.expiry,
         .key_begin = in.key_begin,
         .gate = in.gate,
         .sink_logit = in.sink_logit,
         .dense_rows = in.dense_rows,
         .rule = in.rule,
         .scale = in.scale},
        in.exec);
}

struct Gradients {
    Tensor out, lse;
    PoisonedTensor d_q, d_k, d_v, d_gate, d_sink, far_mass;
    std::vector<std::byte> bytes() const {
        std::vector<std::byte> all = bytes_of(out);
        for (const PoisonedTensor* t : {&d_q, &d_k, &d_v, &d_gate, &d_sink, &far_mass})
            std::ranges::copy(bytes_of(*t), std::back_inserter(all));
        return all;
    }
    std::vector<double> d_sink_logit() const {
        std::vector<double> sums(static_cast<std::size_t>(d_sink.view.shape[2]));
        const auto values = to_double(d_sink);
        for (std::size_t i = 0; i < values.size(); ++i)
            sums[i % sums.size()] += values[i];
        return sums;
    }
};
Gradients backward(const Case& s, const Inputs& in, const Tensor& d_out) {
    const DType dtype = in.q.view.dtype, wide = wide_dtype(dtype);
    Gradients g{Tensor(s.queries(), dtype),
                Tensor(s.lse(), wide),
                poisoned_tensor(s.queries(), dtype),
                poisoned_tensor(s.keys(), dtype),
                poisoned_tensor(s.keys(), dtype),
                poisoned_tensor(s.gates(), wide),
                poisoned_tensor({s.batch, s.len, s.n_heads}, wide),
                poisoned_tensor(s.gates(), wide)};
    forward(g.out, g.lse, in);
    run(importance_attention_backward,
        {.d_q = g.d_q,
         .d_k = g.d_k,
         .d_v = g.d_v,
         .d_gate = g.d_gate,
         .d_sink = g.d_sink,
         .far_mass = in.dense_rows.view.empty() ? TensorView{} : TensorView(g.far_mass),
         .d_out = d_out,
         .out = g.out,
         .lse = g.lse,
         .q = in.q,
         .k = in.k,
         .v = in.v,
         .expiry = in.expiry,
         .key_begin = in.key_begin,
         .gate = in.gate,
         .sink_logit = in.sink_logit,
         .dense_rows = in.dense_rows,
         .rule = in.rule,
         .scale = in.scale},
        in.exec);
    for (const PoisonedTensor* t : {&g.d_q, &g.d_k, &g.d_v, &g.d_gate, &g.d_sink, &g.far_mass})
        CHECK(t->guards_intact());
    return g;
}

}  // namespace

TEST_CASE("dense rows see all keys, the others what they see without, against float64") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const DType dtype = GENERATE(DType::fp32, DType::bf16, DType::fp64);
    for (const Case& s : kCases) {
        const Inputs in = make_inputs(s, dtype, exec);
        const Reference expected = dense_rows_float64(s, in);
        const PoisonedTensor out = poisoned_tensor(s.queries(), dtype);
        const PoisonedTensor lse = poisoned_tensor(s.lse(), wide_dtype(dtype));
        forward(out, lse, in);
        const Gradients g = backward(s, in, random_tensor(s.queries(), dtype, 9));
        CAPTURE(dtype_name(dtype), s.len, s.dim, s.rule.window);
        CHECK(relative_error(to_double(out), expected.out) < tolerance(dtype));
        CHECK(relative_error(to_double(lse), expected.lse) < tolerance(wide_dtype(dtype)));
        CHECK(relative_error(to_double(g.far_mass), expected.far_mass) <
              tolerance(wide_dtype(dtype)));
        CHECK(out.guards_intact());
        CHECK(lse.guards_intact());
    }
}

TEST_CASE("the gradient with dense rows meets central differences of the forward in fp64") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const Case s =
        GENERATE(Case{2, 20, 4, 2, 4, 9, 6, {3, 1, 1}}, Case{1, 75, 2, 1, 2, 40, 20, {6, 2, 3}},
                 Case{1, 70, 2, 2, 2, 1000, 70, {9, 0, 4}});
    Inputs in = make_inputs(s, DType::fp64, exec);
    const Tensor d_out = random_tensor(s.queries(), DType::fp64, 9);
    const Gradients g = backward(s, in, d_out);
    in.exec = {};  // the forwards that are many
    const Tensor out(s.queries(), DType::fp64), lse(s.lse(), DType::fp64);
    const auto loss = [&] {
        forward(out, lse, in);
        return weighted_sum(out, d_out);
    };
    const auto error = [&](const std::vector<double>& gradient, const Tensor& of) {
        return relative_error(gradient, central_differences(of, loss));
    };
    CAPTURE(s.batch, s.len);
    CHECK(error(to_double(g.d_q), in.q) < kDifferenceTolerance);
    CHECK(error(to_double(g.d_k), in.k) < kDifferenceTolerance);
    CHECK(error(to_double(g.d_v), in.v) < kDifferenceTolerance);
    CHECK(error(to_double(g.d_gate), in.gate) < kDifferenceTolerance);
    CHECK(error(g.d_sink_logit(), in.sink_logit) < kDifferenceTolerance);
}

TEST_CASE("the gradient with dense rows in fp32 and bf16 meets fp64") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const DType dtype = GENERATE(DType::fp32, DType::bf16);
    for (const Case& s : kCases) {
        const Inputs in = make_inputs(s, dtype, exec);
        const Tensor d_out = random_tensor(s.queries(), dtype, 9);
        const auto widened = [](const Tensor& t) {
            Tensor wide(t.view.shape, DType::fp64);
            std::ranges::copy(to_double(t), wide.as<double>().begin());
            return wide;
        };
        const Inputs wide_in{widened(in.q),
                             widened(in.k),
                             widened(in.v),
                             widened(in.gate),
                             widened(in.sink_logit),
                             copy_of(in.key_begin),
                             copy_of(in.expiry),
                             copy_of(in.dense_rows),
                             in.rule,
                             in.scale};
        const Gradients g = backward(s, in, d_out), wide = backward(s, wide_in, widened(d_out));
        const double allowed = dtype == DType::bf16 ? 3e-2 : 1e-4;
        CAPTURE(dtype_name(dtype), s.len, s.dim, s.rule.window);
        CHECK(relative_error(to_double(g.d_q), to_double(wide.d_q)) < allowed);
        CHECK(relative_error(to_double(g.d_k), to_double(wide.d_k)) < allowed);
        CHECK(relative_error(to_double(g.d_v), to_double(wide.d_v)) < allowed);
        CHECK(relative_error(to_double(g.d_gate), to_double(wide.d_gate)) < allowed);
        CHECK(relative_error(to_double(g.d_sink), to_double(wide.d_sink)) < allowed);
    }
}

TEST_CASE("all rows dense is a selection that keeps everything") {
    const Case s{2, 150, 4, 2, 8, 60, 150, {12, 2, 5}};
    Inputs in = make_inputs(s, DType::fp64);
    const Tensor d_out = random_tensor(s.queries(), DType::fp64, 9);
    const Gradients dense = backward(s, in, d_out);
    in.dense_rows = Tensor{};
    in.rule.keep = s.len;
    select_keys({.expiry = in.expiry,
                 .importance = random_tensor(s.gates(), DType::fp64, 4),
                 .key_begin = in.key_begin,
                 .rule = in.rule},
                {});
    const Gradients kept = backward(s, in, d_out);
    CHECK(relative_error(to_double(dense.out), to_double(kept.out)) < 1e-12);
    CHECK(relative_error(to_double(dense.lse), to_double(kept.lse)) < 1e-12);
    CHECK(relative_error(to_double(dense.d_q), to_double(kept.d_q)) < 1e-11);
    CHECK(relative_error(to_double(dense.d_k), to_double(kept.d_k)) < 1e-11);
    CHECK(relative_error(to_double(dense.d_v), to_double(kept.d_v)) < 1e-11);
    CHECK(relative_error(to_double(dense.d_gate), to_double(kept.d_gate)) < 1e-11);
    CHECK(relative_error(to_double(dense.d_sink), to_double(kept.d_sink)) < 1e-11);
}

TEST_CASE("dense rows change no bit of the other rows, and have their own whoever is dense") {
    const Case s{1, 300, 2, 1, 8, 170, 90, {12, 2, 5}};
    Inputs in = make_inputs(s, DType::fp32);
    const Tensor out(s.queries(), DType::fp32), lse(s.lse(), DType::fp32), few = copy_of(out),
                                                                           none = copy_of(out);
    forward(out, lse, in);
    const Tensor all_rows = std::move(in.dense_rows);
    const auto dense = all_rows.view.row<std::int32_t>(0);
    in.dense_rows = Tensor({1, 1}, DType::int32);
    const std::int32_t alone = in.dense_rows.as<std::int32_t>()[0] = dense[50];
    forward(few, lse, in);
    in.dense_rows = Tensor{};
    forward(none, lse, in);
    const auto row = [](const Tensor& t, std::int64_t i) {
        return bytes_of(t.view.reshaped({300, 16}).slice_rows(i, 1));
    };
    CHECK(row(out, alone) == row(few, alone));
    int differ = 0;
    for (std::int64_t t = 0; t < s.len; ++t)
        if (std::ranges::binary_search(dense, static_cast<std::int32_t>(t)))
            differ += row(out, t) != row(none, t);
        else
            CHECK(row(out, t) == row(none, t));
    CHECK(differ > 60);
}

TEST_CASE("dense rows have the same bits on any instruction set and any number of threads") {
    const DType dtype = GENERATE(DType::fp32, DType::bf16);
    for (const Case& s : {Case{2, 300, 4, 2, 24, 170, 80, {40, 4, 12}},
                          Case{1, 1300, 1, 1, 8, 5000, 400, {70, 4, 12}}}) {
        const Inputs in = make_inputs(s, dtype);
        const Tensor d_out = random_tensor(s.queries(), dtype, 9);
        check_same_bits([&] { return backward(s, in, d_out).bytes(); });
        const auto one = backward(s, in, d_out).bytes();
        for (const int threads : {2, 3}) {
            set_cpu_threads(threads);
            const auto many = backward(s, in, d_out).bytes();
            set_cpu_threads(1);
            CHECK(many == one);
        }
    }
}

TEST_CASE("dense rows let no NaN or infinity through from what they do not see") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const Case s{1, 300, 2, 1, 8, 100, 120, {12, 2, 6}};
    const auto poison =
        GENERATE(std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity());
    Inputs in = make_inputs(s, DType::fp32, exec);
    Tensor d_out = random_tensor(s.queries(), DType::fp32, 9);
    const auto results = [&] {
        const Gradients g = backward(s, in, d_out);
        return std::vector{bytes_of(g.out.view.reshaped({300, 16}).slice_rows(100, 70)),
                           bytes_of(g.d_q.view.reshaped({300, 16}).slice_rows(100, 70)),
                           bytes_of(g.d_k.view.reshaped({300, 8}).slice_rows(200, 100)),
                           bytes_of(g.d_v.view.reshaped({300, 8}).slice_rows(200, 100)),
                           bytes_of(g.d_gate.view.reshaped({300, 1}).slice_rows(200, 100)),
                           bytes_of(g.far_mass.view.reshaped({300, 1}).slice_rows(200, 100))};
    };
    const auto clean = results();
    for (const std::int64_t row : {99, 170, 199}) {
        for (const Tensor* t : {&in.k, &in.v})
            for (float& x : t->view.reshaped({300, 8}).row<float>(row))
                x = poison;
        for (const Tensor* t : {&in.q, &d_out})
            for (float& x : t->view.reshaped({300, 16}).row<float>(row))
                x = poison;
    }
    const auto poisoned = results();
    for (std::size_t i = 0; i < clean.size(); ++i) {
        CAPTURE(i);
        CHECK(poisoned[i] == clean[i]);
    }
}

namespace {

// The divergence of every document and kv head, straight from its definition.
double distil_loss(const Case& s, const std::vector<double>& mass, const Tensor& importance,
                   const Tensor& key_begin, const Tensor& targets) {
    const auto u = importance.as<double>();
    const auto begins = key_begin.as<std::int32_t>(), target = targets.as<std::int32_t>();
    const auto at = [](std::int64_t i) { return static_cast<std::size_t>(i); };
    double loss = 0.0;
    for (std::int64_t b = 0; b < s.batch; ++b)
        for (std::int64_t begin = 0, end = 0; begin < s.len; begin = end) {
            double count = 0.0;
            for (; end < s.len && begins[at(b * s.len + end)] == begin; ++end)
                count += target[at(b * s.len + end)] >= 0 ? 1.0 : 0.0;
            for (std::int64_t g = 0; g < s.n_kv_heads; ++g) {
                double sum_mass = 0.0, sum_exp = 0.0;
                const auto over = [&](const auto& fn) {
                    for (std::int64_t x = begin + s.rule.sinks; x < end - s.rule.window; ++x)
                        fn(at((b * s.len + x) * s.n_kv_heads + g));
                };
                over([&](std::size_t i) { sum_mass += mass[i], sum_exp += std::exp(u[i]); });
                over([&](std::size_t i) {
                    const double p = sum_mass > 0.0 ? mass[i] / sum_mass : 0.0;
                    if (p > 0.0) loss += count * p * std::log(p / (std::exp(u[i]) / sum_exp));
                });
            }
        }
    return loss;
}

}  // namespace

TEST_CASE("what importance learns meets central differences of the divergence in fp64") {
    const Exec exec = GENERATE(from_range(available_execs()));
    // Documents with and without far keys, some without targets.
    const Case s =
        GENERATE(Case{2, 60, 4, 2, 4, 25, 30, {5, 2, 3}}, Case{1, 60, 2, 1, 4, 4, 30, {5, 2, 3}});
    const Inputs in = make_inputs(s, DType::fp64);
    const auto mass = dense_rows_float64(s, in).far_mass;
    const Tensor importance = random_tensor(s.gates(), DType::fp64, 11, 3.0);
    Tensor targets({s.batch * s.len}, DType::int32);
    for (std::size_t i = 0; i < targets.as<std::int32_t>().size(); ++i)
        targets.as<std::int32_t>()[i] = i % 3 == 0 && i > 25 ? 1 : -1;
    const PoisonedTensor d = poisoned_tensor(s.gates(), DType::fp64);
    std::ranges::copy(mass, d.view.as<double>().begin());
    constexpr double kDLoss = 0.3;
    run(importance_distil,
        {.d_importance = d,
         .importance = importance,
         .key_begin = in.key_begin,
         .targets = targets,
         .rule = in.rule,
         .d_loss = kDLoss},
        exec);
    const auto loss = [&] {
        return kDLoss * distil_loss(s, mass, importance, in.key_begin, targets);
    };
    const auto gradient = to_double(d), expected = central_differences(importance, loss);
    if (s.document > s.rule.window)
        CHECK(relative_error(gradient, expected) < kDifferenceTolerance);
    else  // no token ever leaves a window
        CHECK(std::ranges::all_of(gradient, [](double x) { return x == 0.0; }));
    CHECK(d.guards_intact());
}

TEST_CASE("dense rows that are no tokens in ascending order are refused") {
    const Case s{1, 20, 2, 1, 4, 100, 3, {4, 1, 2}};
    Inputs in = make_inputs(s, DType::fp32);
    const Tensor out(s.queries(), DType::fp32), lse(s.lse(), DType::fp32);
    const auto rows = in.dense_rows.as<std::int32_t>();
    for (const std::vector<std::int32_t>& wrong :
         {std::vector<std::int32_t>{3, 3, 4}, {5, 4, 6}, {-1, 2, 3}, {1, 2, 20}}) {
        std::ranges::copy(wrong, rows.begin());
        CHECK_THROWS_AS(forward(out, lse, in), ShapeError);
    }
    in.dense_rows = Tensor({2, 3}, DType::int32);
    CHECK_THROWS_AS(forward(out, lse, in), ShapeError);
}
