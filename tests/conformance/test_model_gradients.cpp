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
    load_micro_batch(s, mb, Exec{});
    zero(s.acts.loss_sum, Exec{});
    model_forward(s, Mesh{}, Exec{});
    loss_forward_backward(s, 0.0, self, Exec{});
    return s.acts.loss_sum.as<double>()[0];
}

// A model in float64 with its gradients on one micro-batch.
TrainState with_gradients(const RunConfig& config, const MicroBatch& mb) {
    TrainState s = make_train_state(config, 0, 1, Exec{});
    s.training_rows = TrainingRows{.seed = 3};
    for (Param& p : s.model.params)  // norms away from one
        if (p.cut == TpCut::replicated)
            for (std::size_t i = 0; i < p.master.as<double>().size(); ++i)
                p.master.as<double>()[i] = p.fill + 0.1 * std::sin(double(i));
    zero_grads(s.model, Exec{});
    load_micro_batch(s, mb, Exec{});
    zero(s.acts.loss_sum, Exec{});
    model_forward(s, Mesh{}, Exec{});
    loss_forward_backward(s, 1.0, Communicator{}, Exec{});
    model_backward(s, Mesh{}, Exec{});
    fold_head_grads(s.model, Exec{});
    return s;
}

// Every parameter of a model in float64 against central differences, with each kind of recompute.
// What is recomputed is no part of the loss: its differences are taken once for all kinds.
void check_gradients(const TinyOptions& options, const std::vector<Recompute>& kinds) {
    const bool tied = options.tie_embeddings;
    RunConfig config = tiny_config(options, 1, 1);
    config.batch.global_batch = config.batch.micro_batch;
    config.model.init_std = 0.3;  // far from linear
    const MicroBatch mb = tiny_batch(config, 0, 0);
    std::vector<TrainState> states;
    for (const Recompute recompute : kinds) {
        config.parallel.recompute = recompute;
        states.push_back(with_gradients(config, mb));
    }
    TrainState& s = states.front();
    constexpr double kStep = 1e-6;
    int checked = 0;
    for (std::size_t n = 0; n < s.model.params.size(); ++n) {
        const auto w = s.model.params[n].master.as<double>();
        for (const std::size_t i : {std::size_t{0}, w.size() / 3, w.size() / 2, w.size() - 1}) {
            const double was = w[i];
            w[i] = was + kStep;
            const double up = loss_of(s, mb);
            w[i] = was - kStep;
            const double down = loss_of(s, mb);
            w[i] = was;
            for (std::size_t k = 0; k < kinds.size(); ++k) {
                const Param& p = states[k].model.params[n];
                const auto g = p.grad.as<double>();
                double largest = 0.0;
                for (const double x : g)
                    largest = std::max(largest, std::abs(x));
                CAPTURE(p.name, tied, static_cast<int>(kinds[k]), i);
                CHECK(largest > 0.0);  // every parameter takes part
                CHECK(
                    g[i] ==
                    Approx((up - down) / (2 * kStep)).epsilon(1e-5).margin(1e-5 * largest + 1e-8));
            }
            ++checked;
        }
    }
    CHECK(checked > 100);
}

}  // namespace

TEST_CASE("every parameter's gradient meets finite differences in float64", "[conformance]") {
    check_gradients({.tie_embeddings = GENERATE(true, false), .recipe = Recipe::fp64},
                    {Recompute::none, Recompute::full});
}

TEST_CASE("gradients through windows and selected keys meet finite differences in float64",
          "[conformance]") {
    using enum AttentionKind;
    const AttentionConfig attention =
        GENERATE(tiny_attention(window), tiny_attention(dynamic, KeySelector::tree),
                 tiny_attention(dynamic, KeySelector::importance),
                 tiny_attention(dynamic, KeySelector::tree, "PTD"), helped_attention(0.3, 0.0));
    check_gradients({.recipe = Recipe::fp64, .attention = attention},
                    {Recompute::none, Recompute::selective, Recompute::full});
}

TEST_CASE("a stage that is dense leaves the importance of later stages alone", "[conformance]") {
    RunConfig config = tiny_config({.recipe = Recipe::fp64}, 1, 1);
    config.batch.global_batch = config.batch.micro_batch;
    StageConfig later = config.stages[0];
    later.name = "later";
    later.attention = tiny_attention(AttentionKind::dynamic);
    config.stages.push_back(later);
    TrainState s = make_train_state(config, 0, 1, Exec{});
    const MicroBatch mb = tiny_batch(config, 0, 0);
    const auto gradient = [&](const StageConfig& stage) {
        enter_stage(s, stage, Exec{});
        zero_grads(s.model, Exec{});
        load_micro_batch(s, mb, Exec{});
        zero(s.acts.loss_sum, Exec{});
        model_forward(s, Mesh{}, Exec{});
        loss_forward_backward(s, 1.0, Communicator{}, Exec{});
        model_backward(s, Mesh{}, Exec{});
        fold_head_grads(s.model, Exec{});
        double importance = 0.0, others = 0.0;
        for (const Param& p : s.model.params)
            for (const double g : p.grad.as<double>())
                (p.name.find("importance") != std::string::npos ? importance : others) +=
                    std::abs(g);
        CHECK(others > 0.0);
        return importance;
    };
    const double loss_dense = loss_of(s, mb);
    CHECK(gradient(config.stages[0]) == 0.0);
    CHECK(gradient(later) > 0.0);
    CHECK(loss_of(s, mb) != loss_dense);
    CHECK(gradient(config.stages[0]) == 0.0);  // not the other stage's, left behind
    CHECK(loss_of(s, mb) == loss_dense);
}

namespace {

// The gradients of one micro-batch, padding included.
std::vector<double> gradients(const TinyOptions& options, bool in_training = true) {
    RunConfig config = tiny_config(options, 1, 1);
    config.batch.global_batch = config.batch.micro_batch;
    TrainState s = make_train_state(config, 0, 1, Exec{});
    const Communicator self;
    if (in_training) s.training_rows = TrainingRows{.seed = 3, .step = 5, .first_slot = 8};
    zero_grads(s.model, Exec{});
    load_micro_batch(s, tiny_batch(config, 0, 0), Exec{});
    zero(s.acts.loss_sum, Exec{});
    model_forward(s, Mesh{}, Exec{});
    loss_forward_backward(s, 1.0, self, Exec{});
    model_backward(s, Mesh{}, Exec{});
    std::vector<double> g = to_double(s.model.norm_grads);
    std::ranges::copy(to_double(s.model.matrix_grads), std::back_inserter(g));
    return g;
}

}  // namespace

TEST_CASE("recompute changes no bit of the gradients", "[conformance]") {
#ifdef __SANITIZE_ADDRESS__  // slow: the plainest recipe and the one with most formats
    const Recipe recipe = GENERATE(Recipe::fp32, Recipe::r50);
#else
    const Recipe recipe =
        GENERATE(Recipe::fp32, Recipe::bf16, Recipe::r30, Recipe::r45, Recipe::r50);
#endif
    const AttentionConfig attention =
        GENERATE(AttentionConfig{}, tiny_attention(AttentionKind::dynamic, KeySelector::tree),
                 tiny_attention(AttentionKind::dynamic, KeySelector::importance),
                 helped_attention(0.2, 1.0));
    const auto with = [&](Recompute recompute) {
        // 300 rows: two whole blocks of tokens and a part
        return gradients({.micro_batch = 3,
                          .recompute = recompute,
                          .recipe = recipe,
                          .global_batch = 12,
                          .whole_blocks = true,
                          .seq_len = 100,
                          .attention = attention});
    };
    const auto none = with(Recompute::none);
    CHECK(none == with(Recompute::selective));
    CHECK(none == with(Recompute::full));
}

TEST_CASE("dense rows and distillation are of training only", "[conformance]") {
    const auto with = [](double dense_rows, double distil, bool in_training) {
        return gradients(
            {.recipe = Recipe::fp32, .attention = helped_attention(dense_rows, distil)},
            in_training);
    };
    const auto plain = with(0.0, 0.0, true), rows = with(0.3, 0.0, true);
    CHECK(with(0.3, 1.0, false) == plain);
    CHECK(rows != plain);
    CHECK(with(0.3, 1.0, true) != rows);
    TrainState s;  // what a step leaves is ready for an evaluation
    (void)tiny_run({.attention = helped_attention(0.3, 1.0)}, Mesh{}, 1, &s);
    CHECK_FALSE(s.training_rows);
}

TEST_CASE("gradients below fp32 stay close to float64", "[conformance]") {
    const auto of = [](Recipe recipe) {
        return gradients({.recipe = recipe, .whole_blocks = true, .seq_len = 64});
    };
    const auto exact = of(Recipe::fp64);
    const auto distance = [&](Recipe recipe) {
        const auto g = of(recipe);
        double diff = 0.0, size = 0.0;
        for (std::size_t i = 0; i < g.size(); ++i) {
            diff += (g[i] - exact[i]) * (g[i] - exact[i]);
            size += exact[i] * exact[i];
        }
        return std::sqrt(diff / size);
    };
    const double fp32 = distance(Recipe::fp32), bf16 = distance(Recipe::bf16);
    const double r30 = distance(Recipe::r30), r45 = distance(Recipe::r45);
    CAPTURE(fp32, bf16, r30, r45);
    CHECK(fp32 < 1e-5);
    CHECK(bf16 < 3e-2);
    CHECK(bf16 > 1e-4);  // it really computed in bf16
    CHECK(r30 < 0.1);
    CHECK(r30 > bf16);  // one of three blocks really computes in fp8
    CHECK(r45 < 0.1);
    CHECK(r45 != r30);
}
