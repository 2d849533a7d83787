// The prefix top-k as expiry times (importance_ranks.h), and the lists of far keys that come of
// them.
#include "kernels/cuda/device.h"
#include "kernels/cuda/importance_keys.h"
#include "kernels/cuda/importance_ranks.h"
#include "kernels/cuda/ops.h"

namespace stoa::cuda {
namespace {

/// A warp a segment of tokens of a kv head: the documents that begin in it.
template <class W>
STOA_KERNEL void select_kernel(std::int32_t* expiry, const W* importance,
                               const std::int32_t* key_begin, W* kept_importance,
                               std::int32_t* kept_token, std::int64_t warps, std::int64_t segments,
                               std::int64_t segment, std::int64_t heads, std::int64_t len,
                               std::int64_t window, std::int64_t sinks, std::int64_t keep) {
    const std::int64_t warp = global_thread() / kWarp;
    if (warp >= warps) return;
    const std::int64_t row = warp / segments, batch = row / heads, head = row % heads;
    const std::int64_t from = warp % segments * segment,
                       to = from + segment < len ? from + segment : len;
    const std::int32_t* const begins = key_begin + batch * len;
    Kept<W> kept{kept_importance + warp * keep, kept_token + warp * keep, keep};
    for (std::int64_t chunk = from; chunk < to; chunk += kWarp) {
        const std::int64_t t = chunk + thread_index() % kWarp;
        for (std::uint32_t left = warp_ballot(t < to && begins[t] == t); left != 0;
             left &= left - 1) {
            const std::int64_t begin = chunk + lowest_bit(left);
            kept.count = 0;
            select_document(expiry + row * len, importance + batch * len * heads + head, heads,
                            begin, document_end(begins, begin, len), window, sinks, kept);
        }
    }
}

/// A warp a tile of queries: the keys that any of them sees although they have left its window.
STOA_KERNEL void far_kernel(std::int32_t* keys, std::int32_t* counts, const std::int32_t* expiry,
                            const std::int32_t* key_begin, std::int64_t rows, std::int64_t heads,
                            std::int64_t len, std::int64_t window, std::int64_t tiles,
                            std::int64_t tile_rows, std::int64_t first, std::int64_t capacity) {
    const std::int64_t warp = global_thread() / kWarp;
    if (warp >= rows * tiles) return;
    const std::int64_t row = warp / tiles, t = first + warp % tiles * tile_rows;
    const std::int64_t last = (t + tile_rows < len ? t + tile_rows : len) - 1;
    const int lane = thread_index() % kWarp;
    std::int32_t* const list = keys + warp * capacity;
    std::int64_t count = 0;
    // What the first query's document does not hold, expires before it.
    for (std::int64_t chunk = key_begin[row / heads * len + t]; chunk + window <= last;
         chunk += kWarp) {
        const std::int64_t s = chunk + lane;
        bool seen = false;
        if (s + window <= last) {
            const std::int64_t until = expiry[row * len + s];
            seen = until > t && until > s + window;
        }
        const std::uint32_t all = warp_ballot(seen);
        const std::int64_t at = count + count_bits(all & ((1u << lane) - 1u));
        if (seen && at < capacity) list[at] = static_cast<std::int32_t>(s);
        count += count_bits(all);
    }
    if (lane == 0) counts[warp] = static_cast<std::int32_t>(count < capacity ? count : capacity);
}

template <class W>
void select(const SelectKeysArgs& a, Stream stream) {
    const std::int64_t rows = a.expiry.shape[0] * a.expiry.shape[1], len = a.expiry.shape[2];
    const std::int64_t keep = std::min(a.rule.keep, len);
    const SelectKeysScratch room = select_keys_scratch(a);
    const std::int64_t warps = rows * room.segments;
    const Scratch importance(stream, room.importance), token(stream, room.token);
    launch({.name = "select_keys",
            .blocks = blocks_for(warps, kThreads / kWarp),
            .threads = kThreads,
            .stream = stream},
           select_kernel<W>, a.expiry.as<std::int32_t>().data(),
           a.importance.empty() ? nullptr : a.importance.as<W>().data(),
           a.key_begin.as<std::int32_t>().data(), importance.as<W>(), token.as<std::int32_t>(),
           warps, room.segments, room.segment, a.expiry.shape[1], len, a.rule.window, a.rule.sinks,
           keep);
}

}  // namespace

void select_keys(const SelectKeysArgs& args, Stream stream) {
    if (!args.importance.empty() && args.importance.dtype == DType::fp64)
        return select<double>(args, stream);
    select<float>(args, stream);
}

FarLists::FarLists(const ImportanceShape& n, const std::int32_t* expiry,
                   const std::int32_t* key_begin, std::int64_t tile_rows, Stream stream)
    : room(far_list_scratch(n.batch, n.n_kv_heads, n.q_len, n.len, n.rule, tile_rows)),
      keys(stream, room.keys),
      counts(stream, room.counts) {
    const std::int64_t rows = n.batch * n.n_kv_heads;
    launch({.name = "importance_attention: far keys",
            .blocks = blocks_for(rows * room.tiles, kThreads / kWarp),
            .threads = kThreads,
            .stream = stream},
           far_kernel, keys.as<std::int32_t>(), counts.as<std::int32_t>(), expiry, key_begin, rows,
           n.n_kv_heads, n.len, n.rule.window, room.tiles, tile_rows, n.len - n.q_len,
           room.capacity);
}

}  // namespace stoa::cuda
