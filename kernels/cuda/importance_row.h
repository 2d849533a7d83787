#pragma once
// One query of the importance attention, whatever memory its keys lie in: what the forward and the
// cache of decoding share, so that both have the same bits.
#include "kernels/cuda/importance_keys.h"

namespace stoa::cuda {

/// Up to 32 keys: of item i the key is list[i], or without a list first + i.
struct KeyItems {
    const std::int32_t* list;
    std::int64_t first;
    STOA_DEVICE std::int64_t at(int i) const { return list != nullptr ? list[i] : first + i; }
};

/// The weights that a warp's lanes have of up to `Count` x 32 keys, for all of its lanes.
template <class W, int Count>
struct Weights {
    Shared<W> room;  // (2, warps, Count * 32)
    int set = 0;
    STOA_DEVICE int at(int i) const {
        return (set * (block_threads() / kWarp) + thread_index() / kWarp) * Count * kWarp + i;
    }
    STOA_DEVICE void begin() { set = 1 - set; }
    STOA_DEVICE void write(int i, W weight) const { room.write(at(i), weight); }
    STOA_DEVICE W read(int i) const { return room.read(at(i)); }
};

/// out and lse of a row from its sums; lse may be null.
template <class T, class W>
STOA_DEVICE void finish(T* out, W* lse, RowSum<W>& sum, W total, W base, W sink, std::int64_t first,
                        std::int64_t dim) {
    total += fused_exp(sink - base);
    sum.times(W{1} / total);
    sum.store(out, first, dim);
    if (first == 0 && thread_index() % kWarp == 0 && lse != nullptr) *lse = base + std::log(total);
}

/// A warp's query from its keys. Of the query:
///   for_keys(fn)      fn(items, the lane's key, whether it has left the window, whether it is
///                     seen) for 32 keys at a time, in their order
///   score(key, far)   with its gate
///   value(key)        its row of v
/// `here`: false for a warp without a query, which only meets the others at the barriers.
template <class T, class W, class Query>
STOA_DEVICE void attend_row(T* out, W* lse, const Query& query, Weights<W, 1>& weights, W sink,
                            std::int64_t dim, bool here) {
    W max = sink;
    query.for_keys([&](const KeyItems&, std::int64_t s, bool far, bool seen) {
        const W z = seen ? query.score(s, far) : max;
        max = z > max ? z : max;
    });
    const W base = score_base(warp_largest(max));
    for (std::int64_t first = 0; first < dim; first += kRowChannels) {
        RowSum<W> sum;
        W total = 0;
        query.for_keys([&](const KeyItems& items, std::int64_t s, bool far, bool seen) {
            weights.begin();
            weights.write(thread_index() % kWarp,
                          seen ? fused_exp(query.score(s, far) - base) : W{0});
            const std::uint32_t all = warp_ballot(seen);
            sync_block();
            for (std::uint32_t left = all; left != 0; left &= left - 1) {
                const int i = lowest_bit(left);
                const W weight = weights.read(i);
                total += weight;
                sum.add(weight, W{1}, query.value(items.at(i)), first, dim);
            }
        });
        if (here) finish(out, lse, sum, total, base, sink, first, dim);
    }
}

}  // namespace stoa::cuda
