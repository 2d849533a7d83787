// Prefix top-k as expiry times: one heap per kv head and document.
#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/far_keys.h"
#include "kernels/cpu/ops.h"

namespace stoa::cpu {
namespace {

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

/// Tokens [begin, end) of one kv head; u(s) is the importance of token s.
template <class W, class Importance>
void select_in_document(std::int32_t* expiry, std::int64_t begin, std::int64_t end,
                        const KeyRule& rule, const Importance& u, std::vector<Ranked<W>>& kept) {
    const auto end32 = static_cast<std::int32_t>(end);
    for (std::int64_t s = begin; s < end; ++s)
        expiry[s] = s - begin < rule.sinks
                        ? end32
                        : static_cast<std::int32_t>(std::min(end, s + rule.window));
    const auto better = [](const Ranked<W>& a, const Ranked<W>& b) { return a.better_than(b); };
    kept.clear();  // a heap whose front is the least important
    for (std::int64_t t = begin + rule.window; t < end && rule.keep > 0; ++t) {
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

template <class W>
void select(const SelectKeysArgs& a) {
    const std::int64_t heads = a.expiry.shape[1], len = a.expiry.shape[2];
    const W* const u = a.importance.empty() ? nullptr : a.importance.as<W>().data();
    parallel_for(a.expiry.shape[0] * heads, grain_for(len), [&](std::int64_t i, std::int64_t last) {
        std::vector<Ranked<W>> kept;
        for (; i < last; ++i) {
            const std::int64_t batch = i / heads, head = i % heads;
            const auto* const begins = a.key_begin.as<std::int32_t>().data() + batch * len;
            std::int32_t* const expiry = a.expiry.as<std::int32_t>().data() + i * len;
            for (std::int64_t begin = 0, end = 0; begin < len; begin = end) {
                for (end = begin + 1; end < len && begins[end] == begins[begin];)
                    ++end;
                select_in_document<W>(
                    expiry, begin, end, a.rule,
                    [&](std::int64_t s) { return u[(batch * len + s) * heads + head]; }, kept);
            }
        }
    });
}

}  // namespace

void select_keys(const SelectKeysArgs& args) {
    if (!args.importance.empty() && args.importance.dtype == DType::fp64)
        return select<double>(args);
    select<float>(args);
}

FarKeys find_far_keys(const std::int32_t* expiry, std::int64_t len, std::int64_t window) {
    FarKeys far;
    std::vector<std::int32_t> active;
    std::int64_t seen = 0;
    for (std::int64_t t = 0; t < len; t += kTileRows) {
        const std::int64_t local = std::max<std::int64_t>(0, t - window + 1);
        std::erase_if(active, [&](std::int32_t s) { return expiry[s] <= t; });
        for (; seen < local; ++seen)
            if (expiry[seen] > t) active.push_back(static_cast<std::int32_t>(seen));
        far.keys.insert(far.keys.end(), active.begin(), active.end());
        far.begin.push_back(static_cast<std::int64_t>(far.keys.size()));
    }
    return far;
}

}  // namespace stoa::cpu
