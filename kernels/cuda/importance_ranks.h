#pragma once
// The prefix top-k of one kv head and document as expiry times. A warp follows the document: its
// lanes share out the kept tokens, and what a lane has it alone reads and writes, so that nothing
// waits for memory. Of 32 candidates at a time those that beat the worst of the kept take its
// place, one after the other in their order: the CPU's choice to the last bit.
#include <limits>

#include "kernels/cuda/lane_groups.h"

namespace stoa::cuda {

/// A token's rank; unique, so that ties cannot depend on the order of work.
template <class W>
struct Ranked {
    W importance;
    std::int32_t token;
};
template <class W>
STOA_DEVICE Ranked<W> rank_of(W importance, std::int64_t token) {
    if (importance != importance) importance = -std::numeric_limits<W>::infinity();
    return {importance, static_cast<std::int32_t>(token)};
}
template <class W>
STOA_DEVICE bool better(const Ranked<W>& a, const Ranked<W>& b) {
    return a.importance > b.importance || (a.importance == b.importance && a.token < b.token);
}

template <class W>
struct Slot {
    Ranked<W> rank;
    std::int64_t index;  // -1: none
};
/// Of a warp's `count` slots, of which lane i % 32 reads slot i, the one that is worse than all
/// others; for all lanes.
template <class W, class At>
STOA_DEVICE Slot<W> worst_of(std::int64_t count, const At& at) {
    Slot<W> own{{std::numeric_limits<W>::infinity(), -1}, -1};
    for (std::int64_t i = thread_index() % kWarp; i < count; i += kWarp) {
        const Ranked<W> r = at(i);
        if (own.index < 0 || better(own.rank, r)) own = {r, i};
    }
    for (int half = kWarp / 2; half > 0; half /= 2) {
        const Slot<W> other{
            {shuffle_down(own.rank.importance, half), shuffle_down(own.rank.token, half)},
            shuffle_down(own.index, half)};
        if (other.index >= 0 && (own.index < 0 || better(own.rank, other.rank))) own = other;
    }
    return {{shuffle(own.rank.importance, 0), shuffle(own.rank.token, 0)}, shuffle(own.index, 0)};
}

/// The kept tokens of one warp; slot i is lane i % 32's.
template <class W>
struct Kept {
    W* importance;
    std::int32_t* token;
    std::int64_t most, count = 0;
    Ranked<W> worst{};  // of all lanes, and its slot
    std::int64_t worst_slot = 0;

    STOA_DEVICE void put(std::int64_t slot, const Ranked<W>& r) const {
        if (slot % kWarp != thread_index() % kWarp) return;
        importance[slot] = r.importance;
        token[slot] = r.token;
    }
    STOA_DEVICE void find_worst() {
        const Slot<W> slot = worst_of<W>(count, [&](std::int64_t i) {
            return Ranked<W>{importance[i], token[i]};
        });
        worst = slot.rank;
        worst_slot = slot.index;
    }
};

/// Expiry times of tokens [begin, end), each written by lane token % 32 alone. The first `far` have
/// left the window already: those in `kept` (and sinks) stay until better ones come.
template <class W>
STOA_DEVICE void select_document(std::int32_t* expiry, const W* importance, std::int64_t stride,
                                 std::int64_t begin, std::int64_t end, std::int64_t window,
                                 std::int64_t sinks, Kept<W>& kept, std::int64_t far = 0) {
    const int lane = thread_index() % kWarp;
    const std::int64_t first = begin / kWarp * kWarp;
    for (std::int64_t s = first + lane; s < end; s += kWarp) {
        if (s < begin) continue;
        const bool stays = s - begin < sinks || s - begin < far || s + window > end;
        expiry[s] = static_cast<std::int32_t>(stays ? end : s + window);
    }
    if (kept.most == 0) return;
    if (kept.count == kept.most) kept.find_worst();
    const std::int64_t behind = begin + (sinks > far ? sinks : far);  // the first candidate
    for (std::int64_t chunk = first; chunk < end - window; chunk += kWarp) {
        const std::int64_t s = chunk + lane;
        const bool candidate = s >= behind && s < end - window;
        const Ranked<W> own = rank_of(candidate ? importance[s * stride] : W{0}, s);
        const bool full = kept.count == kept.most;
        std::uint32_t left = warp_ballot(candidate && (!full || better(own, kept.worst)));
        for (; left != 0; left &= left - 1) {
            const int from = lowest_bit(left);
            const Ranked<W> r{shuffle(own.importance, from), shuffle(own.token, from)};
            std::int64_t slot = kept.count;
            if (kept.count == kept.most) {
                if (!better(r, kept.worst)) continue;
                if (kept.worst.token % kWarp == lane)
                    expiry[kept.worst.token] = static_cast<std::int32_t>(r.token + window);
                slot = kept.worst_slot;
            } else {
                ++kept.count;
            }
            kept.put(slot, r);
            if (lane == from) expiry[r.token] = static_cast<std::int32_t>(end);
            if (kept.count == kept.most) kept.find_worst();
        }
    }
}

}  // namespace stoa::cuda
