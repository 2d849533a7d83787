// Who keeps which rows' masters and moments (parallel.zero).
#include <set>

#include "kernels/quantize.h"
#include "tests/support/catch.h"
#include "tests/support/tiny_run.h"

using namespace stoa;
using namespace stoa::test;

namespace {

ModelState layout(const RunConfig& c, int dp_rank) {
    Placer list;
    return layout_model_state(list, c, local_dims(c, 0, 1), 16, 0, 1, dp_rank);
}

}  // namespace

TEST_CASE("every row is one dp rank's, in whole blocks, and the ranks' shares are even", "[unit]") {
    const int dp = GENERATE(1, 2, 3, 8);
    const Recipe recipe = GENERATE(Recipe::fp32, Recipe::r30);
    const std::int64_t zero = GENERATE(1, 2, 3);
    const RunConfig c = tiny_config({.vocab_size = 3001,
                                     .micro_batch = 1,
                                     .recipe = recipe,
                                     .global_batch = 24,
                                     .whole_blocks = true,
                                     .zero = zero},
                                    dp, 1);
    std::vector<ModelState> ranks;
    for (int r = 0; r < dp; ++r)
        ranks.push_back(layout(c, r));
    for (const Unit& unit : ranks[0].units) {
        std::vector<std::int64_t> share(static_cast<std::size_t>(dp));
        std::int64_t largest_block = 0, total = 0;
        for (std::size_t i = unit.first; i < unit.first + unit.count; ++i) {
            const Param& first = ranks[0].params[i];
            const std::int64_t cols = first.global_shape[1];
            CAPTURE(first.name, dp);
            CHECK(first.owners.empty() == (dp == 1));
            if (dp == 1) CHECK(first.mine.count == first.local_rows);
            std::int64_t next = 0;  // the rows are dealt out in order
            for (const OwnedRows& o : first.owners) {
                const Param& p = ranks[static_cast<std::size_t>(o.dp_rank)].params[i];
                CHECK(o.begin == next);
                CHECK(o.begin % kQuantBlock == 0);
                CHECK(p.mine.begin == o.begin);
                CHECK(p.mine.count == o.count);
                CHECK(p.master.shape[0] == o.count);
                CHECK(p.grad.shape == p.master.shape);
                CHECK(p.m.data.shape == p.master.shape);
                CHECK(p.v.data.shape == p.master.shape);
                next += o.count;
                share[static_cast<std::size_t>(o.dp_rank)] += o.count * cols;
                largest_block = std::max(largest_block, kQuantBlock * cols);
                total += o.count * cols;
            }
            if (dp > 1) CHECK(next == first.local_rows);
        }
        for (const std::int64_t s : share)
            if (dp > 1) CHECK(std::abs(s - total / dp) <= largest_block);
    }
}

TEST_CASE("sharing out saves the memory of masters and moments, and zero: 0 keeps all", "[unit]") {
    TinyOptions o{.vocab_size = 4096,
                  .micro_batch = 1,
                  .recipe = Recipe::r30,
                  .global_batch = 4,
                  .whole_blocks = true};
    const auto state_bytes = [&](int dp, int zero) {
        o.zero = zero;
        RunConfig c = tiny_config(o, dp, 1);
        c.checkpoint.blocking = true;  // without the snapshot, of which dp ranks have a part, too
        return plan_memory(c, 0, 1).state_bytes;
    };
    const std::int64_t all = state_bytes(1, 1);
    CHECK(state_bytes(4, 0) == all);
    // r30: of 4 (gradient) + 1 or 2 (work) + 4 + 1 + 2 bytes a parameter, three quarters of 7.
    const auto saved = [&](int zero) {
        return 1.0 - static_cast<double>(state_bytes(4, zero)) / static_cast<double>(all);
    };
    CHECK(saved(1) > 0.36);
    CHECK(saved(1) < 0.46);
    CHECK(saved(2) > saved(1));
    CHECK(saved(3) > saved(2));
}
