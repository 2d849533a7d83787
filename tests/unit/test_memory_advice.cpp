#include "tests/support/catch.h"
#include "tests/support/tiny_run.h"
#include "trainer/memory_advice.h"

using namespace stoa;
using namespace stoa::test;

namespace {

RunConfig wide_config(Recipe recipe) {
    RunConfig c = tiny_config(
        {.micro_batch = 4, .recipe = recipe, .whole_blocks = true, .seq_len = 256}, 1, 1);
    c.data.sources[0].path = "shards";
    c.data.tokenizer = "tokenizer.json";
    return c;
}
std::int64_t bytes_of(const RunConfig& c) { return plan_memory(c, 0, 1).rank_bytes(); }

}  // namespace

TEST_CASE("what fits is not refused, what does not is, before anything is allocated", "[unit]") {
    const RunConfig c = wide_config(Recipe::bf16);
    const MemoryPlan plan = plan_memory(c, 0, 1);
    const std::int64_t all = plan.rank_bytes() + kOutsidePlanBytes;
    require_fits(c, plan, 1, all);
    require_fits(c, plan, 2, 2 * all);
    require_fits(c, plan, 1, 0);  // the machine does not say
    const std::int64_t held = allocated_bytes();
    CHECK_THROWS_AS(require_fits(c, plan, 1, all - 1), MemoryError);
    CHECK_THROWS_AS(require_fits(c, plan, 2, 2 * all - 2), MemoryError);
    CHECK(allocated_bytes() == held);
}

TEST_CASE("advice is at most three changes, each of which fits", "[unit]") {
    const RunConfig c = wide_config(Recipe::fp32);
    const std::int64_t limit = bytes_of(c) * 9 / 10;
    const auto advice = advise(c, limit);
    REQUIRE(!advice.empty());
    CHECK(advice.size() <= 3);
    for (const Advice& a : advice) {
        CAPTURE(a.change);
        CHECK(a.bytes <= limit);
        CHECK(a.change.find('=') != std::string::npos);
    }
    RunConfig tight = c;  // no single change is enough: they are added up
    const auto several = advise(tight, bytes_of(c) / 3);
    REQUIRE(!several.empty());
    CHECK(several[0].change.find(' ') != std::string::npos);
    CHECK(advise(c, 1000).empty());
}

TEST_CASE("disk need counts masters and moments of the logical model", "[unit]") {
    RunConfig c = wide_config(Recipe::fp32);
    c.checkpoint.keep = 3;
    const DiskNeed fp32 = plan_disk(c);
    CHECK(fp32.checkpoint_bytes == 12 * count_parameters(c));
    CHECK(fp32.run_bytes == 4 * fp32.checkpoint_bytes);
    c.precision.recipe = Recipe::r50;
    CHECK(plan_disk(c).checkpoint_bytes < fp32.checkpoint_bytes / 2);
}
