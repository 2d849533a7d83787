#include <cmath>

#include "tests/support/catch.h"
#include "tests/support/tensors.h"
#include "tests/support/tiny_run.h"
#include "trainer/model/attend.h"
#include "trainer/selection.h"

using namespace stoa;
using namespace stoa::test;

namespace {

Tensor int_tensor(const std::vector<std::int32_t>& values) {
    Tensor t({std::ssize(values)}, DType::int32);
    std::ranges::copy(values, t.as<std::int32_t>().begin());
    return t;
}

}  // namespace

TEST_CASE("statistics of kept tokens count what the queries see", "[selection]") {
    // One document of 8 tokens, window 2, one sink: token 1 is kept from 3 to the end, token 2 for
    // one query, the others never.
    const Tensor expiry = int_tensor({8, 8, 5, 5, 6, 7, 8, 9}),
                 key_begin = int_tensor({0, 0, 0, 0, 0, 0, 0, 0});
    const SelectionStatistics k = kept_statistics(expiry.view.reshaped({1, 1, 8}), key_begin, 2, 1);
    CHECK(k.selected == 5 + 1);
    CHECK(k.mean_age_tokens == Approx((2 + 3 + 4 + 5 + 6 + 2) / 6.0));
    CHECK(k.entropy == Approx(-(5 / 6.0 * std::log(5 / 6.0) + 1 / 6.0 * std::log(1 / 6.0))));
    CHECK(k.dead_share == Approx(3.0 / 5.0));  // of tokens 1 to 5, which left the window
    // Two documents of 4: nobody outlives the own one.
    const Tensor two = int_tensor({0, 0, 0, 0, 4, 4, 4, 4});
    const Tensor ends = int_tensor({4, 4, 4, 5, 8, 8, 8, 9});
    const SelectionStatistics split = kept_statistics(ends.view.reshaped({1, 1, 8}), two, 2, 1);
    CHECK(split.selected == 2);
    CHECK(split.mean_age_tokens == 2.0);
}

TEST_CASE("each layer that selects says what it selected", "[selection]") {
    const Recompute recompute = GENERATE(Recompute::none, Recompute::full);
    RunConfig c =
        tiny_config({.recompute = recompute,
                     .seq_len = 64,
                     .attention = tiny_attention(AttentionKind::dynamic, KeySelector::tree, "TPW")},
                    1, 1);
    TrainState s = make_train_state(c, 0, 1, Exec{});
    StepInputs in{.lr = 1e-3};
    in.micro_batches.push_back(tiny_batch(c, 0, 0));
    train_step(s, in, Mesh{}, Exec{});
    const auto all = layer_selections(s, Exec{});
    REQUIRE(all.size() == 2);
    CHECK(all[0].layer == 0);
    CHECK(all[1].layer == 1);
    for (const LayerSelection& l : all) {
        CHECK(l.statistics.selected > 0);
        CHECK(l.statistics.mean_age_tokens > 0.0);
        CHECK(l.statistics.entropy > 0.0);
    }
    set_attention(s.dims, AttentionConfig{});
    CHECK(layer_selections(s, Exec{}).empty());
}
