// Forward of the importance attention. A block takes one query of one kv head, a warp each of its
// heads, so that all of them read a key once; a warp meets 32 keys at a time: their scores a key a
// lane, then their values a channel a lane. Two passes make the scores, for the largest one and for
// the sums, as the CPU measures all from the largest. What a query does not see it does not touch.
#include "kernels/cuda/importance_row.h"
#include "kernels/cuda/ops.h"

namespace stoa::cuda {
namespace {

constexpr std::int64_t kKeyTile = 128;  // of the dense rows: enters the bits

/// One query and head of the caller's warp.
template <class T, class W>
struct Query {
    const ImportanceInputs<T>& in;
    std::int64_t batch, head, t;
    const T* q;
    const std::int32_t *far, *expiry;
    std::int64_t far_count, begin;  // its document's

    STOA_DEVICE W score(std::int64_t s, bool far_key) const {
        const W gate = in.gate_of(batch, s, head);
        const W z = chain_dot(q, in.scale, in.k + in.key_at(batch, s, head) * in.n.dim, in.n.dim);
        if (gate == W{0}) return z;
        return z + (far_key ? gate : gate_ramp<W>(t - s, in.n.rule.window) * gate);
    }
    STOA_DEVICE std::int64_t window_begin() const {
        const std::int64_t first = t - in.n.rule.window + 1;
        return first > begin ? first : begin;
    }
    STOA_DEVICE const T* value(std::int64_t s) const {
        return in.v + in.key_at(batch, s, head) * in.n.dim;
    }
    template <class Fn>
    STOA_DEVICE void for_keys(const Fn& fn) const {
        const int lane = thread_index() % kWarp;
        for (std::int64_t i = 0; i < far_count; i += kWarp) {
            const std::int64_t s = i + lane < far_count ? far[i + lane] : t;
            fn(KeyItems{far + i, 0}, s, true,
               i + lane < far_count && s + in.n.rule.window <= t && t < expiry[s]);
        }
        for (std::int64_t first = window_begin(); first <= t; first += kWarp) {
            const std::int64_t s = first + lane;
            fn(KeyItems{nullptr, first}, s, false, s <= t && t < expiry[s]);
        }
    }
};

template <class T, class W = Wide<T>>
STOA_KERNEL void forward_kernel(T* out, W* lse, ImportanceInputs<T> in, FarView far) {
    SharedMemory memory;
    const ImportanceShape& n = in.n;
    const int warps = block_threads() / kWarp;
    Weights<W, 1> weights{memory.array<W>(2 * warps * kWarp)};
    const std::int64_t row = block_index() % n.q_len, pair = block_index() / n.q_len,
                       batch = pair / n.n_kv_heads, head = pair % n.n_kv_heads;
    const std::int64_t tile = pair * far.tiles + row / far.tile_rows, t = n.len - n.q_len + row;
    for (std::int64_t g = thread_index() / kWarp; g < (n.group() + warps - 1) / warps * warps;
         g += warps) {
        const bool here = g < n.group();  // the others only meet at the barriers
        const std::int64_t h = head * n.group() + (here ? g : 0);
        const Query<T, W> query{in,
                                batch,
                                head,
                                t,
                                in.q_row(batch, row, h),
                                far.keys + tile * far.capacity,
                                in.expiry + pair * n.len,
                                far.counts[tile],
                                in.key_begin[batch * n.len + t]};
        const W sink =
            in.sink_logit == nullptr ? -std::numeric_limits<W>::infinity() : in.sink_logit[h];
        attend_row(out + ((batch * n.q_len + row) * n.n_heads + h) * n.dim,
                   lse + (batch * n.n_heads + h) * n.q_len + row, query, weights, sink, n.dim,
                   here);
    }
}

/// The rows that see all keys before them: tile by tile, all measured from the largest score so far
/// [Milakov & Gimelshein 2018].
template <class T, class W = Wide<T>>
STOA_KERNEL void dense_kernel(T* out, W* lse, ImportanceInputs<T> in) {
    constexpr int kOfLane = static_cast<int>(kKeyTile) / kWarp;
    SharedMemory memory;
    const ImportanceShape& n = in.n;
    const int warps = block_threads() / kWarp, lane = thread_index() % kWarp;
    Weights<W, kOfLane> weights{memory.array<W>(2 * warps * static_cast<int>(kKeyTile))};
    const std::int64_t pair = block_index() / n.dense_count, batch = pair / n.n_kv_heads,
                       head = pair % n.n_kv_heads;
    const std::int64_t t = in.dense_rows[batch * n.dense_count + block_index() % n.dense_count];
    const std::int64_t begin = in.key_begin[batch * n.len + t];
    for (std::int64_t g = thread_index() / kWarp; g < (n.group() + warps - 1) / warps * warps;
         g += warps) {
        const bool here = g < n.group();
        const std::int64_t h = head * n.group() + (here ? g : 0);
        const Query<T, W> query{in,      batch,   head, t,    in.q_row(batch, t, h),
                                nullptr, nullptr, 0,    begin};
        const W sink =
            in.sink_logit == nullptr ? -std::numeric_limits<W>::infinity() : in.sink_logit[h];
        for (std::int64_t first = 0; first < n.dim; first += kRowChannels) {
            RowSum<W> sum;
            W total = 0, max = sink, base = 0;
            for (std::int64_t tile = begin / kKeyTile * kKeyTile; tile <= t; tile += kKeyTile) {
                W z[kOfLane] = {}, largest = max;
                STOA_UNROLL_8
                for (int i = 0; i < kOfLane; ++i) {
                    const std::int64_t s = tile + i * kWarp + lane;
                    if (s < begin || s > t) continue;
                    z[i] = query.score(s, false);
                    largest = z[i] > largest ? z[i] : largest;
                }
                largest = warp_largest(largest);
                base = score_base(largest);
                const W factor = fused_exp(max - base);
                max = largest;
                total *= factor;
                sum.times(factor);
                weights.begin();
                STOA_UNROLL_8
                for (int i = 0; i < kOfLane; ++i) {
                    const std::int64_t s = tile + i * kWarp + lane;
                    if (s >= begin && s <= t)
                        weights.write(i * kWarp + lane, fused_exp(z[i] - base));
                }
                sync_block();
                RowSum<W> of_tile;
                W tile_total = 0;
                for (std::int64_t s = tile > begin ? tile : begin; s < tile + kKeyTile && s <= t;
                     ++s) {
                    const W weight = weights.read(static_cast<int>(s - tile));
                    tile_total += weight;
                    of_tile.add(weight, W{1}, in.v + in.key_at(batch, s, head) * n.dim, first,
                                n.dim);
                }
                total += tile_total;
                sum.add(of_tile);
            }
            if (here)
                finish(out + ((batch * n.len + t) * n.n_heads + h) * n.dim,
                       lse + (batch * n.n_heads + h) * n.len + t, sum, total, base, sink, first,
                       n.dim);
        }
    }
}

}  // namespace

void importance_attention_forward(const ImportanceAttentionArgs& a, Stream stream) {
    dispatch_dtype(a.q.dtype, [&]<Element T>(T) {
        using W = Wide<T>;
        const ImportanceInputs<T> in = importance_inputs<T>(a);
        const ImportanceShape& n = in.n;
        const FarLists far(n, in.expiry, in.key_begin, kFarRows, stream);
        const int warps = static_cast<int>(std::min<std::int64_t>(n.group(), kHeadWarps));
        const auto size = [&](std::int64_t keys) {
            return static_cast<int>(2 * warps * keys * static_cast<std::int64_t>(sizeof(W)));
        };
        launch({.name = "importance_attention_forward",
                .blocks = n.batch * n.n_kv_heads * n.q_len,
                .threads = warps * kWarp,
                .stream = stream,
                .shared_bytes = size(kWarp)},
               forward_kernel<T>, a.out.as<T>().data(), a.lse.as<W>().data(), in,
               view_of(far, kFarRows));
        launch({.name = "importance_attention_forward: dense rows",
                .blocks = n.batch * n.n_kv_heads * n.dense_count,
                .threads = warps * kWarp,
                .stream = stream,
                .shared_bytes = size(kKeyTile)},
               dense_kernel<T>, a.out.as<T>().data(), a.lse.as<W>().data(), in);
    });
}

}  // namespace stoa::cuda
