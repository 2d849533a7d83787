#include <algorithm>

#include "kernels/cuda/importance_ranks.h"
#include "kernels/cuda/importance_rows.h"

namespace stoa::cuda {
namespace {

/// What happens when a token comes: the oldest of a full window leaves it, joins the far keys or
/// competes with the kept ones; a window at the end of its rows moves back.
struct Arrival {
    bool joins, competes, moves_back;
    std::int64_t window_from, window_keys;  // what is left of the window, before it moves
};

/// A block a kv head, a channel (or a gate, or an importance) a thread: it alone moves all rows of
/// its own, so that they need no barrier.
template <class T, class W = Wide<T>>
STOA_KERNEL void push_kernel(CacheRows<T> c, NewTokens<T> a, Arrival arrival) {
    SharedMemory memory;
    const Shared<std::int32_t> leaves = memory.array<std::int32_t>(1);  // this kept row, or none
    const std::int64_t head = block_index(), oldest = c.window_begin, at = head * c.rows;
    std::int64_t least = -1;
    if (arrival.competes) {
        if (thread_index() < kWarp) {
            const std::int64_t sinks = c.rule.sinks;
            const auto rank = [&](std::int64_t row) {
                return rank_of(c.importance[at + row], row);
            };
            const Slot<double> worst = worst_of<double>(
                c.far_keys - sinks, [&](std::int64_t i) { return rank(sinks + i); });
            const bool beaten = better(rank(oldest), worst.rank);
            if (thread_index() == 0)
                leaves.write(0, beaten ? static_cast<std::int32_t>(sinks + worst.index) : -1);
        }
        sync_block();
        least = leaves.read(0);
    }
    // Of a column of rows `stride` apart.
    const auto arrive = [&](auto* x, std::int64_t stride, auto value) {
        if (arrival.joins) x[c.far_keys * stride] = x[oldest * stride];
        if (least >= 0) {
            for (std::int64_t row = least; row + 1 < c.far_keys; ++row)
                x[row * stride] = x[(row + 1) * stride];
            x[(c.far_keys - 1) * stride] = x[oldest * stride];
        }
        std::int64_t begin = arrival.window_from;
        if (arrival.moves_back) {
            for (std::int64_t i = 0; i < arrival.window_keys; ++i)
                x[(c.far_room() + i) * stride] = x[(begin + i) * stride];
            begin = c.far_room();
        }
        x[(begin + arrival.window_keys) * stride] = value;
    };
    for (std::int64_t i = thread_index(); i < 2 * c.dim + 2; i += block_threads()) {
        const std::int64_t channel = i % c.dim;
        if (i < c.dim)
            arrive(c.k + at * c.dim + channel, c.dim, a.k[head * c.dim + channel]);
        else if (i < 2 * c.dim)
            arrive(c.v + at * c.dim + channel, c.dim, a.v[head * c.dim + channel]);
        else if (i == 2 * c.dim)
            arrive(c.gate + at, 1, a.gate_of(head));
        else
            arrive(c.importance + at, 1, a.importance_of(head));
    }
}

template <class T, class W = Wide<T>>
struct PartMemory {
    T *k, *v;
    W* gate;
    double* importance;
    std::int64_t len;
};
template <class T, class W = Wide<T>>
PartMemory<T> memory_of(const PartRows<T>& p) {
    return {p.k.template as<T>(), p.v.template as<T>(), p.gate.template as<W>(),
            p.importance.template as<double>(), p.len};
}

/// A warp a token and kv head.
template <class T, class W = Wide<T>>
STOA_KERNEL void gather_kernel(PartMemory<T> part, CacheRows<T> c, NewTokens<T> a) {
    const std::int64_t to = global_thread() / kWarp;  // (len, heads)
    if (to >= part.len * c.heads) return;
    const std::int64_t token = to / c.heads, head = to % c.heads, old = c.held();
    const bool kept = token < old;
    const std::int64_t from =
        kept ? head * c.rows + c.row_of(token) : (token - old) * c.heads + head;
    const T *const k = kept ? c.k : a.k, *const v = kept ? c.v : a.v;
    const int lane = thread_index() % kWarp;
    for (std::int64_t i = lane; i < c.dim; i += kWarp) {
        part.k[to * c.dim + i] = k[from * c.dim + i];
        part.v[to * c.dim + i] = v[from * c.dim + i];
    }
    if (lane != 0) return;
    part.gate[to] = kept ? c.gate[from] : a.gate_of(from);
    part.importance[to] = kept ? c.importance[from] : a.importance_of(from);
}

/// A warp a kv head.
STOA_KERNEL void part_select_kernel(std::int32_t* expiry, const double* importance,
                                    double* kept_importance, std::int32_t* kept_token,
                                    std::int64_t heads, std::int64_t len, std::int64_t far,
                                    std::int64_t window, std::int64_t sinks, std::int64_t keep) {
    const std::int64_t head = global_thread() / kWarp;
    if (head >= heads) return;
    Kept<double> kept{kept_importance + head * keep, kept_token + head * keep, keep};
    for (std::int64_t token = sinks; token < far; ++token)
        kept.put(kept.count++, rank_of(importance[token * heads + head], token));
    select_document(expiry + head * len, importance + head, heads, 0, len, window, sinks, kept,
                    far);
}

/// Which of a part's tokens the cache holds from here on, by age: (heads, far + window). A warp a
/// kv head.
STOA_KERNEL void stay_kernel(std::int32_t* stay, const std::int32_t* expiry, std::int64_t heads,
                             std::int64_t len, std::int64_t far, std::int64_t window) {
    const std::int64_t head = global_thread() / kWarp;
    if (head >= heads) return;
    const int lane = thread_index() % kWarp;
    std::int32_t* const to = stay + head * (far + window);
    std::int64_t count = 0;
    for (std::int64_t first = 0; first < len - window; first += kWarp) {
        const std::int64_t s = first + lane;
        const bool stays = s < len - window && expiry[head * len + s] == len;
        const std::uint32_t all = warp_ballot(stays);
        if (stays) to[count + count_bits(all & ((1u << lane) - 1u))] = static_cast<std::int32_t>(s);
        count += count_bits(all);
    }
    for (std::int64_t i = lane; i < window; i += kWarp)
        to[far + i] = static_cast<std::int32_t>(len - window + i);
}

/// A warp a held token and kv head; the counts are the new ones.
template <class T, class W = Wide<T>>
STOA_KERNEL void scatter_kernel(CacheRows<T> c, PartMemory<T> part, const std::int32_t* stay) {
    const std::int64_t at = global_thread() / kWarp, held = c.held();
    if (at >= c.heads * held) return;
    const std::int64_t head = at / held, to = head * c.rows + c.row_of(at % held),
                       from = stay[at] * c.heads + head;
    const int lane = thread_index() % kWarp;
    for (std::int64_t i = lane; i < c.dim; i += kWarp) {
        c.k[to * c.dim + i] = part.k[from * c.dim + i];
        c.v[to * c.dim + i] = part.v[from * c.dim + i];
    }
    if (lane != 0) return;
    c.gate[to] = part.gate[from];
    c.importance[to] = part.importance[from];
}

Launch over_warps(const char* name, std::int64_t warps, Stream stream) {
    return {.name = name,
            .blocks = blocks_for(warps, kThreads / kWarp),
            .threads = kThreads,
            .stream = stream};
}

}  // namespace

template <class T>
void push(ImportanceCache& c, const ImportanceCacheKeys& keys, Stream stream) {
    const CacheRows<T> before = rows_of<T>(c);
    const bool leaves = c.window_keys == c.rule.window;
    const bool is_sink = c.length - c.window_keys < c.rule.sinks;
    const bool joins = leaves && (is_sink || (c.rule.keep > 0 && c.far_keys < before.far_room()));
    const std::int64_t from = c.window_begin + (leaves ? 1 : 0),
                       left = c.window_keys - (leaves ? 1 : 0);
    const Arrival arrival{.joins = joins,
                          .competes = leaves && !joins && c.rule.keep > 0,
                          .moves_back = from + left == before.rows,
                          .window_from = from,
                          .window_keys = left};
    launch({.name = "importance_cache: push",
            .blocks = before.heads,
            .threads = kThreads,
            .stream = stream,
            .shared_bytes = 16},
           push_kernel<T>, before, new_tokens<T>(keys), arrival);
    if (joins) ++c.far_keys;
    c.window_begin = arrival.moves_back ? before.far_room() : from;
    c.window_keys = left + 1;
    ++c.length;
}

template <class T, class W>
PartRows<T, W>::PartRows(const ImportanceCache& c, const ImportanceCacheKeys& keys, Stream stream)
    : len(c.far_keys + c.window_keys + keys.k.shape[0]),
      heads(c.k.view.shape[0]),
      dim(c.k.view.shape[2]),
      k(stream, len * heads * dim * static_cast<std::int64_t>(sizeof(T))),
      v(stream, len * heads * dim * static_cast<std::int64_t>(sizeof(T))),
      gate(stream, len * heads * static_cast<std::int64_t>(sizeof(W))),
      importance(stream, len * heads * 8),
      expiry(stream, heads * len * 4) {
    launch(over_warps("importance_cache: gather", len * heads, stream), gather_kernel<T>,
           memory_of(*this), rows_of<T>(c), new_tokens<T>(keys));
    const std::int64_t keep = std::min(c.rule.keep, len);
    const Scratch kept_importance(stream, heads * keep * 8), kept_token(stream, heads * keep * 4);
    launch(over_warps("importance_cache: select", heads, stream), part_select_kernel,
           expiry.as<std::int32_t>(), importance.as<double>(), kept_importance.as<double>(),
           kept_token.as<std::int32_t>(), heads, len, c.far_keys, c.rule.window, c.rule.sinks,
           keep);
}

template <class T>
void take(ImportanceCache& c, const PartRows<T>& part, Stream stream) {
    const std::int64_t count = part.len - c.far_keys - c.window_keys;
    c.length += count;
    c.window_keys = std::min(c.rule.window, c.window_keys + count);
    c.window_begin = c.rule.sinks + c.rule.keep;
    const std::int64_t left = c.length - c.window_keys, sinks = std::min(c.rule.sinks, left);
    c.far_keys = sinks + std::min(c.rule.keep, left - sinks);
    const std::int64_t held = c.far_keys + c.window_keys;
    const Scratch stay(stream, part.heads * held * 4);
    launch(over_warps("importance_cache: stay", part.heads, stream), stay_kernel,
           stay.as<std::int32_t>(), part.expiry.template as<std::int32_t>(), part.heads, part.len,
           c.far_keys, c.window_keys);
    launch(over_warps("importance_cache: scatter", part.heads * held, stream), scatter_kernel<T>,
           rows_of<T>(c), memory_of(part), stay.as<std::int32_t>());
}

template struct PartRows<float>;
template struct PartRows<double>;
template struct PartRows<bf16>;
template struct PartRows<fp16>;
template void push<float>(ImportanceCache&, const ImportanceCacheKeys&, Stream);
template void push<double>(ImportanceCache&, const ImportanceCacheKeys&, Stream);
template void push<bf16>(ImportanceCache&, const ImportanceCacheKeys&, Stream);
template void push<fp16>(ImportanceCache&, const ImportanceCacheKeys&, Stream);
template void take(ImportanceCache&, const PartRows<float>&, Stream);
template void take(ImportanceCache&, const PartRows<double>&, Stream);
template void take(ImportanceCache&, const PartRows<bf16>&, Stream);
template void take(ImportanceCache&, const PartRows<fp16>&, Stream);

}  // namespace stoa::cuda
