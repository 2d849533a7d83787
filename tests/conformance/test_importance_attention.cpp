// Selection by expiry times and attention over what it selects, against their definitions.
#include "kernels/attention.h"
#include "kernels/core/thread_pool.h"
#include "tests/conformance/importance_reference.h"

using namespace stoa;
using namespace stoa::test;
using namespace stoa::test::importance;

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
