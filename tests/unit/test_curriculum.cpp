#include <cmath>
#include <map>
#include <set>

#include "data/curriculum.h"
#include "tests/support/catch.h"

using namespace stoa;

namespace {

RunConfig make_config(std::map<std::string, double> first,
                      std::map<std::string, double> second = {{"b", 1.0}}) {
    RunConfig c;
    c.run.seed = 9;
    c.batch.global_batch = 8;
    for (const char* name : {"a", "b", "c"}) {
        c.data.sources.emplace_back();
        c.data.sources.back().name = name;
    }
    c.stages.resize(2);
    c.stages[0].name = "one";
    c.stages[0].tokens = 8 * 16 * 25 - 3;  // 25 steps of 8 sequences of 16, the last one started
    c.stages[0].seq_len = 16;
    c.stages[0].mix = std::move(first);
    c.stages[1].name = "two";
    c.stages[1].tokens = 8 * 32 * 10;
    c.stages[1].seq_len = 32;
    c.stages[1].mix = std::move(second);
    return c;
}

std::vector<SlotAssignment> slots_of(const RunConfig& c, const CurriculumState& s) {
    return assign_slots(c, s, 0, c.batch.global_batch);
}

bool same(const SlotAssignment& x, const SlotAssignment& y) {
    return x.source == y.source && x.ordinal == y.ordinal;
}

}  // namespace

TEST_CASE("stages follow their token budgets", "[unit]") {
    const RunConfig c = make_config({{"a", 1.0}});
    CHECK(total_steps(c) == 35);
    CHECK(total_tokens(c) == 25 * 8 * 16 + 10 * 8 * 32);
    CurriculumState s = initial_curriculum(c);
    CHECK(s.source_tokens == std::vector<std::int64_t>{0, 0, 0});
    for (std::int64_t step = 0; step < 35; ++step) {
        CHECK_FALSE(run_finished(s, c));
        CHECK(s.step == step);
        CHECK(stage_at(s, c).name == (step < 25 ? "one" : "two"));
        CHECK(s.stage_begin_step == (step < 25 ? 0 : 25));
        CHECK(s.tokens == (step <= 25 ? step * 128 : 25 * 128 + (step - 25) * 256));
        s = advance(s, c);
    }
    CHECK(run_finished(s, c));
    CHECK(s.tokens == total_tokens(c));
    CHECK(s.source_tokens == std::vector<std::int64_t>{25 * 128, 10 * 256, 0});
}

TEST_CASE("the mix is exact in every window", "[unit]") {
    struct Case {
        std::map<std::string, double> mix;
        std::int64_t window;
        std::vector<std::int64_t> counts;
    };
    const auto c = GENERATE(values<Case>({
        {{{"a", 0.75}, {"b", 0.25}}, 4, {3, 1, 0}},
        {{{"a", 0.333333}, {"b", 0.333333}, {"c", 0.333334}}, 3, {1, 1, 1}},
        {{{"a", 0.5}, {"c", 0.5}}, 2, {1, 0, 1}},
        {{{"b", 1.0}}, 1, {0, 1, 0}},
        {{{"a", 0.7}, {"b", 0.29}, {"c", 0.01}}, 100, {70, 29, 1}},
        {{{"a", 0.123}, {"b", 0.877}}, 1000, {123, 877, 0}},
        {{{"a", 0.00051}, {"b", 0.99949}}, 1000, {1, 999, 0}},  // finer than a thousandth: rounded
    }));
    RunConfig config = make_config(c.mix);
    config.stages[0].tokens = 8 * 16 * 400;
    std::vector<std::int64_t> counts(3, 0);
    std::int64_t slot = 0;
    CurriculumState s = initial_curriculum(config);
    for (; s.step < 400; s = advance(s, config))
        for (const SlotAssignment& a : slots_of(config, s)) {
            // The source's sequences come in order, none left out, none twice.
            CHECK(a.ordinal == counts[static_cast<std::size_t>(a.source)]++);
            if (++slot % c.window != 0) continue;
            for (std::size_t k = 0; k < 3; ++k)
                CHECK(counts[k] == c.counts[k] * (slot / c.window));
        }
    CHECK(slot == 3200);
    for (std::size_t k = 0; k < 3; ++k)
        CHECK(s.source_tokens[k] == counts[k] * 16);  // also of a part window
}

TEST_CASE("a stage goes on where the source stood", "[unit]") {
    RunConfig c = make_config({{"a", 0.7}, {"b", 0.3}}, {{"a", 0.5}, {"b", 0.5}});
    c.stages[1].seq_len = 48;  // 140 * 16 = 46.7 * 48
    c.stages[1].tokens = 8 * 48 * 10;
    CurriculumState s = initial_curriculum(c);
    while (s.stage == 0)
        s = advance(s, c);
    CHECK(s.source_tokens[0] + s.source_tokens[1] == 25 * 8 * 16);
    CHECK(s.source_tokens[0] == 25 * 8 * 16 * 7 / 10);
    std::map<std::int64_t, std::int64_t> first;
    for (; !run_finished(s, c); s = advance(s, c))
        for (const SlotAssignment& a : slots_of(c, s))
            first.try_emplace(a.source, a.ordinal);
    CHECK(first[0] == 47);
    CHECK(first[1] == 20);
    CHECK(s.source_tokens[0] == 140 * 16 + 40 * 48);
}

TEST_CASE("a slot depends on the state and its number only", "[unit]") {
    const RunConfig c = make_config({{"a", 0.6}, {"b", 0.3}, {"c", 0.1}});
    CurriculumState s = initial_curriculum(c);
    std::vector<SlotAssignment> dealt;
    for (; s.stage == 0; s = advance(s, c))
        for (std::int64_t i = 0; i < 8; ++i) {
            dealt.push_back(assign_slot(c, s, i));
            CHECK(same(dealt.back(), slots_of(c, s)[static_cast<std::size_t>(i)]));
        }
    // Resumed at any step: the state says it all.
    CurriculumState resumed;
    resumed.source_tokens = {0, 0, 0};
    resumed.step = 17;
    resumed.tokens = 17 * 128;
    for (std::int64_t i = 7; i >= 0; --i)
        CHECK(same(assign_slot(c, resumed, i), dealt[static_cast<std::size_t>(17 * 8 + i)]));
    // Another seed deals another order.
    RunConfig other = c;
    other.run.seed = 10;
    int differ = 0;
    for (std::int64_t i = 0; i < 8; ++i)
        differ += assign_slot(other, resumed, i).source != assign_slot(c, resumed, i).source;
    resumed.step = 3;
    for (std::int64_t i = 0; i < 8; ++i)
        differ += assign_slot(other, resumed, i).source != assign_slot(c, resumed, i).source;
    CHECK(differ > 0);
}
