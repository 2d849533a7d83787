// Recipes with 8-bit layers in models that have none left: every block is an edge block, or was
// promoted.
#include <algorithm>
#include <cmath>

#include "tests/support/catch.h"
#include "tests/support/tiny_run.h"
#include "trainer/train_step.h"

using namespace stoa;
using namespace stoa::test;

TEST_CASE("a recipe without 8-bit layers left trains in 16 bits") {
#ifdef __SANITIZE_ADDRESS__  // slow: the recipe with most formats
    const Recipe recipe = Recipe::r50;
#else
    const Recipe recipe = GENERATE(Recipe::r30, Recipe::r45, Recipe::r50);
#endif
    const Recompute recompute = GENERATE(Recompute::none, Recompute::full);
    RunConfig c = tiny_config({.recipe = recipe, .whole_blocks = true}, 1, 1);
    SECTION("all are edge blocks") { c.precision.edge_blocks = (c.model.n_layers + 1) / 2; }
    SECTION("all were promoted") {
        c.precision.edge_blocks = 0;
        for (std::int64_t l = 0; l < c.model.n_layers; ++l)
            c.precision.wide_layers.push_back(l);
    }
    c.parallel.recompute = recompute;
    for (const PlannedTensor& t : plan_memory(c, 0, 1).tensors)
        if (t.lifetime != Lifetime::run) CHECK(t.dtype != DType::e4m3);
    TrainState s = make_train_state(c, 0, 1, {});
    double first = 0.0, last = 0.0;
    for (std::int64_t step = 0; step < 4; ++step) {
        StepInputs in{.lr = 3e-3, .step = step};
        for (std::int64_t a = 0; a < c.batch.grad_accum; ++a)
            in.micro_batches.push_back(tiny_batch(c, 0, a));
        const StepResult r = train_step(s, in, Mesh{}, {});
        REQUIRE_FALSE(r.skipped);
        (step == 0 ? first : last) = r.loss;
    }
    CHECK(std::isfinite(last));
    CHECK(last < first);
}
