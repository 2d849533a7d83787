#include "trainer/selection.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "kernels/device_memory.h"
#include "trainer/model/attend.h"

namespace stoa {
namespace {

// Sums over one document and kv head: tokens [begin, end) of a row.
struct Kept {
    double visits = 0.0, ages = 0.0, log_sum = 0.0;  // log_sum: of n log n over tokens
    std::int64_t tokens = 0, never = 0;              // that left the window; that nobody kept
};
Kept kept_of(const std::int32_t* expiry, std::int64_t begin, std::int64_t end, std::int64_t window,
             std::int64_t sinks) {
    Kept k;
    for (std::int64_t s = begin + sinks; s + window < end; ++s) {
        const std::int64_t left = s + window, until = std::min<std::int64_t>(expiry[s], end);
        const auto n = static_cast<double>(std::max<std::int64_t>(0, until - left));
        ++k.tokens;
        if (n == 0.0) {
            ++k.never;
            continue;
        }
        k.visits += n;
        k.ages += n * (static_cast<double>(left - s) + 0.5 * (n - 1.0));
        k.log_sum += n * std::log(n);
    }
    return k;
}

Tensor on_host(const TensorView& x, const Exec& exec) {
    Tensor t(x.shape, x.dtype);
    copy(t, x, exec);
    return t;
}

}  // namespace

SelectionStatistics kept_statistics(const ConstTensorView& expiry, const ConstTensorView& key_begin,
                                    std::int64_t window, std::int64_t sinks) {
    const std::int64_t heads = expiry.shape[1], len = expiry.shape[2];
    SelectionStatistics out;
    double visits = 0.0, ages = 0.0, entropies = 0.0;
    std::int64_t counted = 0, tokens = 0, never = 0;
    for (std::int64_t row = 0; row < expiry.shape[0] * heads; ++row) {
        const std::int32_t* const begins = key_begin.as<std::int32_t>().data() + row / heads * len;
        for (std::int64_t begin = 0, end = 0; begin < len; begin = end) {
            for (end = begin + 1; end < len && begins[end] == begins[begin];)
                ++end;
            const Kept k =
                kept_of(expiry.as<std::int32_t>().data() + row * len, begin, end, window, sinks);
            visits += k.visits;
            ages += k.ages;
            tokens += k.tokens;
            never += k.never;
            if (k.visits == 0.0) continue;
            entropies += std::log(k.visits) - k.log_sum / k.visits;
            ++counted;
        }
    }
    out.selected = static_cast<std::int64_t>(visits);
    if (counted > 0) out.entropy = entropies / static_cast<double>(counted);
    if (visits > 0.0) out.mean_age_tokens = ages / visits;
    if (tokens > 0) out.dead_share = static_cast<double>(never) / static_cast<double>(tokens);
    return out;
}

std::vector<LayerSelection> layer_selections(const TrainState& s, const Exec& exec) {
    std::vector<LayerSelection> all;
    std::set<const std::byte*> seen;
    const AttentionConfig& rule = s.dims.attention_rule;
    for (std::size_t l = 0; l < s.acts.saved.size(); ++l) {
        const TensorView& selection = s.acts.saved[l].selection;
        const LayerAttention kind = s.dims.attention[l];
        if (!selects_keys(kind) || selection.empty() || !seen.insert(selection.data).second)
            continue;
        const Tensor chosen = on_host(selection, exec), begins = on_host(s.acts.key_begin, exec);
        all.push_back({static_cast<std::int64_t>(l),
                       kind == LayerAttention::tree
                           ? tree_selection_statistics(chosen, begins, tree_rule(rule))
                           : kept_statistics(chosen, begins, rule.window, rule.sinks)});
    }
    return all;
}

}  // namespace stoa
