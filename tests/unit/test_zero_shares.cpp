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
    const RunConfig c = tiny_config({.vocab_size = 3001,
                                     .micro_batch = 1,
                                     .recipe = recipe,
                                     .global_batch = 24,
                                     .whole_blocks = true},
                                    dp, 1);
    std::vector<ModelState> ranks;
    for (int r = 0; r < dp; ++r)
        ranks.push_back(layout(c, r));
    std::vector<std::int64_t> share(static_cast<std::size_t>(dp));
    std::int64_t largest_block = 0, total = 0;
    for (std::size_t i = 0; i < ranks[0].params.size(); ++i) {
        const Param& first = ranks[0].params[i];
        std::int64_t next = 0;  // the rows are dealt out in order
        for (int r = 0; r < dp; ++r) {
            const Param& p = ranks[static_cast<std::size_t>(r)].params[i];
            CAPTURE(p.name, r, dp);
            CHECK(p.master.shape[0] == (p.is_norm() ? p.master.shape[0] : p.mine.count));
            if (p.is_norm() || dp == 1) {
                CHECK(p.owners.empty());
                CHECK(p.mine.count == p.local_rows);
                continue;
            }
            CHECK(p.m.data.shape == p.master.shape);
            CHECK(p.v.data.shape == p.master.shape);
            if (p.mine.count == 0) continue;
            CHECK(p.mine.begin == next);
            CHECK(p.mine.begin % kQuantBlock == 0);
            next += p.mine.count;
            const std::int64_t cols = p.master.shape[1];
            share[static_cast<std::size_t>(r)] += p.mine.count * cols;
            largest_block = std::max(largest_block, kQuantBlock * cols);
            total += p.mine.count * cols;
        }
        if (!first.is_norm() && dp > 1) CHECK(next == first.local_rows);
    }
    for (const std::int64_t s : share)
        if (dp > 1) CHECK(std::abs(s - total / dp) <= largest_block);
}

TEST_CASE("sharing out saves the memory of masters and moments, and zero: 0 keeps all", "[unit]") {
    TinyOptions o{.vocab_size = 4096,
                  .micro_batch = 1,
                  .recipe = Recipe::r30,
                  .global_batch = 4,
                  .whole_blocks = true};
    const auto state_bytes = [&](int dp, int zero) {
        o.zero = zero;
        return plan_memory(tiny_config(o, dp, 1), 0, 1).state_bytes;
    };
    const std::int64_t all = state_bytes(1, 1);
    CHECK(state_bytes(4, 0) == all);
    // r30: of 4 (gradient) + 1 or 2 (work) + 4 + 1 + 2 bytes a parameter, three quarters of 7.
    const double saved = 1.0 - static_cast<double>(state_bytes(4, 1)) / static_cast<double>(all);
    CHECK(saved > 0.36);
    CHECK(saved < 0.46);
}
