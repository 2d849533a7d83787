#include "kernels/tree_statistics.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/attention_checks.h"

namespace stoa {
namespace {

struct Sums {
    std::int64_t selected = 0, units = 0, leaves = 0, dead = 0;
    double entropy = 0.0, age = 0.0;
};

/// One document and kv head: `selection` of its first token, `stride` to a token.
void add_document(Sums& sums, const std::int32_t* selection, std::int64_t stride, std::int64_t len,
                  const TreeRule& rule, std::vector<std::int64_t>& times) {
    const std::int64_t far = (len - 1) / rule.leaf - rule.window / rule.leaf;
    const std::int64_t forced = rule.sinks > 0 ? 1 : 0;
    if (far <= forced) return;
    times.assign(static_cast<std::size_t>(far), 0);
    std::int64_t selected = 0;
    for (std::int64_t t = 0; t < len; ++t)
        for (std::int64_t i = 0; i < tree_slots(rule) && selection[t * stride + i] >= 0; ++i) {
            const std::int64_t leaf = selection[t * stride + i];
            if (leaf < forced) continue;
            require(leaf < far, "selection_statistics: selection", "far leaves",
                    std::to_string(leaf) + " of " + std::to_string(far));
            ++times[static_cast<std::size_t>(leaf)];
            ++selected;
            sums.age += static_cast<double>(t - ((leaf + 1) * rule.leaf - 1));
        }
    sums.selected += selected;
    sums.leaves += far - forced;
    sums.dead += std::count(times.begin() + forced, times.end(), 0);
    if (selected == 0) return;
    ++sums.units;
    for (const std::int64_t n : times)
        if (n > 0) {
            const double p = static_cast<double>(n) / static_cast<double>(selected);
            sums.entropy -= p * std::log(p);
        }
}

}  // namespace

SelectionStatistics tree_selection_statistics(const ConstTensorView& selection,
                                              const ConstTensorView& key_begin,
                                              const TreeRule& rule) {
    require_tree_rule(rule);
    require(selection.shape.rank == 4, "selection_statistics: selection",
            "(batch * n_kv_heads, len, levels, slots)", selection.shape.str());
    const std::int64_t rows = selection.shape[0], len = selection.shape[1];
    require_shape(selection, {rows, len, tree_levels(rule, len), tree_slots(rule)},
                  "selection_statistics: selection");
    require_dtype(selection, DType::int32, "selection_statistics: selection");
    const std::int64_t batch = len == 0 ? 0 : key_begin.numel() / len;
    require(batch > 0 && rows % batch == 0, "selection_statistics: key_begin",
            "(batch * len) of the selection", key_begin.shape.str());
    require_documents(key_begin, batch, len, "selection_statistics: key_begin");
    const std::int32_t* const chosen = selection.as<std::int32_t>().data();
    const std::int64_t stride = selection.shape[2] * selection.shape[3];
    Sums sums;
    std::vector<std::int64_t> times;
    for (std::int64_t row = 0; row < rows; ++row) {
        const std::int32_t* const begins =
            key_begin.as<std::int32_t>().data() + row / (rows / batch) * len;
        for (std::int64_t begin = 0, end = 0; begin < len; begin = end) {
            for (end = begin + 1; end < len && begins[end] == begins[begin];)
                ++end;
            add_document(sums, chosen + (row * len + begin) * stride, stride, end - begin, rule,
                         times);
        }
    }
    const auto mean = [](double sum, std::int64_t n) {
        return n == 0 ? 0.0 : sum / static_cast<double>(n);
    };
    return {.selected = sums.selected,
            .entropy = mean(sums.entropy, sums.units),
            .mean_age_tokens = mean(sums.age, sums.selected),
            .dead_share = mean(static_cast<double>(sums.dead), sums.leaves)};
}

}  // namespace stoa
