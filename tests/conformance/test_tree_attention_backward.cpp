// Gradients of the tree attention: against central differences of the forward, and their bits.
#include "kernels/core/thread_pool.h"
#include "tests/conformance/tree_reference.h"

using namespace stoa;
using namespace stoa::test;
using namespace stoa::test::tree;

namespace {

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
};
Gradients backward(const Case& s, const Inputs& in, const Tensor& d_out) {
    const DType dtype = in.q.view.dtype, wide = wide_dtype(dtype);
    const Tensor out(in.q.view.shape, dtype), lse(lse_shape(s), wide),
        selection(selection_shape(s), DType::int32);
    forward(out, lse, selection, in);
    Gradients g{poisoned_tensor(in.q.view.shape, dtype), poisoned_tensor(in.k.view.shape, dtype),
                poisoned_tensor(in.v.view.shape, dtype), poisoned_tensor(in.gate.view.shape, wide),
                poisoned_tensor({s.batch, s.len, s.n_heads}, wide)};
    run(tree_attention_backward,
        {.d_q = g.d_q,
         .d_k = g.d_k,
         .d_v = g.d_v,
         .d_gate = g.d_gate,
         .d_sink = g.d_sink,
         .d_out = d_out,
         .out = out,
         .lse = lse,
         .selection = selection,
         .q = in.q,
         .k = in.k,
         .v = in.v,
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

}  // namespace

TEST_CASE("tree_attention_backward meets central differences of the forward in fp64") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const Case s = GENERATE(
        Case{2, 24, 4, 2, 2, 17, {4, 2, 2, 1, 1}}, Case{1, 75, 2, 1, 2, 1000, {8, 2, 3, 1, 2}},
        Case{1, 66, 2, 2, 2, 1000, {4, 4, 2, 2, 0}}, Case{1, 90, 1, 1, 2, 1000, {6, 3, 9, 1, 0}},
        Case{1, 70, 2, 1, 2, 1000, {20, 20, 2, 1, 3}});
    Inputs in = make_inputs(s, DType::fp64, exec);
    const Tensor d_out = random_tensor(in.q.view.shape, DType::fp64, 9);
    const Gradients g = backward(s, in, d_out);
    in.exec = {};  // the forwards that are many
    const Tensor out(in.q.view.shape, DType::fp64), lse(lse_shape(s), DType::fp64),
        selection(selection_shape(s), DType::int32);
    const auto loss = [&] {
        forward(out, lse, selection, in);
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
    std::vector<double> d_sink_logit(static_cast<std::size_t>(s.n_heads));
    const auto d_sink = to_double(g.d_sink);
    for (std::size_t i = 0; i < d_sink.size(); ++i)
        d_sink_logit[i % d_sink_logit.size()] += d_sink[i];
    CHECK(relative_error(d_sink_logit, central_differences(in.sink_logit, loss)) <
          kDifferenceTolerance);
    // What no selection has read moves all the same: through the summaries.
    const auto d_gate = to_double(g.d_gate);
    CHECK(std::ranges::count(d_gate, 0.0) <= std::ssize(d_gate) / 4);
}

TEST_CASE("tree_attention_backward where all queries choose the same leaf") {
    const Exec exec = GENERATE(from_range(available_execs()));
    // One key that all queries look for, far behind: its leaf gets every later query's gradient.
    const Case s{1, 80, 2, 1, 2, 1000, {8, 4, 3, 1, 0}};
    Inputs in = make_inputs(s, DType::fp64, exec);
    std::ranges::fill(in.q.as<double>(), 0.7);
    for (std::int64_t c = 0; c < s.dim; ++c)
        in.k.as<double>()[static_cast<std::size_t>(21 * s.dim + c)] = 9.0;
    const Tensor d_out = random_tensor(in.q.view.shape, DType::fp64, 9);
    const Outputs o = run_forward(s, in);
    const auto chosen = o.selection.view.as<std::int32_t>();
    const std::int64_t per_query = o.selection.view.shape[2] * o.selection.view.shape[3];
    for (std::int64_t t = (21 / 4 + 1) * 4 + 8; t < s.len; ++t)
        CHECK(chosen[static_cast<std::size_t>(t * per_query)] == 21 / 4);
    const Gradients g = backward(s, in, d_out);
    in.exec = {};
    const auto loss = [&] { return weighted_sum(run_forward(s, in).out, d_out); };
    CHECK(relative_error(to_double(g.d_k), central_differences(in.k, loss)) < kDifferenceTolerance);
    CHECK(relative_error(to_double(g.d_v), central_differences(in.v, loss)) < kDifferenceTolerance);
}

TEST_CASE("tree_attention has the same bits on any instruction set and thread count") {
    const DType dtype = GENERATE(DType::fp32, DType::bf16);
    // A batch of documents, and one that several chunks of queries divide.
    const Case s = GENERATE(Case{2, 140, 4, 2, 20, 130, {16, 8, 3, 2, 4}},
                            Case{1, 400, 1, 1, 16, 1000, {16, 4, 4, 3, 0}},
                            Case{3, 90, 2, 1, 16, 11, {4, 2, 2, 1, 1}});
    const Inputs in = make_inputs(s, dtype);
    const Tensor d_out = random_tensor(in.q.view.shape, dtype, 9);
    const auto all = [&] {
        auto bytes = run_forward(s, in).bytes();
        const auto more = backward(s, in, d_out).bytes();
        bytes.insert(bytes.end(), more.begin(), more.end());
        return bytes;
    };
    check_same_bits(all);
    const auto one = all();
    for (const int threads : {2, 3}) {
        set_cpu_threads(threads);
        const auto many = all();
        set_cpu_threads(1);
        CAPTURE(threads);
        CHECK(many == one);
    }
}

TEST_CASE("tree_attention_backward refuses gradients that do not fit") {
    const Case s{1, 20, 2, 1, 4, 100, {8, 4, 2, 2, 1}};
    Inputs in = make_inputs(s, DType::fp32);
    const Tensor d_out = random_tensor(in.q.view.shape, DType::fp32, 9);
    CHECK_NOTHROW(backward(s, in, d_out));
    in.sink_logit = Tensor();  // d_sink has no input any more
    CHECK_THROWS_AS(backward(s, in, d_out), ShapeError);
}
