// Forward of the tree attention. The descent is a warp's per query and kv head: candidates of a
// level go one a lane, their bounds are chains, and each counts those that are better: the
// selection is the CPU's to the last bit, on a GPU too, since no exp or log of a library is in it.
// The attention is a block's per query, a warp per head; the order of its sums is the CPU's.
#include "kernels/cuda/key_tree.h"
#include "kernels/cuda/ops.h"

namespace stoa::cuda {
namespace {

/// The levels of one query from the top down. Shared by the lanes: what is expanded of the level
/// above and of this one, and a score and a bound per candidate.
template <class T, class W>
struct Descent {
    const TreeInputs<T>& in;
    std::int64_t pair, batch, row, begin, far;
    Shared<std::int32_t> expanded;  // (2, slots)
    Shared<W> score, bound;         // (candidates)
    int set = 0;                    // of expanded: this level's
    std::int64_t above = 0;         // nodes expanded of the level above

    STOA_DEVICE std::int32_t slot(int of, std::int64_t i) const {
        return expanded.read(static_cast<int>(of * in.n.slots + i));
    }
    STOA_DEVICE void expand(std::int64_t i, std::int64_t node) const {
        expanded.write(static_cast<int>(set * in.n.slots + i), static_cast<std::int32_t>(node));
    }
    /// Candidate j of a level: the children of what is expanded above, then the edge.
    STOA_DEVICE std::int64_t node_of(std::int64_t j, std::int64_t span) const {
        const std::int64_t f = in.n.rule.fanout,
                           block = j / f < above ? slot(1 - set, j / f) : far / span / f;
        return block * f + j % f;
    }
    /// score[j] of all candidates; each lane has its own until the next barrier.
    STOA_DEVICE void rank(int level, std::int64_t n, std::int64_t span) const {
        const int lane = thread_index();
        const std::int64_t group = in.n.group(), dim = in.n.dim;
        for (std::int64_t g = 0; g < group; ++g) {
            const T* const q =
                in.q + in.query_at(batch, row, pair % in.n.n_kv_heads * group + g) * dim;
            const Shared<W>& to = group == 1 ? score : bound;
            W max = std::numeric_limits<W>::lowest();
            for (std::int64_t j = lane; j < n; j += kWarp) {
                const std::int64_t at = in.n.place(pair, level, begin, node_of(j, span)) * dim;
                W dot = 0;
                for (std::int64_t c = 0; c < dim; ++c) {
                    const W x = widen(q[c]);
                    dot = fused(x, (x < 0 ? in.nodes.low : in.nodes.high)[at + c], dot);
                }
                W x = in.scale * dot;
                x = x == x ? x : -std::numeric_limits<W>::infinity();
                max = x > max ? x : max;
                to.write(static_cast<int>(j), x);
            }
            if (group == 1) return;
            max = warp_largest(max);
            for (std::int64_t j = lane; j < n; j += kWarp)
                bound.write(static_cast<int>(j), fast_exp(bound.read(static_cast<int>(j)) - max));
            sync_block();
            const W inverse = W{1} / lane_sum<W>(n, [&](std::int64_t j) {
                                  return bound.read(static_cast<int>(j));
                              });
            for (std::int64_t j = lane; j < n; j += kWarp) {
                const W share = bound.read(static_cast<int>(j)) * inverse;
                const W before = g == 0 ? W{0} : score.read(static_cast<int>(j));
                score.write(static_cast<int>(j), before + (share == share ? share : W{0}));
            }
            if (g + 1 < group) sync_block();  // before the next head's bounds
        }
    }
    /// Expands what is best of a level's candidates; returns how many.
    STOA_DEVICE std::int64_t choose(int level, std::int64_t span) {
        const std::int64_t f = in.n.rule.fanout, beam = in.n.rule.beam;
        const std::int64_t edge = far / span % f, n = above * f + edge;
        const int lane = thread_index();
        // The first leaf, and so every node above it, is read whatever its rank.
        const std::int64_t forced = in.n.rule.sinks > 0 && n > 0 && node_of(0, span) == 0 ? 1 : 0;
        if (n <= beam + forced) {
            for (std::int64_t j = lane; j < n; j += kWarp)
                expand(j, node_of(j, span));
            return n;
        }
        rank(level, n, span);
        sync_block();
        std::int64_t taken = forced;
        if (forced > 0 && lane == 0) expand(0, 0);
        for (std::int64_t first = forced; first < n; first += kWarp) {
            const std::int64_t j = first + lane;
            std::int64_t better = 0;
            const W own = j < n ? score.read(static_cast<int>(j)) : W{0};
            for (std::int64_t i = forced; i < n && j < n; ++i) {
                const W other = score.read(static_cast<int>(i));
                better += other > own || (other == own && i > j) ? 1 : 0;
            }
            const bool best = j < n && better < beam;
            const std::uint32_t all = warp_ballot(best);
            if (best) expand(taken + count_bits(all & ((1u << lane) - 1u)), node_of(j, span));
            taken += count_bits(all);
        }
        return taken;
    }
};

template <class T, class W = Wide<T>>
STOA_KERNEL void descend_kernel(std::int32_t* selection, STOA_CONSTANT TreeInputs<T> in,
                                int candidates) {
    SharedMemory memory;
    const TreeShape& n = in.n;
    const std::int64_t row = n.first_query + block_index() % n.q_len,
                       pair = block_index() / n.q_len, batch = pair / n.n_kv_heads,
                       begin = in.begin_of(batch, row);
    Descent<T, W> d{in,
                    pair,
                    batch,
                    row,
                    begin,
                    n.far_leaves(row - begin),
                    memory.array<std::int32_t>(static_cast<int>(2 * n.slots)),
                    memory.array<W>(candidates),
                    memory.array<W>(candidates)};
    std::int32_t* const to = selection + block_index() * n.levels * n.slots;
    const int top = top_level(n, d.far);
    for (std::int64_t i = (top + 1) * n.slots + thread_index(); i < n.levels * n.slots; i += kWarp)
        to[i] = -1;
    for (int l = top; l >= 0; --l) {
        const std::int64_t count = d.choose(l, n.span[l] / n.rule.leaf);
        sync_block();
        for (std::int64_t i = thread_index(); i < n.slots; i += kWarp)
            to[l * n.slots + i] = i < count ? d.slot(d.set, i) : -1;
        d.above = count;
        d.set = 1 - d.set;
    }
}

template <class T, class W = Wide<T>>
STOA_KERNEL void attend_kernel(T* out, W* lse, const std::int32_t* selection,
                               STOA_CONSTANT TreeInputs<T> in) {
    SharedMemory memory;
    const TreeShape& n = in.n;
    const int warps = block_threads() / kWarp, lane = thread_index() % kWarp;
    const TreeQuery<T> query(in, block_index() / n.q_len, n.first_query + block_index() % n.q_len,
                             selection, memory.array<std::int32_t>(kMaxTreeLevels));
    ItemWeights<W> weights{memory.array<W>(2 * block_threads()),
                           memory.array<std::int32_t>(2 * block_threads())};
    for (std::int64_t g = thread_index() / kWarp; g < (n.group() + warps - 1) / warps * warps;
         g += warps) {
        const bool here = g < n.group();  // the others only meet at the barriers
        const std::int64_t h = query.head * n.group() + (here ? g : 0);
        const std::int64_t at = in.query_at(query.batch, query.row, h);
        const T* const q = in.q + at * n.dim;
        const W sink =
            in.sink_logit == nullptr ? -std::numeric_limits<W>::infinity() : in.sink_logit[h];
        // A query always sees itself, so the maximum is finite.
        W max = sink;
        query.for_items([&](TreePart part, const TreeItem<W>& item) {
            const W z = item.seen ? query.logit(part, item, q) : max;
            max = z > max ? z : max;
        });
        max = warp_largest(max);
        for (std::int64_t first = 0; first < n.dim; first += kRowChannels) {
            RowSum<W> sum;
            W total = std::exp(sink - max), lanes = 0;
            TreePart before = TreePart::local;
            const auto close_part = [&] {  // the fold of kernels/cpu/lanes.h
                for (int half = kLanes / 2; half > 0; half /= 2)
                    lanes += shuffle_down(lanes, half);
                total += shuffle(lanes, 0);
                lanes = 0;
            };
            query.for_items([&](TreePart part, const TreeItem<W>& item) {
                if (part != before) close_part();
                before = part;
                const W weight = item.seen ? fused_exp(query.logit(part, item, q) - max) : W{0};
                const W other = shuffle_down(weight, kLanes);
                lanes = lanes + weight + other;
                weights.write(item.seen, weight, item.row);
                sync_block();
                weights.for_seen([&](W w, std::int64_t row) {
                    part == TreePart::nodes
                        ? sum.add(w, W{1}, in.nodes.mean_v + row * n.dim, first, n.dim)
                        : sum.add(w, W{1}, in.v + in.key_at(query.batch, row, query.head) * n.dim,
                                  first, n.dim);
                });
            });
            close_part();
            sum.times(W{1} / total);
            if (!here) continue;
            sum.store(out + at * n.dim, first, n.dim);
            if (first == 0 && lane == 0 && lse != nullptr)
                lse[(query.batch * n.n_heads + h) * n.q_len + query.row - n.first_query] =
                    max + std::log(total);
        }
    }
}

}  // namespace

template <class T, class W>
void attend_tree(T* out, W* lse, std::int32_t* selection, const TreeInputs<T>& in, Stream stream) {
    const TreeShape& n = in.n;
    // Where all candidates are expanded none has a score.
    const std::int64_t most =
        n.places(0) > n.rule.beam ? std::min(n.places(0), (n.slots + 1) * n.rule.fanout) : 0;
    const std::int64_t room =
        2 * (n.slots + 4) * 4 + 2 * (most + 4) * static_cast<std::int64_t>(sizeof(W));
    require(room <= 48 << 10, "tree_attention: beam", "candidates within 48 KiB on a GPU",
            std::to_string(n.rule.beam) + " with fanout " + std::to_string(n.rule.fanout));
    launch({.name = "tree_attention_forward: descent",
            .blocks = n.pairs() * n.q_len,
            .threads = kWarp,
            .stream = stream,
            .shared_bytes = static_cast<int>(room)},
           descend_kernel<T>, selection, in, static_cast<int>(most));
    const std::int64_t warps = std::min<std::int64_t>(n.group(), kHeadWarps);
    launch({.name = "tree_attention_forward",
            .blocks = n.pairs() * n.q_len,
            .threads = static_cast<int>(warps) * kWarp,
            .stream = stream,
            .shared_bytes = static_cast<int>(kMaxTreeLevels * 4 + ItemWeights<W>::bytes(warps))},
           attend_kernel<T>, out, lse, selection, in);
}
template void attend_tree(float*, float*, std::int32_t*, const TreeInputs<float>&, Stream);
template void attend_tree(double*, double*, std::int32_t*, const TreeInputs<double>&, Stream);
template void attend_tree(bf16*, float*, std::int32_t*, const TreeInputs<bf16>&, Stream);
template void attend_tree(fp16*, float*, std::int32_t*, const TreeInputs<fp16>&, Stream);

void tree_attention_forward(const TreeAttentionArgs& a, Stream stream) {
    dispatch_dtype(a.q.dtype, [&]<Element T>(T) {
        using W = Wide<T>;
        const TreeShape n = tree_shape(a);
        const Scratch memory(stream, tree_node_bytes(a.k, a.rule));
        const TreeInputs<T> in = tree_inputs<T>(a, n, TreeNodes<W>::in(memory.as<W>(), n));
        build_tree(in, stream);
        attend_tree(a.out.as<T>().data(), a.lse.as<W>().data(),
                    a.selection.as<std::int32_t>().data(), in, stream);
    });
}

}  // namespace stoa::cuda
