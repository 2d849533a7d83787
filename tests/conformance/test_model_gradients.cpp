// The explicit backward of every layer against finite differences, through the real code in
// float64: perturb each parameter tensor at a few elements, compare the change of the loss with the
// gradient.
#include "kernels/elementwise.h"
#include "tests/support/catch.h"
#include "tests/support/tensors.h"
#include "tests/support/tiny_run.h"
#include "trainer/model/loss.h"

using namespace stoa;
using namespace stoa::test;

namespace {

double loss_of(TrainState& s, const MicroBatch& mb) {
    const Communicator self;
    load_micro_batch(s, mb);
    zero(s.acts.loss_sum, Exec{});
    model_forward(s, self, Exec{});
    loss_forward_backward(s.acts, s.dims, 0.0, self, Exec{});
    return s.acts.loss_sum.as<double>()[0];
}

}  // namespace

TEST_CASE("every parameter's gradient meets finite differences in float64", "[conformance]") {
    const Recompute recompute = GENERATE(Recompute::none, Recompute::full);
    const bool tied = GENERATE(true, false);
    RunConfig config = tiny_config(
        {.recompute = recompute, .tie_embeddings = tied, .compute = ComputeDType::fp64}, 1, 1);
    config.model.init_std = 0.3;  // far from linear
    TrainState s = make_train_state(config, 0, 1, Exec{});
    const MicroBatch mb = tiny_batch(config, 0, 0);
    for (Param& p : s.model.params)  // norms away from one
        if (p.cut == TpCut::replicated)
            for (std::size_t i = 0; i < p.master.as<double>().size(); ++i)
                p.master.as<double>()[i] = 1.0 + 0.1 * std::sin(double(i));

    zero(s.model.grad_flat, Exec{});
    load_micro_batch(s, mb);
    zero(s.acts.loss_sum, Exec{});
    const Communicator self;
    model_forward(s, self, Exec{});
    loss_forward_backward(s.acts, s.dims, 1.0, self, Exec{});
    model_backward(s, self, Exec{});

    constexpr double kStep = 1e-6;
    int checked = 0;
    for (Param& p : s.model.params) {
        const auto w = p.master.as<double>(), g = p.grad.as<double>();
        double largest = 0.0;
        for (const double x : g)
            largest = std::max(largest, std::abs(x));
        CAPTURE(p.name, tied, recompute == Recompute::full);
        CHECK(largest > 0.0);  // every parameter takes part
        for (const std::size_t i : {std::size_t{0}, w.size() / 3, w.size() / 2, w.size() - 1}) {
            const double was = w[i];
            w[i] = was + kStep;
            const double up = loss_of(s, mb);
            w[i] = was - kStep;
            const double down = loss_of(s, mb);
            w[i] = was;
            CHECK(g[i] ==
                  Approx((up - down) / (2 * kStep)).epsilon(1e-5).margin(1e-5 * largest + 1e-8));
            ++checked;
        }
    }
    CHECK(checked > 100);
}

// The gradients of one micro-batch, padding included.
std::vector<double> gradients(const TinyOptions& options) {
    const RunConfig config = tiny_config(options, 1, 1);
    TrainState s = make_train_state(config, 0, 1, Exec{});
    const Communicator self;
    zero(s.model.grad_flat, Exec{});
    load_micro_batch(s, tiny_batch(config, 0, 0));
    zero(s.acts.loss_sum, Exec{});
    model_forward(s, self, Exec{});
    loss_forward_backward(s.acts, s.dims, 1.0, self, Exec{});
    model_backward(s, self, Exec{});
    return to_double(s.model.grad_flat);
}

TEST_CASE("recompute changes no bit of the gradients", "[conformance]") {
    const ComputeDType compute = GENERATE(ComputeDType::fp32, ComputeDType::bf16);
    CHECK(gradients({.recompute = Recompute::none, .compute = compute}) ==
          gradients({.recompute = Recompute::full, .compute = compute}));
}

TEST_CASE("bf16 gradients stay close to float64", "[conformance]") {
    const auto exact = gradients({.compute = ComputeDType::fp64});
    const auto distance = [&](ComputeDType compute) {
        const auto g = gradients({.compute = compute});
        double diff = 0.0, size = 0.0;
        for (std::size_t i = 0; i < g.size(); ++i) {
            diff += (g[i] - exact[i]) * (g[i] - exact[i]);
            size += exact[i] * exact[i];
        }
        return std::sqrt(diff / size);
    };
    CHECK(distance(ComputeDType::fp32) < 1e-5);
    CHECK(distance(ComputeDType::bf16) < 3e-2);
    CHECK(distance(ComputeDType::bf16) > 1e-4);  // it really computed in bf16
}
