#pragma once
// The prefix top-k of one kv head and document, as expiry times.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/importance_attention.h"

namespace stoa::cpu {

/// A token's rank: unique, so that ties cannot depend on the order of work.
template <class W>
struct Ranked {
    W importance;
    std::int32_t token;
    bool better_than(const Ranked& o) const {
        return importance > o.importance || (importance == o.importance && token < o.token);
    }
};
template <class W>
Ranked<W> rank_of(W importance, std::int64_t token) {
    if (std::isnan(importance)) importance = -std::numeric_limits<W>::infinity();
    return {importance, static_cast<std::int32_t>(token)};
}

/// Tokens [begin, end) of one kv head; u(s) is the importance of token s. The first `far` tokens
/// have left the window already: those in `kept` (and sinks) stay until better ones come.
template <class W, class Importance>
void select_in_document(std::int32_t* expiry, std::int64_t begin, std::int64_t end,
                        const KeyRule& rule, const Importance& u, std::vector<Ranked<W>>& kept,
                        std::int64_t far = 0) {
    const auto end32 = static_cast<std::int32_t>(end);
    for (std::int64_t s = begin; s < end; ++s)
        expiry[s] = s - begin < rule.sinks || s - begin < far
                        ? end32
                        : static_cast<std::int32_t>(std::min(end, s + rule.window));
    const auto better = [](const Ranked<W>& a, const Ranked<W>& b) { return a.better_than(b); };
    std::make_heap(kept.begin(), kept.end(), better);  // its front is the least important
    for (std::int64_t t = begin + far + rule.window; t < end && rule.keep > 0; ++t) {
        const std::int64_t s = t - rule.window;  // leaves the window of query t
        if (s - begin < rule.sinks) continue;
        const Ranked<W> candidate = rank_of<W>(u(s), s);
        if (std::ssize(kept) == rule.keep) {
            if (!candidate.better_than(kept.front())) continue;
            std::pop_heap(kept.begin(), kept.end(), better);
            expiry[kept.back().token] = static_cast<std::int32_t>(t);
            kept.pop_back();
        }
        kept.push_back(candidate);
        std::push_heap(kept.begin(), kept.end(), better);
        expiry[s] = end32;
    }
}

}  // namespace stoa::cpu
