#include "configs/recipe.h"
#include "kernels/core/error.h"
#include "kernels/core/philox.h"
#include "tests/support/catch.h"
#include "trainer/precision_policy.h"

using namespace stoa;

namespace {

RunConfig config_of(Recipe recipe, std::int64_t n_layers = 4, std::int64_t edge_blocks = 1) {
    RunConfig c;
    c.model.n_layers = n_layers;
    c.precision.recipe = recipe;
    c.precision.edge_blocks = edge_blocks;
    return c;
}

LayerSample clean_sample() { return {{0.001, 0.026}, {0.002, 0.027}}; }
LayerSample rough_sample() { return {{0.001, 0.026}, {0.002, 0.061}}; }
LayerSample lossy_sample() { return {{0.001, 0.026}, {0.021, 0.03}}; }

PolicyStep overflow(std::int64_t step, std::int64_t origin, double scale = 65536.0) {
    PolicyStep s{.step = step, .overflow = true, .loss_scale = scale, .origin = origin};
    return s;
}
PolicyStep sampled(std::int64_t step, const PolicyState& state, std::int64_t layer,
                   const LayerSample& sample) {
    PolicyStep s{.step = step};
    s.layers.assign(state.layers.size(), clean_sample());
    s.layers[static_cast<std::size_t>(layer)] = sample;
    return s;
}

}  // namespace

TEST_CASE("the policy begins where the recipe is, and only 8-bit layers may change") {
    const PolicyState r30 = initial_policy(config_of(Recipe::r30));
    CHECK_FALSE(r30.layers[0].adaptive);  // an edge block
    CHECK(r30.layers[1].adaptive);
    CHECK_FALSE(r30.wide_attention);
    for (const LayerPolicy& l : initial_policy(config_of(Recipe::bf16)).layers)
        CHECK_FALSE(l.adaptive);
    RunConfig fixed = config_of(Recipe::r30);
    fixed.precision.adaptive = false;
    CHECK_FALSE(initial_policy(fixed).layers[1].adaptive);
    CHECK(initial_policy(fixed).wide_attention);
}

TEST_CASE(
    "a streak that begins in a 16-bit layer leaves FP16 attention, and its neighbours alone") {
    PolicyState s = initial_policy(config_of(Recipe::r30));
    for (int i = 1; i <= 9; ++i)
        CHECK(decide(s, overflow(i, 0)).empty());  // an edge block
    CHECK(decide(s, overflow(10, 0)) ==
          std::vector<Transition>{{10, -1, true, Cause::skip_streak}});
    for (int i = 11; i <= 20; ++i)
        CHECK(decide(s, overflow(i, 0)).empty());  // nothing is left to change
}

TEST_CASE("the hardware decides where the policy begins") {
    RunConfig c = config_of(Recipe::r30);
    const auto level = [&](int capability) { return initial_policy(c, capability); };
    for (const int fp8 : {0, 89, 90, 100}) {
        CHECK(level(fp8).layers[1].adaptive);
        CHECK_FALSE(level(fp8).layers[1].wide);
        CHECK(level(fp8).wide_attention == (fp8 == 100));
    }
    PolicyState s = level(80);
    CHECK(s.wide_attention);
    for (const std::size_t l : {1u, 2u}) {
        CHECK(s.layers[l].wide);
        CHECK_FALSE(s.layers[l].adaptive);
    }
    CHECK_FALSE(s.layers[0].wide);  // an edge block is in 16 bits by its recipe
    for (int step = 1; step <= 20000; step += 50)
        CHECK(decide(s, sampled(step, s, 1, clean_sample())).empty());
    set_levels(c, s);
    const Formats f = formats_of(c.precision);
    CHECK(f.attention == DType::bf16);
    CHECK(ffn_format(f, c, 1) == DType::bf16);
}

TEST_CASE("ten overflows in a row promote the layer where they began, nine do not") {
    PolicyState s = initial_policy(config_of(Recipe::r30));
    for (int i = 1; i <= 9; ++i)
        CHECK(decide(s, overflow(i, 2)).empty());
    SECTION("a clean step between them starts the count again") {
        CHECK(decide(s, {.step = 10}).empty());
        CHECK(decide(s, overflow(11, 2)).empty());
    }
    SECTION("the tenth") {
        const auto changes = decide(s, overflow(10, 2));
        REQUIRE(changes.size() == 1);
        CHECK(changes[0] == Transition{10, 2, true, Cause::skip_streak});
        CHECK(s.layers[2].wide);
        CHECK_FALSE(s.layers[1].wide);
    }
    SECTION("one that began in no layer leaves fp16 attention") {
        for (int i = 10; i < 11; ++i)
            CHECK(decide(s, {.step = i}).empty());
        for (int i = 11; i < 20; ++i)
            CHECK(decide(s, overflow(i, -1)).empty());
        const auto changes = decide(s, overflow(20, -1));
        REQUIRE(changes.size() == 1);
        CHECK(changes[0].layer == -1);
        CHECK(s.wide_attention);
    }
}

TEST_CASE("an edge block is never promoted, and a loss scale at its least leaves fp16") {
    PolicyState s = initial_policy(config_of(Recipe::r30));
    for (int i = 1; i <= 7; ++i)
        CHECK(decide(s, overflow(i, 0)).empty());
    CHECK(decide(s, overflow(8, 0, 17.0)).empty());
    const auto changes = decide(s, overflow(9, 0, 16.0));
    REQUIRE(changes.size() == 1);
    CHECK(changes[0].cause == Cause::loss_scale);
    for (int i = 10; i <= 30; ++i)
        CHECK(decide(s, overflow(i, 0, 16.0)).empty());
    for (const LayerPolicy& l : s.layers)
        CHECK_FALSE(l.wide);
}

TEST_CASE("two rough samples in a row promote; one, or two apart, do not") {
    PolicyState s = initial_policy(config_of(Recipe::r30));
    CHECK(decide(s, sampled(50, s, 1, rough_sample())).empty());
    CHECK(decide(s, sampled(100, s, 1, clean_sample())).empty());
    CHECK(decide(s, sampled(150, s, 1, rough_sample())).empty());
    const auto changes = decide(s, sampled(200, s, 1, rough_sample()));
    REQUIRE(changes.size() == 1);
    CHECK(changes[0] == Transition{200, 1, true, Cause::rel_error});
}

TEST_CASE("underflow in 3 of 4 samples promotes") {
    PolicyState s = initial_policy(config_of(Recipe::r30));
    CHECK(decide(s, sampled(50, s, 1, lossy_sample())).empty());
    CHECK(decide(s, sampled(100, s, 1, lossy_sample())).empty());
    CHECK(decide(s, sampled(150, s, 1, clean_sample())).empty());
    const auto changes = decide(s, sampled(200, s, 1, lossy_sample()));
    REQUIRE(changes.size() == 1);
    CHECK(changes[0].cause == Cause::underflow);
}

TEST_CASE("a promoted layer holds, returns when long clean, and holds twice as long next time") {
    PolicyState s = initial_policy(config_of(Recipe::r30));
    apply(s, {100, 1, true, Cause::rel_error});
    CHECK(s.layers[1].hold_until == 600);
    std::int64_t demoted = -1;
    for (std::int64_t step = 150; step <= 5000 && demoted < 0; step += 50)
        for (const Transition& t : decide(s, sampled(step, s, 1, clean_sample())))
            demoted = t.step;
    CHECK(demoted == 2600);  // 2,000 clean steps after the hold
    CHECK(decide(s, sampled(2650, s, 1, rough_sample())).empty());
    REQUIRE(decide(s, sampled(2700, s, 1, rough_sample())).size() == 1);
    CHECK(s.layers[1].hold_until == 2700 + 1000);
    SECTION("one unclean sample starts the wait again") {
        for (std::int64_t step = 2750; step <= 5000; step += 50)
            CHECK(decide(s, sampled(step, s, 1, clean_sample())).empty());
        CHECK(decide(s, sampled(5050, s, 1, rough_sample())).empty());
        for (std::int64_t step = 5100; step < 7100; step += 50)
            CHECK(decide(s, sampled(step, s, 1, clean_sample())).empty());
        CHECK(decide(s, sampled(7100, s, 1, clean_sample())).size() == 1);
    }
}

TEST_CASE("at most one layer returns per 100 steps") {
    PolicyState s = initial_policy(config_of(Recipe::r30, 6));
    apply(s, {0, 1, true, Cause::rel_error});
    apply(s, {0, 2, true, Cause::rel_error});
    std::vector<Transition> log;
    for (std::int64_t step = 50; step <= 3000; step += 50)
        for (const Transition& t : decide(s, sampled(step, s, 1, clean_sample())))
            log.push_back(t);
    REQUIRE(log.size() == 2);
    CHECK(log[0].layer == 1);
    CHECK(log[1].step - log[0].step == 100);
}

TEST_CASE("replaying the logged transitions ends in the same levels, and the text is exact") {
    PolicyState s = initial_policy(config_of(Recipe::r30, 8));
    PolicyState replayed = s;
    Draws draws(9, 0);
    std::size_t changes = 0;
    for (std::int64_t step = 1; step <= 40000; ++step) {
        PolicyStep in{.step = step};
        if (draws.below(300) == 0 || (step / 1000 % 7 == 3 && step % 1000 < 12))
            in = overflow(step, draws.between(-1, 7), draws.below(400) == 0 ? 8.0 : 4096.0);
        else if (step % kSampleEvery == 0)
            for (std::size_t l = 0; l < 8; ++l)
                in.layers.push_back(draws.below(40) == 0 && step % 9000 < 1000   ? rough_sample()
                                    : draws.below(30) == 0 && step % 9000 < 1000 ? lossy_sample()
                                                                                 : clean_sample());
        for (const Transition& t : decide(s, in)) {
            apply(replayed, transition_from_text(to_text(t)));
            ++changes;
        }
        if (step % 1000 == 0) REQUIRE(policy_state_from_text(to_text(s)) == s);
    }
    CHECK(changes > 5);
    CHECK(replayed.wide_attention == s.wide_attention);
    for (std::size_t l = 0; l < 8; ++l) {
        CHECK(replayed.layers[l].wide == s.layers[l].wide);
        CHECK(replayed.layers[l].hold_until == s.layers[l].hold_until);
        CHECK(replayed.layers[l].promotions == s.layers[l].promotions);
    }
    CHECK_THROWS_AS(apply(replayed, {1, 0, true, Cause::clean}), CheckpointError);  // an edge block
}

TEST_CASE("damaged texts of the policy are refused") {
    const std::string text = to_text(initial_policy(config_of(Recipe::r30)));
    for (const std::string& damaged :
         {std::string(), std::string("4 0 x"), text + " 1", text.substr(0, text.size() - 3)})
        CHECK_THROWS_AS(policy_state_from_text(damaged), CheckpointError);
    for (const char* damaged : {"", "step=1 layer=2", "step=1 layer=2 to=16bit cause=mood",
                                "step=1 layer=2 to=4bit cause=clean"})
        CHECK_THROWS_AS(transition_from_text(damaged), CheckpointError);
}

TEST_CASE("the levels choose the formats") {
    RunConfig c = config_of(Recipe::r30);
    PolicyState s = initial_policy(c);
    apply(s, {1, 2, true, Cause::rel_error});
    apply(s, {1, -1, true, Cause::loss_scale});
    set_levels(c, s);
    const Formats f = formats_of(c.precision);
    CHECK(f.attention == DType::bf16);
    CHECK(ffn_format(f, c, 1) == DType::e4m3);
    CHECK(ffn_format(f, c, 2) == DType::bf16);
}
