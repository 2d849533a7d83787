// none, selective and full recompute, and mixtures of them by layer: the same gradients bit for bit
// after a step in fp32, bf16 and the fp8 recipes; activations fall in that order, as planned.
#include <fmt/format.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "tests/support/tiny_run.h"

using namespace stoa;
using namespace stoa::test;
using nlohmann::json;

namespace {

struct Result {
    std::vector<std::byte> bits;  // masters and gradients
    std::int64_t planned = 0, used = 0;
};

Result run(Recipe recipe, Recompute recompute, std::vector<std::string> layers, int steps) {
    RunConfig config = tiny_config({.micro_batch = 3,
                                    .recompute = recompute,
                                    .recipe = recipe,
                                    .global_batch = 6,
                                    .whole_blocks = true,
                                    .seq_len = 200},
                                   1, 1);
    config.model.n_layers = 4;
    config.parallel.recompute_layers = std::move(layers);
    Result out{.planned = plan_memory(config, 0, 1).activation_bytes};
    const std::int64_t before = allocated_bytes();
    TrainState s = make_train_state(config, 0, 1, Exec{});
    out.used = allocated_bytes() - before - s.state_bytes;
    for (int step = 0; step < steps; ++step) {
        StepInputs in{.lr = 1e-3, .step = step};
        for (std::int64_t a = 0; a < config.batch.grad_accum; ++a)
            in.micro_batches.push_back(tiny_batch(config, step, a * config.batch.micro_batch));
        (void)train_step(s, in, Mesh{}, Exec{});
    }
    const auto append = [&](const TensorView& t) {
        out.bits.insert(out.bits.end(), t.data, t.data + t.bytes());
    };
    append(s.model.norm_grads);
    append(s.model.matrix_grads);
    for (const Param& p : s.model.params)
        append(p.master);
    return out;
}

}  // namespace

int main(int argc, char** argv) {
    const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
    const int steps = quick ? 2 : 10;
    bool holds = true;
    json result;
    for (const Recipe recipe :
         {Recipe::fp32, Recipe::bf16, Recipe::r30, Recipe::r45, Recipe::r50}) {
        const Result none = run(recipe, Recompute::none, {}, steps);
        const Result selective = run(recipe, Recompute::selective, {}, steps);
        const Result full = run(recipe, Recompute::full, {}, steps);
        const Result mixed = run(recipe, Recompute::full, {"0", "2-3"}, steps);
        const bool same = none.bits == selective.bits && none.bits == full.bits &&
                          none.bits == mixed.bits && !none.bits.empty();
        const bool falls = none.planned > selective.planned && selective.planned > full.planned;
        bool planned = true;
        for (const Result* o : {&none, &selective, &full, &mixed})
            planned = planned && o->planned == o->used;
        holds = holds && same && falls && planned;
        result[recipe_name(recipe)] = {{"same_bits", same},
                                       {"used_as_planned", planned},
                                       {"activation_bytes",
                                        {{"none", none.used},
                                         {"selective", selective.used},
                                         {"full", full.used},
                                         {"mixed", mixed.used}}}};
    }
    fmt::print("{}\n", json{{"steps", steps}, {"recipes", result}, {"holds", holds}}.dump());
    return holds ? 0 : 1;
}
