// Prefix top-k as expiry times: one heap per kv head and document.
#include "kernels/cpu/select_keys.h"

#include <algorithm>
#include <vector>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/far_keys.h"
#include "kernels/cpu/ops.h"

namespace stoa::cpu {
namespace {

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
                kept.clear();
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

FarKeys find_far_keys(const std::int32_t* expiry, std::int64_t len, std::int64_t window,
                      std::int64_t tile_rows, std::int64_t first) {
    FarKeys far;
    std::vector<std::int32_t> active;
    std::int64_t seen = 0;
    for (std::int64_t t = first; t < len; t += tile_rows) {
        const std::int64_t last = std::min(len, t + tile_rows) - 1;
        std::erase_if(active, [&](std::int32_t s) { return expiry[s] <= t; });
        for (; seen + window <= last; ++seen)
            if (expiry[seen] > std::max(t, seen + window))
                active.push_back(static_cast<std::int32_t>(seen));
        far.keys.insert(far.keys.end(), active.begin(), active.end());
        far.begin.push_back(static_cast<std::int64_t>(far.keys.size()));
    }
    return far;
}

}  // namespace stoa::cpu
