// Statistics of a selection, against counts by hand.
#include <cmath>

#include "kernels/core/buffer.h"
#include "kernels/tree_statistics.h"
#include "tests/support/attention_cases.h"
#include "tests/support/catch.h"

using namespace stoa;
using namespace stoa::test;

namespace {

// Leaves of 2, a window of 2: query t has t / 2 - 1 far leaves.
const TreeRule kRule{.window = 2, .leaf = 2, .fanout = 2, .beam = 1, .sinks = 0};

/// A selection of nothing, for one document of `len` tokens.
Tensor empty_selection(const TreeRule& rule, std::int64_t len) {
    Tensor t({1, len, tree_levels(rule, len), tree_slots(rule)}, DType::int32);
    std::ranges::fill(t.as<std::int32_t>(), -1);
    return t;
}
void choose(const Tensor& t, std::int64_t query, std::int64_t slot, std::int32_t leaf) {
    const std::int64_t stride = t.view.shape[2] * t.view.shape[3];
    t.as<std::int32_t>()[static_cast<std::size_t>(query * stride + slot)] = leaf;
}

}  // namespace

TEST_CASE("selection statistics count leaves, ages and dead leaves") {
    const std::int64_t len = 12;  // its last query has 4 far leaves
    const Tensor selection = empty_selection(kRule, len), begin = packed_documents(1, len, 100);
    choose(selection, 4, 0, 0);
    choose(selection, 6, 0, 1);
    choose(selection, 8, 0, 0);
    choose(selection, 11, 0, 0);
    const SelectionStatistics s = tree_selection_statistics(selection, begin, kRule);
    CHECK(s.selected == 4);
    CHECK(s.entropy == Approx(-0.75 * std::log(0.75) - 0.25 * std::log(0.25)));
    CHECK(s.mean_age_tokens == Approx((3 + 3 + 7 + 10) / 4.0));  // newest tokens are 1 and 3
    CHECK(s.dead_share == Approx(0.5));
}

TEST_CASE("a leaf that the sinks force is no choice") {
    TreeRule rule = kRule;
    rule.sinks = 1;
    const Tensor selection = empty_selection(rule, 12), begin = packed_documents(1, 12, 100);
    choose(selection, 8, 0, 0);
    choose(selection, 8, 1, 2);
    const SelectionStatistics s = tree_selection_statistics(selection, begin, rule);
    CHECK(s.selected == 1);
    CHECK(s.entropy == 0.0);
    CHECK(s.dead_share == Approx(2.0 / 3.0));
}

TEST_CASE("documents are counted apart, and what is within the window does not count") {
    const Tensor selection = empty_selection(kRule, 12), begin = packed_documents(1, 12, 6);
    choose(selection, 4, 0, 0);   // leaf 0 of the first document
    choose(selection, 10, 0, 0);  // and of the second
    const SelectionStatistics s = tree_selection_statistics(selection, begin, kRule);
    CHECK(s.selected == 2);
    CHECK(s.entropy == 0.0);
    CHECK(s.mean_age_tokens == 3.0);
    CHECK(s.dead_share == 0.0);
    const SelectionStatistics none =
        tree_selection_statistics(empty_selection(kRule, 3), packed_documents(1, 3, 100), kRule);
    CHECK(none.selected == 0);
    CHECK(none.dead_share == 0.0);
}

TEST_CASE("selection statistics refuse what does not fit") {
    const Tensor selection = empty_selection(kRule, 12), begin = packed_documents(1, 12, 100);
    CHECK_THROWS_AS(tree_selection_statistics(selection, packed_documents(1, 11, 100), kRule),
                    ShapeError);
    choose(selection, 4, 0, 7);  // not far
    CHECK_THROWS_AS(tree_selection_statistics(selection, begin, kRule), ShapeError);
}
