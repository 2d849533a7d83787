// Backward of the tree attention, without atomics: a block a query for d_q, and towards keys a warp
// a node, whose gradients go down level by level, then a warp a token. Which queries have read a
// node or a leaf say ranges and sorted lists (tree_lists.h); they come in the CPU's order, and
// every sum is its chain.
#include "kernels/cuda/ops.h"
#include "kernels/cuda/tree_lists.h"

namespace stoa::cuda {
namespace {

template <class T, class W = Wide<T>>
struct TreeBackward {
    TreeInputs<T> in;
    const T* d_out;
    const W *lse, *delta;  // (batch, n_heads, len)
    const std::int32_t* selection;
    const std::int32_t* ends;  // (batch, len): at a document's first token, where it ends
    QueryLists lists;
    W *d_mean_k, *d_mean_v, *d_log_mass;  // as TreeNodes; then the A, E, C of tree_attention.h

    STOA_DEVICE std::int64_t stat_at(std::int64_t batch, std::int64_t h, std::int64_t t) const {
        return (batch * in.n.n_heads + h) * in.n.len + t;
    }
};

STOA_KERNEL void ends_kernel(std::int32_t* ends, const std::int32_t* key_begin, std::int64_t rows,
                             std::int64_t len) {
    const std::int64_t i = global_thread();
    if (i >= rows) return;
    const std::int64_t t = i % len, begin = key_begin[i];
    if (t + 1 == len || key_begin[i + 1] != begin)
        ends[i - t + begin] = static_cast<std::int32_t>(t + 1);
}

/// A block a query, a warp a head: the items of the forward in its order.
template <class T, class W = Wide<T>>
STOA_KERNEL void query_kernel(T* d_q, TreeBackward<T> b) {
    SharedMemory memory;
    const TreeInputs<T>& in = b.in;
    const TreeShape& n = in.n;
    const int warps = block_threads() / kWarp;
    const TreeQuery<T> query(in, block_index() / n.len, block_index() % n.len, b.selection,
                             memory.array<std::int32_t>(kMaxTreeLevels));
    ItemWeights<W> weights{memory.array<W>(2 * block_threads()),
                           memory.array<std::int32_t>(2 * block_threads())};
    for (std::int64_t g = thread_index() / kWarp; g < (n.group() + warps - 1) / warps * warps;
         g += warps) {
        const bool here = g < n.group();  // the others only meet at the barriers
        const std::int64_t h = query.head * n.group() + (here ? g : 0);
        const std::int64_t at = in.query_at(query.batch, query.row, h) * n.dim;
        const std::int64_t stat = b.stat_at(query.batch, h, query.row);
        for (std::int64_t first = 0; first < n.dim; first += kRowChannels) {
            RowSum<W> sum;
            query.for_items([&](TreePart part, const TreeItem<W>& item) {
                const std::int64_t key = in.key_at(query.batch, item.row, query.head) * n.dim;
                W d_z = 0;
                if (item.seen) {
                    const W d_p = part == TreePart::nodes
                                      ? chain_dot(b.d_out + at, W{1},
                                                  in.nodes.mean_v + item.row * n.dim, n.dim)
                                      : chain_dot(b.d_out + at, W{1}, in.v + key, n.dim);
                    d_z = fused_exp(query.logit(part, item, in.q + at) - b.lse[stat]) *
                          (d_p - b.delta[stat]);
                }
                weights.write(item.seen, d_z, item.row);
                sync_block();
                weights.for_seen([&](W w, std::int64_t row) {
                    part == TreePart::nodes
                        ? sum.add(w, W{1}, in.nodes.mean_k + row * n.dim, first, n.dim)
                        : sum.add(w, W{1}, in.k + in.key_at(query.batch, row, query.head) * n.dim,
                                  first, n.dim);
                });
            });
            sum.times(in.scale);
            if (here) sum.store(d_q + at, first, n.dim);
        }
    }
}

/// Sums of a key or node over (query, head) rows, of which a warp's lanes make 32 at a time. Rows
/// count from the first of a range or list; `gate`, where rows are grouped, is summed by 32 of
/// them.
template <class T, class W>
struct KeySide {
    const TreeBackward<T>& b;
    std::int64_t batch, head, first_channel;
    Shared<W> p, d_z;  // (2, 32) each
    int set = 0;
    RowSum<W> d_k, d_v;
    W gate = 0, group_gate = 0;

    STOA_DEVICE void close_group() {
        gate += group_gate;
        group_gate = 0;
    }
    /// Rows [from, to): row_of(i) the token of query i, weight_of(token, h, p) whether it sees the
    /// key, and with which p before the softmax's denominator; ramp_of(token) its part of the gate.
    template <class RowOf, class LogitOf, class RampOf, class Key, class Value>
    STOA_DEVICE void add(std::int64_t from, std::int64_t to, bool grouped, const RowOf& row_of,
                         const LogitOf& bias_of, const RampOf& ramp_of, const Key* key,
                         const Value* value) {
        const TreeInputs<T>& in = b.in;
        const std::int64_t group = in.n.group(), dim = in.n.dim;
        for (std::int64_t base = from / kWarp * kWarp; base < to; base += kWarp) {
            const std::int64_t x = base + thread_index();
            bool seen = false;
            set = kWarp - set;
            if (x >= from && x < to) {
                const std::int64_t row = row_of(x / group), h = head * group + x % group;
                const std::int64_t at = in.query_at(batch, row, h) * dim;
                W bias = 0;
                seen = bias_of(row, bias);
                if (seen) {
                    const std::int64_t stat = b.stat_at(batch, h, row);
                    const W dot = chain_dot(in.q + at, W{1}, key, dim),
                            d_p = chain_dot(b.d_out + at, W{1}, value, dim);
                    const W weight = fused_exp(in.scale * dot + bias - b.lse[stat]);
                    p.write(set + thread_index(), weight);
                    d_z.write(set + thread_index(), weight * (d_p - b.delta[stat]));
                }
            }
            const std::uint32_t all = warp_ballot(seen);
            sync_block();
            for (std::uint32_t left = all; left != 0; left &= left - 1) {
                const int i = lowest_bit(left);
                const std::int64_t row = row_of((base + i) / group),
                                   at = in.query_at(batch, row, head * group + (base + i) % group) *
                                        dim;
                const W z = d_z.read(set + i);
                d_v.add(p.read(set + i), W{1}, b.d_out + at, first_channel, dim);
                d_k.add(z, W{1}, in.q + at, first_channel, dim);
                (grouped ? group_gate : gate) += ramp_of(row) * z;
            }
            if (grouped && base + kWarp <= to) close_group();
        }
    }
    /// The queries that have expanded a node.
    template <class BiasOf, class RampOf, class Key, class Value>
    STOA_DEVICE void add_listed(std::int64_t pair, std::int64_t level, std::int64_t place,
                                std::int64_t begin, std::int64_t end, bool grouped,
                                const BiasOf& bias_of, const RampOf& ramp_of, const Key* key,
                                const Value* value) {
        std::int64_t done = 0;
        const std::int64_t group = b.in.n.group(), chunk = b.lists.chunk;
        b.lists.for_chunks(
            pair, level, place, begin, end,
            [&](const std::uint32_t* entries, std::int64_t n, std::int64_t first) {
                add(
                    done * group, (done + n) * group, grouped,
                    [&](std::int64_t i) { return first + entries[i - done] % chunk; }, bias_of,
                    ramp_of, key, value);
                done += n;
            });
        if (grouped) close_group();
    }
};

/// A warp a node: what the queries to which it stands for its tokens give it.
template <class T, class W = Wide<T>>
STOA_KERNEL void node_kernel(TreeBackward<T> b) {
    SharedMemory memory;
    const TreeInputs<T>& in = b.in;
    const TreeShape& n = in.n;
    const Shared<W> p = memory.array<W>(2 * kWarp), d_z = memory.array<W>(2 * kWarp);
    const std::int64_t node = block_index(), pair = node / n.per_pair, batch = pair / n.n_kv_heads,
                       f = n.rule.fanout;
    int level = 0;
    while (level + 1 < n.levels && n.offset[level + 1] <= node % n.per_pair)
        ++level;
    const std::int64_t first = node_begin(in, batch, level, node % n.per_pair - n.offset[level]);
    if (first < 0) return;
    const std::int64_t begin = in.begin_of(batch, first), end = b.ends[batch * n.len + begin],
                       len = end - begin;
    const std::int64_t j = (first - begin) / n.span[level], block = j / f,
                       span = n.span[level] / n.rule.leaf, local = n.rule.window / n.rule.leaf;
    // At the edge of their far leaves: the queries to which the parent is not yet complete.
    const auto edge = [&](std::int64_t child) {
        const std::int64_t t = ((block * f + child) * span + local) * n.rule.leaf;
        return t < len ? t : len;
    };
    const W log_mass = in.nodes.log_mass[node];
    const auto bias_of = [&](std::int64_t row, W& bias) {
        if (j >= n.far_leaves(row - begin) / span) return false;
        const std::int32_t* const expanded =
            b.selection + ((pair * n.len + row) * n.levels + level) * n.slots;
        for (std::int64_t i = 0; i < n.slots; ++i)
            if (expanded[i] == j) return false;
        bias = log_mass;
        return true;
    };
    const auto whole = [](std::int64_t) { return W{1}; };
    const W *const key = in.nodes.mean_k + node * n.dim, *const value =
                                                             in.nodes.mean_v + node * n.dim;
    int set = 0;
    for (std::int64_t channel = 0; channel < n.dim; channel += kRowChannels) {
        KeySide<T, W> side{b, batch, pair % n.n_kv_heads, channel, p, d_z, set};
        const std::int64_t from = edge(1), to = edge(f);
        side.add(
            0, (to - from) * n.group(), false, [&](std::int64_t i) { return begin + from + i; },
            bias_of, whole, key, value);
        if (level + 1 < n.levels && (block + 1) * n.span[level + 1] <= len)
            side.add_listed(pair, level + 1, begin / n.span[level + 1] + block, begin, end, false,
                            bias_of, whole, key, value);
        side.d_k.store(b.d_mean_k + node * n.dim, channel, n.dim);
        side.d_v.store(b.d_mean_v + node * n.dim, channel, n.dim);
        if (channel == 0 && thread_index() == 0) b.d_log_mass[node] = side.gate;
        set = side.set;
    }
}

/// A warp a node of a level, when the level above is done: A, E, C, its ancestors' included.
template <class T, class W = Wide<T>>
STOA_KERNEL void push_kernel(TreeBackward<T> b, std::int64_t level) {
    const TreeInputs<T>& in = b.in;
    const TreeShape& n = in.n;
    const std::int64_t places = n.places(level), pair = block_index() / places,
                       batch = pair / n.n_kv_heads;
    const std::int64_t first = node_begin(in, batch, level, block_index() % places);
    if (first < 0) return;
    const std::int64_t node = pair * n.per_pair + n.offset[level] + block_index() % places;
    const std::int64_t begin = in.begin_of(batch, first),
                       len = b.ends[batch * n.len + begin] - begin,
                       parent = (first - begin) / n.span[level] / n.rule.fanout;
    W *const a = b.d_mean_k + node * n.dim, *const e = b.d_mean_v + node * n.dim;
    const W inverse = W{1} / in.nodes.mass[node];
    const W of_k = lane_sum<W>(n.dim, [&](std::int64_t c) {
        return in.scale * a[c] * inverse * in.nodes.mean_k[node * n.dim + c];
    });
    const W of_v = lane_sum<W>(
        n.dim, [&](std::int64_t c) { return e[c] * inverse * in.nodes.mean_v[node * n.dim + c]; });
    const W own = b.d_log_mass[node] * inverse - of_k - of_v;
    sync_block();  // all have read what each overwrites
    const bool covered = level + 1 < n.levels && (parent + 1) * n.span[level + 1] <= len;
    const std::int64_t above = covered ? n.place(pair, level + 1, begin, parent) : 0;
    for (std::int64_t c = thread_index(); c < n.dim; c += kWarp) {
        a[c] = in.scale * a[c] * inverse;
        e[c] *= inverse;
        if (!covered) continue;
        a[c] += b.d_mean_k[above * n.dim + c];
        e[c] += b.d_mean_v[above * n.dim + c];
    }
    if (thread_index() == 0) b.d_log_mass[node] = covered ? own + b.d_log_mass[above] : own;
}

/// A warp a token: what the queries give it that read it, and what the summaries above pass down.
template <class T, class W = Wide<T>>
STOA_KERNEL void token_kernel(T* d_k, T* d_v, W* d_gate, TreeBackward<T> b) {
    SharedMemory memory;
    const TreeInputs<T>& in = b.in;
    const TreeShape& n = in.n;
    const Shared<W> p = memory.array<W>(2 * kWarp), d_z = memory.array<W>(2 * kWarp);
    const std::int64_t row = block_index() % n.len, pair = block_index() / n.len,
                       batch = pair / n.n_kv_heads, head = pair % n.n_kv_heads;
    const std::int64_t begin = in.begin_of(batch, row), s = row - begin,
                       end = b.ends[batch * n.len + begin], len = end - begin;
    const std::int64_t leaf = s / n.rule.leaf, key = in.key_at(batch, row, head);
    const std::int64_t pack = s / kLanes * kLanes;  // rows count from its first query
    std::int64_t until = (leaf + n.rule.window / n.rule.leaf + 1) * n.rule.leaf;
    until = until < len ? until : len;
    const W gate = in.gate_of(batch, row, s, head);
    const auto ramp_of = [&](std::int64_t t) { return gate_ramp<W>(t - row, n.rule.window); };
    const auto bias_of = [&](std::int64_t t, W& bias) {
        bias = ramp_of(t) * gate;
        return true;
    };
    const T *const k = in.k + key * n.dim, *const v = in.v + key * n.dim;
    const bool covered = len > n.rule.window && (leaf + 1) * n.rule.leaf <= len;
    const std::int64_t node = covered ? n.place(pair, 0, begin, leaf) : 0;
    int set = 0;
    for (std::int64_t channel = 0; channel < n.dim; channel += kRowChannels) {
        KeySide<T, W> side{b, batch, head, channel, p, d_z, set};
        side.add((s - pack) * n.group(), (until - pack) * n.group(), true,
                 [&](std::int64_t i) { return begin + pack + i; }, bias_of, ramp_of, k, v);
        side.close_group();
        if (covered)
            side.add_listed(pair, 0, begin / n.rule.leaf + leaf, begin, end, true, bias_of, ramp_of,
                            k, v);
        side.d_k.times(in.scale);
        if (covered) {
            const W sigma = in.sigma_of(batch, row, s, head);
            const W *const a = b.d_mean_k + node * n.dim, *const e = b.d_mean_v + node * n.dim;
            RowSum<W> of_a, of_e;
            of_a.add(W{1}, W{1}, a, channel, n.dim);
            of_e.add(W{1}, W{1}, e, channel, n.dim);
            of_a.times(sigma);
            of_e.times(sigma);
            side.d_k.add(of_a);
            side.d_v.add(of_e);
            const W k_a = lane_sum<W>(n.dim, [&](std::int64_t c) { return W{widen(k[c])} * a[c]; }),
                    v_e = lane_sum<W>(n.dim, [&](std::int64_t c) { return W{widen(v[c])} * e[c]; });
            side.gate += sigma * (k_a + v_e + b.d_log_mass[node]);
        }
        side.d_k.store(d_k + key * n.dim, channel, n.dim);
        side.d_v.store(d_v + key * n.dim, channel, n.dim);
        if (d_gate != nullptr && channel == 0 && thread_index() == 0)
            d_gate[key] = s < n.rule.sinks ? W{0} : side.gate;
        set = side.set;
    }
}

template <class T, class W = Wide<T>>
void backward(const TreeAttentionBackwardArgs& a, Stream stream) {
    const auto values = [](const TensorView& t) { return t.empty() ? nullptr : t.as<W>().data(); };
    const TreeShape n = tree_shape(a);
    constexpr auto kSize = static_cast<std::int64_t>(sizeof(W));
    const std::int64_t rows = n.batch * n.len * n.n_heads, places = n.pairs() * n.per_pair;
    const TreeBackwardScratch room = tree_backward_scratch(a);
    const Scratch nodes(stream, room.nodes), delta(stream, room.delta), ends(stream, room.ends),
        sums(stream, room.sums);
    const std::int32_t *const selection = a.selection.as<std::int32_t>().data(),
                              *const key_begin = a.key_begin.as<std::int32_t>().data();
    const SelectionLists lists(n, room, selection, key_begin, stream);
    W* const d_nodes = sums.as<W>();
    const TreeBackward<T> b{tree_inputs<T>(a, n, TreeNodes<W>::in(nodes.as<W>(), n)),
                            a.d_out.as<T>().data(),
                            a.lse.as<W>().data(),
                            delta.as<W>(),
                            selection,
                            ends.as<std::int32_t>(),
                            lists.view(n),
                            d_nodes,
                            d_nodes + places * n.dim,
                            d_nodes + 2 * places * n.dim};
    const auto launch_of = [&](const char* name, std::int64_t blocks, int threads,
                               std::int64_t shared) {
        return Launch{.name = name,
                      .blocks = blocks,
                      .threads = threads,
                      .stream = stream,
                      .shared_bytes = static_cast<int>(shared)};
    };
    build_tree(b.in, stream);
    launch(launch_of("tree_attention_backward: documents", blocks_for(n.batch * n.len, kThreads),
                     kThreads, 0),
           ends_kernel, ends.as<std::int32_t>(), key_begin, n.batch * n.len, n.len);
    launch(launch_of("tree_attention_backward: delta", blocks_for(rows * kLanes, kThreads),
                     kThreads, 0),
           attention_delta_kernel<T>, delta.as<W>(), values(a.d_sink), b.d_out,
           a.out.as<T>().data(), b.lse, b.in.sink_logit, rows, n.len, n.n_heads, n.dim, true);
    launch(launch_of("tree_attention_backward: nodes", places, kWarp, 4 * kWarp * kSize),
           node_kernel<T>, b);
    for (std::int64_t l = n.levels - 1; l >= 0; --l)
        launch(launch_of("tree_attention_backward: summaries", n.pairs() * n.places(l), kWarp, 0),
               push_kernel<T>, b, l);
    launch(launch_of("tree_attention_backward: keys", n.pairs() * n.len, kWarp, 4 * kWarp * kSize),
           token_kernel<T>, a.d_k.as<T>().data(), a.d_v.as<T>().data(), values(a.d_gate), b);
    const std::int64_t warps = std::min<std::int64_t>(n.group(), kHeadWarps);
    launch(launch_of("tree_attention_backward: queries", n.pairs() * n.len,
                     static_cast<int>(warps) * kWarp,
                     kMaxTreeLevels * 4 + ItemWeights<W>::bytes(warps)),
           query_kernel<T>, a.d_q.as<T>().data(), b);
}

}  // namespace

void tree_attention_backward(const TreeAttentionBackwardArgs& args, Stream stream) {
    dispatch_dtype(args.q.dtype, [&]<Element T>(T) { backward<T>(args, stream); });
}

}  // namespace stoa::cuda
