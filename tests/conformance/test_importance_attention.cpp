// Selection by expiry times and attention over what it selects, against their definitions.
#include <algorithm>
#include <functional>
#include <limits>
#include <set>

#include "kernels/attention.h"
#include "kernels/core/thread_pool.h"
#include "kernels/importance_attention.h"
#include "tests/conformance/conformance.h"
#include "tests/support/execs.h"

using namespace stoa;
using namespace stoa::test;

namespace {

struct Case {
    std::int64_t batch, len, n_heads, n_kv_heads, dim, document;  // tokens per document
    KeyRule rule;
};

Tensor make_key_begin(const Case& s) {
    std::vector<std::int32_t> begin;
    for (std::int64_t b = 0; b < s.batch; ++b)
        for (std::int64_t t = 0; t < s.len; ++t)
            begin.push_back(static_cast<std::int32_t>(
                std::max<std::int64_t>(0, (t + b) / s.document * s.document - b)));
    return int_tensor(begin);
}

struct Inputs {
    Tensor q, k, v, importance, gate, sink_logit, key_begin, expiry;
    KeyRule rule;
    double scale;
    Exec exec{};
};

void select(Inputs& in) {
    run(select_keys,
        {.expiry = in.expiry,
         .importance = in.importance,
         .key_begin = in.key_begin,
         .rule = in.rule},
        in.exec);
}

Inputs make_inputs(const Case& s, DType dtype, const Exec& exec = {}) {
    const DType wide = wide_dtype(dtype);
    Inputs in{random_tensor({s.batch, s.len, s.n_heads, s.dim}, dtype, 1, 2.0),
              random_tensor({s.batch, s.len, s.n_kv_heads, s.dim}, dtype, 2, 2.0),
              random_tensor({s.batch, s.len, s.n_kv_heads, s.dim}, dtype, 3),
              random_tensor({s.batch, s.len, s.n_kv_heads}, wide, 4),
              random_tensor({s.batch, s.len, s.n_kv_heads}, wide, 5, 3.0),
              random_tensor({s.n_heads}, wide, 6),
              make_key_begin(s),
              Tensor({s.batch, s.n_kv_heads, s.len}, DType::int32),
              s.rule,
              1.0 / std::sqrt(static_cast<double>(s.dim)),
              exec};
    select(in);
    return in;
}

/// What query t of a document that begins at `begin` sees, straight from the rule.
std::set<std::int64_t> seen_by(std::int64_t t, std::int64_t begin, const KeyRule& rule,
                               const std::function<double(std::int64_t)>& importance) {
    std::set<std::int64_t> seen;
    std::vector<std::int64_t> candidates;
    for (std::int64_t s = begin; s <= t; ++s) {
        if (s - begin < rule.sinks || t - s < rule.window)
            seen.insert(s);
        else
            candidates.push_back(s);
    }
    const auto value = [&](std::int64_t s) {
        const double u = importance(s);
        return std::isnan(u) ? -std::numeric_limits<double>::infinity() : u;
    };
    std::ranges::stable_sort(candidates,
                             [&](std::int64_t a, std::int64_t b) { return value(a) > value(b); });
    for (std::int64_t i = 0; i < std::min<std::int64_t>(rule.keep, std::ssize(candidates)); ++i)
        seen.insert(candidates[static_cast<std::size_t>(i)]);
    return seen;
}

struct Reference {
    std::vector<double> out, lse;
};
Reference importance_attention_float64(const Case& s, const Inputs& in) {
    const auto q = to_double(in.q), k = to_double(in.k), v = to_double(in.v),
               u = to_double(in.importance), gate = to_double(in.gate),
               sink = to_double(in.sink_logit);
    const auto begins = in.key_begin.as<std::int32_t>();
    Reference r{std::vector<double>(q.size()),
                std::vector<double>(static_cast<std::size_t>(s.batch * s.n_heads * s.len))};
    for (std::int64_t b = 0; b < s.batch; ++b)
        for (std::int64_t h = 0; h < s.n_heads; ++h)
            for (std::int64_t t = 0; t < s.len; ++t) {
                const std::int64_t g = h / (s.n_heads / s.n_kv_heads);
                const std::int64_t begin = begins[static_cast<std::size_t>(b * s.len + t)];
                const auto of_key = [&](std::int64_t key) {
                    return static_cast<std::size_t>((b * s.len + key) * s.n_kv_heads + g);
                };
                const auto row =
                    static_cast<std::size_t>(((b * s.len + t) * s.n_heads + h) * s.dim);
                double sum = std::exp(sink[static_cast<std::size_t>(h)]);
                for (const std::int64_t key :
                     seen_by(t, begin, s.rule, [&](std::int64_t x) { return u[of_key(x)]; })) {
                    const auto at = of_key(key) * static_cast<std::size_t>(s.dim);
                    double z = 0.0;
                    for (std::size_t c = 0; c < static_cast<std::size_t>(s.dim); ++c)
                        z += q[row + c] * k[at + c];
                    z *= in.scale;
                    if (key - begin >= s.rule.sinks)
                        z += std::min(1.0, static_cast<double>(t - key) /
                                               static_cast<double>(s.rule.window)) *
                             gate[of_key(key)];
                    sum += std::exp(z);
                    for (std::size_t c = 0; c < static_cast<std::size_t>(s.dim); ++c)
                        r.out[row + c] += std::exp(z) * v[at + c];
                }
                for (std::size_t c = 0; c < static_cast<std::size_t>(s.dim); ++c)
                    r.out[row + c] /= sum;
                r.lse[static_cast<std::size_t>((b * s.n_heads + h) * s.len + t)] = std::log(sum);
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
         .rule = in.rule,
         .scale = in.scale},
        in.exec);
}

Shape lse_shape(const Case& s) { return {s.batch, s.n_heads, s.len}; }

struct Gradients {
    PoisonedTensor d_q, d_k, d_v, d_gate, d_sink;
    std::vector<std::byte> bytes() const {
        std::vector<std::byte> all;
        for (const PoisonedTensor* t : {&d_q, &d_k, &d_v, &d_gate, &d_sink}) {
            const auto more = bytes_of(*t);
            all.insert(all.end(), more.begin(), more.end());
        }
        return all;
    }
    /// What the queries give to each head's sink_logit.
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
    const Tensor out(in.q.view.shape, dtype), lse(lse_shape(s), wide);
    forward(out, lse, in);
    Gradients g{poisoned_tensor(in.q.view.shape, dtype), poisoned_tensor(in.k.view.shape, dtype),
                poisoned_tensor(in.v.view.shape, dtype), poisoned_tensor(in.gate.view.shape, wide),
                poisoned_tensor({s.batch, s.len, s.n_heads}, wide)};
    run(importance_attention_backward,
        {.d_q = g.d_q,
         .d_k = g.d_k,
         .d_v = g.d_v,
         .d_gate = g.d_gate,
         .d_sink = g.d_sink,
         .d_out = d_out,
         .out = out,
         .lse = lse,
         .q = in.q,
         .k = in.k,
         .v = in.v,
         .expiry = in.expiry,
         .key_begin = in.key_begin,
         .gate = in.gate,
         .sink_logit = in.sink_logit,
         .rule = in.rule,
         .scale = in.scale},
        in.exec);
    for (const PoisonedTensor* t : {&g.d_q, &g.d_k, &g.d_v, &g.d_gate, &g.d_sink})
        CHECK(t->guards_intact());
    return g;
}

const std::vector<Case> kCases = {
    {1, 1, 1, 1, 2, 100, {4, 0, 2}},      {2, 7, 4, 2, 8, 3, {2, 1, 1}},
    {2, 150, 2, 1, 32, 1000, {20, 4, 5}}, {1, 200, 3, 3, 18, 90, {16, 0, 0}},
    {1, 130, 2, 2, 16, 1000, {8, 0, 7}},  {1, 100, 2, 1, 4, 1000, {300, 4, 8}},
    {1, 90, 1, 1, 4, 1000, {5, 3, 500}},  {1, 2300, 2, 1, 4, 1500, {70, 4, 9}},
    {1, 140, 2, 1, 8, 1000, {1, 0, 3}}};

}  // namespace

TEST_CASE("expiry times are the prefix top-k, whatever the order of importance") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const int order = GENERATE(0, 1, 2, 3, 4);
    for (const Case& s : kCases) {
        Inputs in = make_inputs(s, DType::fp32, exec);
        auto u = in.importance.as<float>();
        for (std::size_t i = 0; i < u.size(); ++i) {
            const auto x = static_cast<float>(i);
            if (order == 1) u[i] = x;                                           // always better
            if (order == 2) u[i] = -x;                                          // never
            if (order == 3) u[i] = i % 3 == 0 ? -0.0f : 0.0f;                   // all alike
            if (order == 4) u[i] = i % 5 == 0 ? NAN : std::round(u[i] * 2.0f);  // ties, no numbers
        }
        select(in);
        const auto expiry = in.expiry.as<std::int32_t>(), begins = in.key_begin.as<std::int32_t>();
        std::int64_t wrong = 0;
        for (std::int64_t b = 0; b < s.batch; ++b)
            for (std::int64_t g = 0; g < s.n_kv_heads; ++g)
                for (std::int64_t t = 0; t<s.len; t += s.len> 1000 ? 37 : 1) {
                    const auto seen = seen_by(
                        t, begins[static_cast<std::size_t>(b * s.len + t)], s.rule,
                        [&](std::int64_t x) {
                            return u[static_cast<std::size_t>((b * s.len + x) * s.n_kv_heads + g)];
                        });
                    for (std::int64_t x = 0; x < s.len; ++x) {
                        const bool visible = x <= t && t < expiry[static_cast<std::size_t>(
                                                               (b * s.n_kv_heads + g) * s.len + x)];
                        wrong += visible != seen.contains(x);
                    }
                }
        CAPTURE(order, s.len, s.rule.window, s.rule.sinks, s.rule.keep);
        CHECK(wrong == 0);
    }
}

TEST_CASE("importance_attention_forward meets float64") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const DType dtype = GENERATE(DType::fp32, DType::bf16, DType::fp64);
    for (const Case& s : kCases) {
        const Inputs in = make_inputs(s, dtype, exec);
        const Reference expected = importance_attention_float64(s, in);
        const PoisonedTensor out = poisoned_tensor(in.q.view.shape, dtype);
        const PoisonedTensor lse = poisoned_tensor(lse_shape(s), wide_dtype(dtype));
        forward(out, lse, in);
        CAPTURE(dtype_name(dtype), s.batch, s.len, s.dim, s.rule.window);
        CHECK(relative_error(to_double(out), expected.out) < tolerance(dtype));
        CHECK(relative_error(to_double(lse), expected.lse) < tolerance(wide_dtype(dtype)));
        CHECK(out.guards_intact());
        CHECK(lse.guards_intact());
    }
}

TEST_CASE("importance_attention_backward meets central differences of the forward in fp64") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const Case s = GENERATE(Case{2, 9, 4, 2, 4, 4, {2, 1, 1}}, Case{1, 75, 2, 1, 2, 40, {6, 2, 3}},
                            Case{1, 66, 2, 2, 2, 1000, {9, 0, 4}});
    Inputs in = make_inputs(s, DType::fp64, exec);
    const Tensor d_out = random_tensor(in.q.view.shape, DType::fp64, 9);
    const Gradients g = backward(s, in, d_out);
    in.exec = {};  // the forwards that are many
    const Tensor out(in.q.view.shape, DType::fp64), lse(lse_shape(s), DType::fp64);
    const auto loss = [&] {
        forward(out, lse, in);
        return weighted_sum(out, d_out);
    };
    const auto error = [&](const PoisonedTensor& gradient, const Tensor& of) {
        return relative_error(to_double(gradient), central_differences(of, loss));
    };
    CAPTURE(s.batch, s.len);
    CHECK(error(g.d_q, in.q) < kDifferenceTolerance);
    CHECK(error(g.d_k, in.k) < kDifferenceTolerance);
    CHECK(error(g.d_v, in.v) < kDifferenceTolerance);
    CHECK(error(g.d_gate, in.gate) < kDifferenceTolerance);
    CHECK(relative_error(g.d_sink_logit(), central_differences(in.sink_logit, loss)) <
          kDifferenceTolerance);
}

TEST_CASE("what a query gives to the sink logit is its own") {
    const Case s{2, 70, 2, 1, 4, 1000, {6, 2, 3}};
    const Inputs in = make_inputs(s, DType::fp64);
    const Tensor d_out(in.q.view.shape, DType::fp64);
    constexpr std::int64_t kRow = 70 + 66;  // query 66 of the second entry
    for (double& x : d_out.view.reshaped({2 * 70, 2 * 4}).row<double>(kRow))
        x = 1.0;
    const Gradients g = backward(s, in, d_out);
    const auto values = to_double(g.d_sink);
    for (std::size_t i = 0; i < values.size(); ++i)
        CHECK((values[i] != 0.0) == (i / 2 == kRow));
}

TEST_CASE("importance_attention_backward over two chunks meets directional differences in fp64") {
    const Case s{1, 2300, 2, 1, 2, 1500, {70, 4, 9}};
    const Inputs in = make_inputs(s, DType::fp64);
    const Tensor d_out = random_tensor(in.q.view.shape, DType::fp64, 9);
    const Gradients g = backward(s, in, d_out);
    const Tensor out(in.q.view.shape, DType::fp64), lse(lse_shape(s), DType::fp64);
    std::uint64_t seed = 20;
    const auto check = [&](const ConstTensorView& gradient, const Tensor& of) {
        const Tensor direction = random_tensor(of.view.shape, DType::fp64, ++seed);
        const auto values = of.as<double>(), way = direction.as<double>();
        const auto loss_at = [&](double step) {
            const Tensor kept = copy_of(of);
            for (std::size_t i = 0; i < values.size(); ++i)
                values[i] += step * way[i];
            forward(out, lse, in);
            std::ranges::copy(kept.as<double>(), values.begin());
            return weighted_sum(out, d_out);
        };
        constexpr double kStep = 1e-5;
        const double difference = (loss_at(kStep) - loss_at(-kStep)) / (2.0 * kStep);
        CAPTURE(seed);
        CHECK(weighted_sum(gradient, direction) == Approx(difference).epsilon(1e-6));
    };
    check(g.d_q, in.q);
    check(g.d_k, in.k);
    check(g.d_v, in.v);
    check(g.d_gate, in.gate);
    const Tensor d_sink_logit(in.sink_logit.view.shape, DType::fp64);
    std::ranges::copy(g.d_sink_logit(), d_sink_logit.as<double>().begin());
    check(d_sink_logit, in.sink_logit);
}

TEST_CASE("importance_attention_backward in fp32 and bf16 meets fp64, over several chunks") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const DType dtype = GENERATE(DType::fp32, DType::bf16);
    for (const Case& s : kCases) {
        const Inputs in = make_inputs(s, dtype, exec);
        const Tensor d_out = random_tensor(in.q.view.shape, dtype, 9);
        const auto widened = [](const Tensor& t) {
            Tensor wide(t.view.shape, DType::fp64);
            std::ranges::copy(to_double(t), wide.as<double>().begin());
            return wide;
        };
        const Inputs wide_in{widened(in.q),     widened(in.k),
                             widened(in.v),     widened(in.importance),
                             widened(in.gate),  widened(in.sink_logit),
                             make_key_begin(s), copy_of(in.expiry),
                             in.rule,           in.scale};
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

TEST_CASE("a window or a choice that holds everything is dense attention") {
    const KeyRule rule = GENERATE(KeyRule{1000, 0, 0}, KeyRule{10, 0, 1000});
    const Case s{2, 140, 4, 2, 16, 60, rule};
    Inputs in = make_inputs(s, DType::fp64);
    in.gate = {};
    in.sink_logit = {};
    std::vector<std::int32_t> ends;
    for (std::int64_t i = 0; i < s.batch * s.len; ++i)
        ends.push_back(static_cast<std::int32_t>(i % s.len + 1));
    const Tensor out(in.q.view.shape, DType::fp64), lse(lse_shape(s), DType::fp64),
        dense(in.q.view.shape, DType::fp64), dense_lse(lse_shape(s), DType::fp64);
    forward(out, lse, in);
    attention_forward({.out = dense,
                       .lse = dense_lse,
                       .q = in.q,
                       .k = in.k,
                       .v = in.v,
                       .key_begin = in.key_begin,
                       .key_end = int_tensor(ends),
                       .scale = in.scale},
                      {});
    CHECK(relative_error(to_double(out), to_double(dense)) < 1e-12);
    CHECK(relative_error(to_double(lse), to_double(dense_lse)) < 1e-12);
}

TEST_CASE("a local window is dense attention under a window's mask") {
    const std::int64_t window = GENERATE(1, 30, 64, 200);
    const Case s{2, 300, 2, 1, 16, 170, {window, 0, 0}};
    Inputs in = make_inputs(s, DType::fp64);
    in.gate = {};
    in.sink_logit = {};
    std::vector<std::int32_t> begins, ends;
    for (std::int64_t i = 0; i < s.batch * s.len; ++i) {
        const auto t = static_cast<std::int32_t>(i % s.len);
        begins.push_back(std::max(in.key_begin.as<std::int32_t>()[static_cast<std::size_t>(i)],
                                  t - static_cast<std::int32_t>(window) + 1));
        ends.push_back(t + 1);
    }
    const Tensor key_begin = int_tensor(begins), key_end = int_tensor(ends);
    const Tensor d_out = random_tensor(in.q.view.shape, DType::fp64, 9);
    const Tensor out(in.q.view.shape, DType::fp64), lse(lse_shape(s), DType::fp64),
        dense(in.q.view.shape, DType::fp64), dense_lse(lse_shape(s), DType::fp64),
        d_q(in.q.view.shape, DType::fp64), d_k(in.k.view.shape, DType::fp64),
        d_v(in.k.view.shape, DType::fp64), dense_d_q(in.q.view.shape, DType::fp64),
        dense_d_k(in.k.view.shape, DType::fp64), dense_d_v(in.k.view.shape, DType::fp64);
    forward(out, lse, in);
    run(importance_attention_backward,
        {.d_q = d_q,
         .d_k = d_k,
         .d_v = d_v,
         .d_out = d_out,
         .out = out,
         .lse = lse,
         .q = in.q,
         .k = in.k,
         .v = in.v,
         .expiry = in.expiry,
         .key_begin = in.key_begin,
         .rule = in.rule,
         .scale = in.scale},
        in.exec);
    attention_forward({.out = dense,
                       .lse = dense_lse,
                       .q = in.q,
                       .k = in.k,
                       .v = in.v,
                       .key_begin = key_begin,
                       .key_end = key_end,
                       .scale = in.scale},
                      {});
    attention_backward({.d_q = dense_d_q,
                        .d_k = dense_d_k,
                        .d_v = dense_d_v,
                        .d_out = d_out,
                        .out = dense,
                        .lse = dense_lse,
                        .q = in.q,
                        .k = in.k,
                        .v = in.v,
                        .key_begin = key_begin,
                        .key_end = key_end,
                        .scale = in.scale},
                       {});
    CAPTURE(window);
    CHECK(relative_error(to_double(out), to_double(dense)) < 1e-12);
    CHECK(relative_error(to_double(lse), to_double(dense_lse)) < 1e-12);
    // A window of 1 has probabilities of 1, and gradients of scores that are rounding errors.
    if (window > 1) {
        CHECK(relative_error(to_double(d_q), to_double(dense_d_q)) < 1e-11);
        CHECK(relative_error(to_double(d_k), to_double(dense_d_k)) < 1e-11);
    }
    CHECK(relative_error(to_double(d_v), to_double(dense_d_v)) < 1e-11);
}

TEST_CASE("importance_attention lets no NaN or infinity through that a query does not see") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const Case s{1, 300, 2, 1, 8, 100, {12, 2, 6}};
    const auto poison =
        GENERATE(std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity());
    Inputs in = make_inputs(s, DType::fp32, exec);
    Tensor d_out = random_tensor(in.q.view.shape, DType::fp32, 9);
    const auto results = [&] {
        const Tensor out(in.q.view.shape, DType::fp32), lse(lse_shape(s), DType::fp32);
        forward(out, lse, in);
        const Gradients g = backward(s, in, d_out);
        return std::vector{bytes_of(out.view.reshaped({300, 16}).slice_rows(100, 70)),
                           bytes_of(g.d_q.view.reshaped({300, 16}).slice_rows(100, 70)),
                           bytes_of(g.d_k.view.reshaped({300, 8}).slice_rows(200, 100)),
                           bytes_of(g.d_v.view.reshaped({300, 8}).slice_rows(200, 100)),
                           bytes_of(g.d_gate.view.reshaped({300, 1}).slice_rows(200, 100))};
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

TEST_CASE(
    "importance_attention has the same bits on any instruction set and any number of threads") {
    const DType dtype = GENERATE(DType::fp32, DType::bf16);
#ifdef __SANITIZE_ADDRESS__  // slow: two chunks
    constexpr std::int64_t kLong = 2100;
#else  // three
    constexpr std::int64_t kLong = 4200;
#endif
    for (const Case& s :
         {Case{2, 300, 4, 2, 24, 170, {40, 4, 12}}, Case{1, kLong, 1, 1, 8, 5000, {70, 4, 12}}}) {
        const Inputs in = make_inputs(s, dtype);
        const Tensor d_out = random_tensor(in.q.view.shape, dtype, 9);
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

TEST_CASE("importance_attention never looks ahead or at another document") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const Case s{1, 160, 2, 1, 8, 100, {12, 2, 6}};
    Inputs in = make_inputs(s, DType::fp32, exec);
    const Tensor out(in.q.view.shape, DType::fp32), lse(lse_shape(s), DType::fp32);
    forward(out, lse, in);
    const auto rows = [&](std::int64_t begin, std::int64_t count) {
        return bytes_of(out.view.reshaped({160, 16}).slice_rows(begin, count));
    };
    const auto first = rows(0, 70), second = rows(100, 20);
    const auto disturb = [&](std::int64_t row) {
        for (float& x : in.v.view.reshaped({160, 8}).row<float>(row))
            x = 1e6f;
        for (float& x : in.k.view.reshaped({160, 8}).row<float>(row))
            x = -3.0f;
        in.importance.as<float>()[static_cast<std::size_t>(row)] = 1e6f;
    };
    disturb(70);
    disturb(99);
    select(in);
    forward(out, lse, in);
    CHECK(rows(0, 70) == first);
    CHECK(rows(100, 20) == second);
    disturb(120);
    select(in);
    forward(out, lse, in);
    CHECK(rows(100, 20) == second);
}

TEST_CASE("importance_attention refuses what does not fit") {
    const Case s{1, 8, 2, 1, 4, 100, {4, 1, 2}};
    Inputs in = make_inputs(s, DType::fp32);
    const Tensor out(in.q.view.shape, DType::fp32), lse(lse_shape(s), DType::fp32);
    in.rule.window = 0;
    CHECK_THROWS_AS(forward(out, lse, in), ShapeError);
    CHECK_THROWS_AS(select(in), ShapeError);
    in.rule = s.rule;
    in.key_begin.as<std::int32_t>()[3] = 5;  // a document that begins after its token
    CHECK_THROWS_AS(forward(out, lse, in), ShapeError);
}
