// Backward of the importance attention, without atomics: who owns a query or a key sums all that it
// gets. Keys need no inverse of the selection: key s is seen by the queries s <= t < expiry[s], so
// a warp walks this range, and the dense rows behind it. Chains, and what is summed apart, are the
// CPU's: 64 keys or 64 queries a chain, and the queries of 2,048 tokens before the next ones.
#include "kernels/cuda/importance_keys.h"
#include "kernels/cuda/ops.h"

namespace stoa::cuda {
namespace {

constexpr int kBlock = 64;  // keys, or queries, of one chain
static_assert(kBlock == kFarRowsBackward);
constexpr std::int64_t kChunk = 32 * kBlock;
constexpr int kOfLane = kBlock / kWarp;

template <class T, class W = Wide<T>>
struct BackwardInputs {
    ImportanceInputs<T> in;
    const T* d_out;
    const W *lse, *delta;       // (batch, n_heads, len)
    const std::uint8_t* dense;  // (batch, len): whether a query is a dense row; or null
    STOA_DEVICE std::int64_t stat_at(std::int64_t batch, std::int64_t h, std::int64_t t) const {
        return (batch * in.n.n_heads + h) * in.n.len + t;
    }
    STOA_DEVICE const T* d_out_row(std::int64_t batch, std::int64_t t, std::int64_t h) const {
        return d_out + ((batch * in.n.len + t) * in.n.n_heads + h) * in.n.dim;
    }
};

STOA_KERNEL void mark_kernel(std::uint8_t* dense, const std::int32_t* rows, std::int64_t n,
                             std::int64_t of_batch, std::int64_t len) {
    const std::int64_t i = global_thread();
    if (i < n) dense[i / of_batch * len + rows[i]] = 1;
}

/// What a query and a key give each other.
template <class W>
struct Pair {
    W p, d_z;
};
/// Query t of head h and key s, whose gate comes with `ramp`.
template <class T, class W>
STOA_DEVICE Pair<W> pair_of(const BackwardInputs<T>& b, std::int64_t batch, std::int64_t head,
                            std::int64_t h, std::int64_t t, std::int64_t s, W ramp, W gate) {
    const ImportanceInputs<T>& in = b.in;
    const std::int64_t key = in.key_at(batch, s, head) * in.n.dim;
    W z = chain_dot(in.q_row(batch, t, h), in.scale, in.k + key, in.n.dim);
    if (gate != W{0}) z += ramp * gate;
    const W d_p = chain_dot(b.d_out_row(batch, t, h), W{1}, in.v + key, in.n.dim);
    const std::int64_t at = b.stat_at(batch, h, t);
    const W p = fused_exp(z - b.lse[at]);
    return {p, p * (d_p - b.delta[at])};
}

/// Values of a warp's 64 keys or queries, for all of its lanes; those that are seen.
template <class W>
struct Shares {
    Shared<W> room;  // (2, warps, 64)
    int set = 0;
    std::uint32_t seen[kOfLane] = {};
    STOA_DEVICE int at(int i) const {
        return (set * (block_threads() / kWarp) + thread_index() / kWarp) * kBlock + i;
    }
    /// fn(i) of key or query i, where the lane's sees(i).
    template <class Sees, class Fn>
    STOA_DEVICE void fill(const Sees& sees, const Fn& fn) {
        set = 1 - set;
        STOA_UNROLL_8
        for (int part = 0; part < kOfLane; ++part) {
            const int i = part * kWarp + thread_index() % kWarp;
            const bool here = sees(i);
            seen[part] = warp_ballot(here);
            if (here) room.write(at(i), fn(i));
        }
    }
    template <class Fn>
    STOA_DEVICE void for_seen(const Fn& fn) const {
        STOA_UNROLL_8
        for (int part = 0; part < kOfLane; ++part)
            for (std::uint32_t left = seen[part]; left != 0; left &= left - 1) {
                const int i = part * kWarp + lowest_bit(left);
                fn(i, room.read(at(i)));
            }
    }
};

/// A block a query of a kv head, a warp each of its heads.
template <class T, class W = Wide<T>>
STOA_KERNEL void query_kernel(T* d_q, BackwardInputs<T> b, FarView far) {
    SharedMemory memory;
    const ImportanceInputs<T>& in = b.in;
    const ImportanceShape& n = in.n;
    const int warps = block_threads() / kWarp;
    Shares<W> shares{memory.array<W>(2 * warps * kBlock)};
    const std::int64_t t = block_index() % n.len, pair = block_index() / n.len,
                       batch = pair / n.n_kv_heads, head = pair % n.n_kv_heads;
    const std::int64_t tile = pair * far.tiles + t / far.tile_rows, window = n.rule.window;
    const std::int32_t *const list = far.keys + tile * far.capacity, *const expiry =
                                                                         in.expiry + pair * n.len;
    const bool dense = b.dense != nullptr && b.dense[batch * n.len + t] != 0;
    const std::int64_t begin = in.key_begin[batch * n.len + t],
                       far_count = dense ? 0 : far.counts[tile];
    const std::int64_t oldest = dense || t - window + 1 < begin ? begin : t - window + 1;
    for (std::int64_t g = thread_index() / kWarp; g < (n.group() + warps - 1) / warps * warps;
         g += warps) {
        const bool here = g < n.group();  // the others only meet at the barriers
        const std::int64_t h = head * n.group() + (here ? g : 0);
        for (std::int64_t first = 0; first < n.dim; first += kRowChannels) {
            RowSum<W> sum;
            const auto add = [&](const auto& key, const auto& sees, bool far_keys) {
                shares.fill([&](int i) { return sees(i); },
                            [&](int i) {
                                const std::int64_t s = key(i);
                                const W ramp = far_keys ? W{1} : gate_ramp<W>(t - s, window);
                                return pair_of(b, batch, head, h, t, s, ramp,
                                               in.gate_of(batch, s, head))
                                    .d_z;
                            });
                sync_block();
                RowSum<W> chain;
                shares.for_seen([&](int i, W d_z) {
                    chain.add(d_z, W{1}, in.k + in.key_at(batch, key(i), head) * n.dim, first,
                              n.dim);
                });
                sum.add(chain);
            };
            for (std::int64_t at = 0; at < far_count; at += kBlock)
                add([&](int i) { return std::int64_t{list[at + i]}; },
                    [&](int i) {
                        if (at + i >= far_count) return false;
                        const std::int64_t s = list[at + i];
                        return s + window <= t && t < expiry[s];
                    },
                    true);
            for (std::int64_t at = oldest / kBlock * kBlock; at <= t; at += kBlock)
                add([&](int i) { return at + i; },
                    [&](int i) {
                        const std::int64_t s = at + i;
                        return s >= oldest && s <= t && (dense || t < expiry[s]);
                    },
                    false);
            sum.times(in.scale);
            if (here) sum.store(d_q + ((batch * n.len + t) * n.n_heads + h) * n.dim, first, n.dim);
        }
    }
}

/// The sum over 64 queries in 16 lanes as kernels/cpu/lanes.h has it: value[i] is that of query
/// lane + 32 i.
template <class W>
STOA_DEVICE W sum_of_block(const W* value) {
    W sum = 0;
    for (int i = 0; i < kOfLane; ++i) {
        const W other = shuffle_down(value[i], kLanes);
        sum = sum + value[i] + other;
    }
    for (int half = kLanes / 2; half > 0; half /= 2)
        sum += shuffle_down(sum, half);
    return shuffle(sum, 0);
}

/// What queries give to a key.
template <class W>
struct KeySums {
    RowSum<W> d_k, d_v;
    W d_gate = 0, mass = 0;
    STOA_DEVICE void add(const KeySums& other) {
        d_k.add(other.d_k);
        d_v.add(other.d_v);
        d_gate += other.d_gate;
    }
};

/// A warp a key.
template <class T, class W = Wide<T>>
STOA_KERNEL void key_kernel(T* d_k, T* d_v, W* d_gate, W* far_mass, BackwardInputs<T> b) {
    SharedMemory memory;
    const ImportanceInputs<T>& in = b.in;
    const ImportanceShape& n = in.n;
    Shares<W> p_shares{memory.array<W>(2 * kBlock)}, z_shares{memory.array<W>(2 * kBlock)};
    const int lane = thread_index();
    const std::int64_t s = block_index() % n.len, pair = block_index() / n.len,
                       batch = pair / n.n_kv_heads, head = pair % n.n_kv_heads;
    const std::int64_t window = n.rule.window, key = in.key_at(batch, s, head);
    const std::int64_t end = in.expiry[pair * n.len + s],
                       left = end < s + window ? end : s + window;
    const W gate = in.gate_of(batch, s, head);
    const bool gated = in.gate != nullptr && s - in.key_begin[batch * n.len + s] >= n.rule.sinks;
    for (std::int64_t first = 0; first < n.dim; first += kRowChannels) {
        KeySums<W> all, chunk;
        // 64 queries of head h, of which query(i) is the i-th and sees(i) whether the key is seen.
        const auto add = [&](KeySums<W>& to, std::int64_t h, const auto& query, const auto& sees,
                             bool far_queries, bool with_mass) {
            Pair<W> own[kOfLane];
            W of_gate[kOfLane] = {}, of_mass[kOfLane] = {};
            const auto ramp = [&](int i) {
                return far_queries ? W{1} : gate_ramp<W>(query(i) - s, window);
            };
            p_shares.fill([&](int i) { return sees(i); },
                          [&](int i) {
                              own[i / kWarp] =
                                  pair_of(b, batch, head, h, query(i), s, ramp(i), gate);
                              of_gate[i / kWarp] =
                                  far_queries ? own[i / kWarp].d_z : ramp(i) * own[i / kWarp].d_z;
                              if (query(i) - s >= window) of_mass[i / kWarp] = own[i / kWarp].p;
                              return own[i / kWarp].p;
                          });
            z_shares.fill([&](int i) { return sees(i); },
                          [&](int i) { return own[i / kWarp].d_z; });
            sync_block();
            RowSum<W> k_chain, v_chain;
            p_shares.for_seen([&](int i, W p) {
                v_chain.add(p, W{1}, b.d_out_row(batch, query(i), h), first, n.dim);
            });
            z_shares.for_seen([&](int i, W d_z) {
                k_chain.add(d_z, in.scale, in.q_row(batch, query(i), h), first, n.dim);
            });
            to.d_k.add(k_chain);
            to.d_v.add(v_chain);
            if (gated) to.d_gate += sum_of_block(of_gate);
            if (with_mass) to.mass += sum_of_block(of_mass);
        };
        for (std::int64_t block = s / kBlock * kBlock; block < end; block += kBlock) {
            if (block % kChunk == 0 && block > s) {
                all.add(chunk);
                chunk = {};
            }
            for (std::int64_t h = head * n.group(); h < (head + 1) * n.group(); ++h)
                for (const bool far_queries : {true, false}) {
                    const std::int64_t from = far_queries ? s + window : s,
                                       to = far_queries ? end : left;
                    if (from >= to || block >= to || block + kBlock <= from) continue;
                    add(
                        chunk, h, [&](int i) { return block + i; },
                        [&](int i) {
                            const std::int64_t t = block + i;
                            return t >= from && t < to &&
                                   (b.dense == nullptr || b.dense[batch * n.len + t] == 0);
                        },
                        far_queries, false);
                }
        }
        all.add(chunk);
        const std::int32_t* const rows = in.dense_rows + batch * n.dense_count;
        for (std::int64_t h = head * n.group(); h < (head + 1) * n.group(); ++h)
            for (std::int64_t at = 0; at < n.dense_count; at += kBlock) {
                const std::int64_t count =
                    n.dense_count - at < kBlock ? n.dense_count - at : std::int64_t{kBlock};
                if (rows[at + count - 1] < s) continue;
                if (in.key_begin[batch * n.len + rows[at]] > s) break;
                add(
                    all, h, [&](int i) { return std::int64_t{rows[at + i]}; },
                    [&](int i) {
                        if (i >= count || rows[at + i] < s) return false;
                        return in.key_begin[batch * n.len + rows[at + i]] <= s;
                    },
                    false, far_mass != nullptr);
            }
        all.d_k.store(d_k + key * n.dim, first, n.dim);
        all.d_v.store(d_v + key * n.dim, first, n.dim);
        if (first > 0 || lane != 0) continue;
        if (d_gate != nullptr) d_gate[key] = gated ? all.d_gate : W{0};
        if (far_mass != nullptr) far_mass[key] = all.mass;
    }
}

template <class T, class W = Wide<T>>
void backward(const ImportanceAttentionBackwardArgs& a, Stream stream) {
    const auto values = [](const TensorView& t) { return t.empty() ? nullptr : t.as<W>().data(); };
    BackwardInputs<T> b{importance_inputs<T>(a), a.d_out.as<T>().data(), a.lse.as<W>().data(),
                        nullptr, nullptr};
    const ImportanceShape& n = b.in.n;
    const std::int64_t rows = n.batch * n.len * n.n_heads, pairs = n.batch * n.n_kv_heads;
    const ImportanceBackwardScratch need = importance_backward_scratch(a);
    const Scratch delta(stream, need.delta), dense(stream, need.dense);
    b.delta = delta.as<W>();
    launch({.name = "importance_attention_backward: delta",
            .blocks = blocks_for(rows * kLanes, kThreads),
            .threads = kThreads,
            .stream = stream},
           attention_delta_kernel<T>, delta.as<W>(), values(a.d_sink), b.d_out,
           a.out.as<T>().data(), b.lse, b.in.sink_logit, rows, n.len, n.n_heads, n.dim, false);
    if (n.dense_count > 0) {
        b.dense = dense.as<std::uint8_t>();
        fill_bytes(dense.as<std::byte>(), 0, n.batch * n.len, stream);
        launch({.name = "importance_attention_backward: dense rows",
                .blocks = blocks_for(n.batch * n.dense_count, kThreads),
                .threads = kThreads,
                .stream = stream},
               mark_kernel, dense.as<std::uint8_t>(), b.in.dense_rows, n.batch * n.dense_count,
               n.dense_count, n.len);
    }
    const FarLists far(n, b.in.expiry, b.in.key_begin, kBlock, stream);
    const int warps = static_cast<int>(std::min<std::int64_t>(n.group(), kHeadWarps));
    const int room = 2 * kBlock * static_cast<int>(sizeof(W));
    launch({.name = "importance_attention_backward: queries",
            .blocks = pairs * n.len,
            .threads = warps * kWarp,
            .stream = stream,
            .shared_bytes = warps * room},
           query_kernel<T>, a.d_q.as<T>().data(), b, view_of(far, kBlock));
    launch({.name = "importance_attention_backward: keys",
            .blocks = pairs * n.len,
            .threads = kWarp,
            .stream = stream,
            .shared_bytes = 2 * room},
           key_kernel<T>, a.d_k.as<T>().data(), a.d_v.as<T>().data(), values(a.d_gate),
           values(a.far_mass), b);
}

}  // namespace

void importance_attention_backward(const ImportanceAttentionBackwardArgs& args, Stream stream) {
    dispatch_dtype(args.q.dtype, [&]<Element T>(T) { backward<T>(args, stream); });
}

}  // namespace stoa::cuda
