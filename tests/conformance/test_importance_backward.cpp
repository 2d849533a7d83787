// The gradients of attention over selected keys, against differences of the forward and fp64.
#include "tests/conformance/importance_reference.h"

using namespace stoa;
using namespace stoa::test;
using namespace stoa::test::importance;

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
        const Inputs wide_in{widened(in.q),
                             widened(in.k),
                             widened(in.v),
                             widened(in.importance),
                             widened(in.gate),
                             widened(in.sink_logit),
                             packed_documents(s.batch, s.len, s.document),
                             copy_of(in.expiry),
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
