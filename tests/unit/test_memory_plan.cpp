#include <thread>

#include "kernels/working_memory.h"
#include "tests/support/catch.h"
#include "tests/support/tiny_run.h"

using namespace stoa;
using namespace stoa::test;

TEST_CASE("the plan that is shown is the memory that is used", "[unit]") {
    const Recompute recompute = GENERATE(Recompute::none, Recompute::full);
    const Recipe compute = GENERATE(Recipe::fp32, Recipe::bf16);
    const int tp = GENERATE(1, 2, 4);
    const AttentionConfig attention = GENERATE(
        AttentionConfig{}, tiny_attention(AttentionKind::dynamic, KeySelector::tree, "TPW"),
        helped_attention(0.2, 1.0));
    const RunConfig config =
        tiny_config({.recompute = recompute, .recipe = compute, .attention = attention}, 1, tp);
    const MemoryPlan plan = plan_memory(config, tp - 1, tp);
    TrainState s = make_train_state(config, tp - 1, tp, Exec{});
    place_activations(s, config.batch.micro_batch, longest_sequence(config));
    CHECK(s.arena.bytes() == plan.total_bytes());
    // tensors lie one after the other, aligned, without overlap, up to the last byte
    std::int64_t end = 0;
    for (const PlannedTensor& t : plan.tensors) {
        CHECK(t.offset_bytes == align_up(end));
        end = t.offset_bytes + t.bytes();
    }
    CHECK(align_up(end) == plan.total_bytes());
    CHECK(s.acts.key_end.data + s.acts.key_end.bytes() <= s.arena.data() + s.arena.bytes());
}

TEST_CASE("the attention kernels keep the memory that is planned for them", "[unit]") {
    const AttentionConfig attention = GENERATE(
        AttentionConfig{}, tiny_attention(AttentionKind::window), helped_attention(0.2, 1.0),
        tiny_attention(AttentionKind::dynamic, KeySelector::tree, "TPD"));
    RunConfig config = tiny_config({.seq_len = 200, .attention = attention}, 1, 1);
    config.parallel.threads = 1;
    const MemoryPlan plan = plan_memory(config, 0, 1);
    std::int64_t grown = 0;
    std::thread([&] {  // which has kept nothing yet
        const std::int64_t before = held_working_bytes();
        TrainState s = make_train_state(config, 0, 1, Exec{});
        MicroBatch mb = tiny_batch(config, 0, 0);
        std::ranges::fill(mb.key_begin, 0);  // a row is a document
        (void)train_step(s, {.micro_batches = {mb}, .lr = 1e-3}, Mesh{}, Exec{});
        grown = held_working_bytes() - before;
    })
        .join();
    CHECK(plan.kernel_bytes > 0);
    CHECK(grown == plan.kernel_bytes);
}

TEST_CASE("recompute keeps one block's activations instead of all", "[unit]") {
    const MemoryPlan none = plan_memory(tiny_config({}, 1, 1), 0, 1);
    const MemoryPlan full = plan_memory(tiny_config({.recompute = Recompute::full}, 1, 1), 0, 1);
    CHECK(full.state_bytes == none.state_bytes);
    CHECK(full.activation_bytes < none.activation_bytes);
}

TEST_CASE("tp divides the state", "[unit]") {
    const MemoryPlan one = plan_memory(tiny_config({}, 1, 1), 0, 1);
    const MemoryPlan four = plan_memory(tiny_config({}, 1, 4), 0, 4);
    CHECK(four.state_bytes < one.state_bytes / 3);
}

TEST_CASE("the plan holds the stage that needs most, whichever it is", "[unit]") {
    RunConfig config = tiny_config({}, 1, 1);
    config.stages.push_back(config.stages[0]);
    config.stages[1].name = "selects";
    config.stages[1].attention = tiny_attention(AttentionKind::dynamic);
    const std::int64_t both = plan_memory(config, 0, 1).activation_bytes;
    std::swap(config.stages[0], config.stages[1]);
    CHECK(plan_memory(config, 0, 1).activation_bytes == both);
    TrainState s = make_train_state(config, 0, 1, Exec{});
    for (const StageConfig& stage : config.stages) {
        enter_stage(s, stage, Exec{});
        CHECK_NOTHROW(load_micro_batch(s, tiny_batch(config, 0, 0), Exec{}));
    }
    config.stages.erase(config.stages.begin());
    config.stages[0].attention.reset();
    CHECK(plan_memory(config, 0, 1).activation_bytes < both);
}

TEST_CASE("a stage turns its positions by its own stretch, and the one before it again", "[unit]") {
    RunConfig config = tiny_config({}, 1, 1);
    config.stages.push_back(config.stages[0]);
    config.stages[1].attention = AttentionConfig{.stretch = 4.0};
    TrainState s = make_train_state(config, 0, 1, Exec{});
    const auto cos_at = [&](std::int64_t position) {
        const auto row = s.model.rope_cos.row<float>(position);
        return std::vector<float>(row.begin(), row.end());
    };
    const auto at_2 = cos_at(2), at_8 = cos_at(8);
    enter_stage(s, config.stages[1], Exec{});
    CHECK(cos_at(8) == at_2);
    enter_stage(s, config.stages[0], Exec{});
    CHECK(cos_at(8) == at_8);
}
