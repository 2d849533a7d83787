#include "tests/support/catch.h"
#include "trainer/lr_schedule.h"

using namespace stoa;

namespace {

RunConfig config_of(ScheduleKind kind) {
    RunConfig c;
    c.optimizer.lr = 1.0;
    c.schedule = {.kind = kind, .warmup = 0.1, .decay = 0.2, .final_lr = 0.1};
    c.batch.global_batch = 1;
    c.stages = {{.name = "a", .tokens = 500, .seq_len = 10, .mix = {{"x", 1.0}}},
                {.name = "b", .tokens = 500, .seq_len = 10, .mix = {{"x", 1.0}}}};
    c.data.sources = {{.name = "x"}};
    return c;
}

double lr_after(const RunConfig& c, std::int64_t steps) {
    CurriculumState s = initial_curriculum(c);
    for (std::int64_t i = 0; i + 1 < steps; ++i)
        s = advance(s, c);
    return learning_rate(c, s);
}

}  // namespace

TEST_CASE("schedules are positioned in tokens", "[unit]") {
    // 100 steps of 10 tokens: warm-up ends at step 10
    CHECK(lr_after(config_of(ScheduleKind::wsd), 1) == Approx(0.1));
    CHECK(lr_after(config_of(ScheduleKind::wsd), 10) == Approx(1.0));
    CHECK(lr_after(config_of(ScheduleKind::wsd), 80) == Approx(1.0));
    CHECK(lr_after(config_of(ScheduleKind::wsd), 90) == Approx(0.55));
    CHECK(lr_after(config_of(ScheduleKind::wsd), 100) == Approx(0.1));
    CHECK(lr_after(config_of(ScheduleKind::constant), 100) == Approx(1.0));
    CHECK(lr_after(config_of(ScheduleKind::linear), 55) == Approx(0.55));
    CHECK(lr_after(config_of(ScheduleKind::cosine), 55) == Approx(0.55));
    CHECK(lr_after(config_of(ScheduleKind::cosine), 100) == Approx(0.1));
}

TEST_CASE("a stage scales and re-warms its segment", "[unit]") {
    RunConfig c = config_of(ScheduleKind::constant);
    c.stages[1].lr_scale = 0.5;
    c.stages[1].lr_warmup_tokens = 100;
    CHECK(lr_after(c, 50) == Approx(1.0));
    CHECK(lr_after(c, 51) == Approx(0.05));
    CHECK(lr_after(c, 60) == Approx(0.5));
    CHECK(lr_after(c, 100) == Approx(0.5));
}

TEST_CASE("warm-up may be given in tokens", "[unit]") {
    RunConfig c = config_of(ScheduleKind::constant);
    c.schedule.warmup_tokens = 200;
    CHECK(lr_after(c, 10) == Approx(0.5));
    c.schedule.warmup_tokens = 0;
    CHECK(lr_after(c, 1) == Approx(1.0));
}
