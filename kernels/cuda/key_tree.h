#pragma once
// The key tree on the GPU, and what one query reads of it. Node j of a document's level has the
// place begin / span + j among those of its row, where `begin` is the document's first token and
// `span` the tokens of a node: no two documents meet there, so that nobody has to list them. Rows
// of nodes lie as those of tokens do: (node, channel).
#include "kernels/cuda/attention_chains.h"
#include "kernels/cuda/device.h"
#include "kernels/device_scratch.h"

namespace stoa::cuda {

constexpr int kMaxTreeLevels = 32;

struct TreeShape {
    std::int64_t batch, len, n_heads, n_kv_heads, dim, levels, slots;
    TreeRule rule;
    std::int64_t first_query = 0, q_len = 0;  // queries are rows [first_query, + q_len) of len
    std::int64_t per_pair = 0;                // places of all levels of one kv head
    std::int64_t offset[kMaxTreeLevels] = {}, span[kMaxTreeLevels] = {};  // in places, in tokens
    STOA_HD std::int64_t group() const { return n_heads / n_kv_heads; }
    STOA_HD std::int64_t pairs() const { return batch * n_kv_heads; }
    STOA_HD std::int64_t places(std::int64_t level) const { return len / span[level]; }
    /// Node `node` of a document that begins at `begin`.
    STOA_HD std::int64_t place(std::int64_t pair, std::int64_t level, std::int64_t begin,
                               std::int64_t node) const {
        return pair * per_pair + offset[level] + begin / span[level] + node;
    }
    /// Leaves before the local range of query t of a document.
    STOA_HD std::int64_t far_leaves(std::int64_t t) const {
        const std::int64_t far = t / rule.leaf - rule.window / rule.leaf;
        return far > 0 ? far : 0;
    }
};
inline TreeShape tree_shape(const TreeRule& rule, std::int64_t batch, std::int64_t len,
                            std::int64_t n_heads, std::int64_t n_kv_heads, std::int64_t dim) {
    TreeShape n{batch,
                len,
                n_heads,
                n_kv_heads,
                dim,
                tree_levels(rule, len),
                tree_slots(rule),
                rule,
                /*first_query=*/0,
                /*q_len=*/len};
    std::int64_t span = rule.leaf;
    for (std::int64_t l = 0; l < n.levels; ++l, span *= rule.fanout) {
        n.span[l] = span;
        n.offset[l] = n.per_pair;
        n.per_pair += n.places(l);
    }
    require(n.per_pair == tree_places(rule, len), "tree_attention: nodes", "those of the plan",
            std::to_string(n.per_pair));
    return n;
}
template <class Args>
TreeShape tree_shape(const Args& a) {
    return tree_shape(a.rule, a.q.shape[0], a.q.shape[1], a.q.shape[2], a.k.shape[2], a.q.shape[3]);
}

template <class W>
struct TreeNodes {
    W *high, *low, *mean_k, *mean_v;  // (places, dim): largest and least keys, means
    W *mass, *log_mass;               // (places)
    static TreeNodes in(W* memory, const TreeShape& n) {
        const std::int64_t places = n.pairs() * n.per_pair, rows = places * n.dim;
        W* const mass = memory + 4 * rows;
        return {memory, memory + rows, memory + 2 * rows, memory + 3 * rows, mass, mass + places};
    }
};

/// The tensors that all passes read. gate, sink_logit may be null, and so may key_begin: one
/// document.
template <class T, class W = Wide<T>>
struct TreeInputs {
    TreeShape n;
    const T *q, *k, *v;
    const std::int32_t* key_begin;
    const W *gate, *sink_logit;
    W scale;
    TreeNodes<W> nodes;

    STOA_DEVICE std::int64_t begin_of(std::int64_t batch, std::int64_t s) const {
        return key_begin == nullptr ? 0 : key_begin[batch * n.len + s];
    }
    STOA_DEVICE std::int64_t key_at(std::int64_t batch, std::int64_t s, std::int64_t head) const {
        return (batch * n.len + s) * n.n_kv_heads + head;
    }
    STOA_DEVICE std::int64_t query_at(std::int64_t batch, std::int64_t t, std::int64_t h) const {
        return (batch * n.q_len + t - n.first_query) * n.n_heads + h;
    }
    /// Of row s, token `token` of its document: a sink has no gate.
    STOA_DEVICE bool gated(std::int64_t token) const {
        return gate != nullptr && token >= n.rule.sinks;
    }
    STOA_DEVICE W gate_of(std::int64_t batch, std::int64_t s, std::int64_t token,
                          std::int64_t head) const {
        return gated(token) ? gate[key_at(batch, s, head)] : W{0};
    }
    STOA_DEVICE W sigma_of(std::int64_t batch, std::int64_t s, std::int64_t token,
                           std::int64_t head) const {
        return gated(token) ? std::exp(gate[key_at(batch, s, head)]) : W{1};
    }
};
template <class T, class Args, class W = Wide<T>>
TreeInputs<T> tree_inputs(const Args& a, const TreeShape& n, const TreeNodes<W>& nodes) {
    return {n,
            a.q.template as<T>().data(),
            a.k.template as<T>().data(),
            a.v.template as<T>().data(),
            a.key_begin.template as<std::int32_t>().data(),
            a.gate.empty() ? nullptr : a.gate.template as<W>().data(),
            a.sink_logit.empty() ? nullptr : a.sink_logit.template as<W>().data(),
            static_cast<W>(a.scale),
            nodes};
}
/// Fills the nodes of all documents, level by level.
template <class T>
void build_tree(const TreeInputs<T>& in, Stream stream);
/// Those that tokens [from, to) complete, of one document with those before them.
template <class T>
void complete_nodes(const TreeInputs<T>& in, std::int64_t from, std::int64_t to, Stream stream);

/// Selection, out and lse of the queries; lse may be null. The nodes are there.
/// errors: ShapeError where a level's candidates do not fit a block's memory
template <class T, class W = Wide<T>>
void attend_tree(T* out, W* lse, std::int32_t* selection, const TreeInputs<T>& in, Stream stream);

/// The document of place `place` of a level of a row, if a whole node lies there: its first token's
/// row, else -1.
template <class T>
STOA_DEVICE std::int64_t node_begin(const TreeInputs<T>& in, std::int64_t batch, std::int64_t level,
                                    std::int64_t place) {
    const std::int64_t span = in.n.span[level];
    const std::int64_t begin = in.begin_of(batch, (place + 1) * span - 1);
    const std::int64_t first = place * span + begin % span;
    if (first + span > in.n.len || in.begin_of(batch, first + span - 1) != begin) return -1;
    return first;
}

/// The highest level with a complete node within `far` leaves, -1: none.
STOA_DEVICE inline int top_level(const TreeShape& n, std::int64_t far) {
    int top = -1;
    for (std::int64_t span = 1; span <= far; span *= n.rule.fanout)
        ++top;
    return top;
}

/// One key or summary that a query may read; row: of the token, or place of the node.
template <class W>
struct TreeItem {
    std::int64_t row = 0;
    bool seen = false;
    W bias = 0;
};
enum class TreePart : int { local, nodes, leaves };

/// What one query reads, in three parts and the order of kernels/cpu/tree_attend.cpp: the tokens of
/// its local range and those of its leaves at their places in packs of 16, the candidates of all
/// levels from the top down. So whatever 32 lanes take, 16 and 16, the CPU's lanes take.
template <class T, class W = Wide<T>>
struct TreeQuery {
    const TreeInputs<T>& in;
    std::int64_t batch, head, pair, row, begin, t, far;
    const std::int32_t* selection;
    int top;
    std::int64_t leaves, leaf_lanes;
    Shared<std::int32_t> candidates;  // of a level

    STOA_DEVICE TreeQuery(const TreeInputs<T>& inputs, std::int64_t pair_, std::int64_t row_,
                          const std::int32_t* all, const Shared<std::int32_t>& room)
        : in(inputs),
          batch(pair_ / inputs.n.n_kv_heads),
          head(pair_ % inputs.n.n_kv_heads),
          pair(pair_),
          row(row_),
          begin(inputs.begin_of(batch, row_)),
          t(row_ - begin),
          far(inputs.n.far_leaves(t)),
          selection(all + (pair_ * inputs.n.q_len + row_ - inputs.n.first_query) * inputs.n.levels *
                              inputs.n.slots),
          top(top_level(inputs.n, far)),
          leaves(expanded(0)),
          leaf_lanes(lanes_of_leaf(inputs.n.rule.leaf)),
          candidates(room) {
        const std::int64_t f = in.n.rule.fanout;
        for (int l = thread_index(); l <= top; l += block_threads())
            candidates.write(
                l, static_cast<std::int32_t>((l == top ? 0 : expanded(l + 1) * f) + edge(l)));
        sync_block();
    }
    /// Of the packs that a leaf can touch.
    STOA_DEVICE static std::int64_t lanes_of_leaf(std::int64_t leaf) {
        if (leaf % kLanes == 0) return leaf;
        return kLanes % leaf == 0 ? kLanes : ((leaf + kLanes - 2) / kLanes + 1) * kLanes;
    }
    /// Nodes of a level that are expanded.
    STOA_DEVICE std::int64_t expanded(int level) const {
        std::int64_t count = 0;
        while (count < in.n.slots && selection[level * in.n.slots + count] >= 0)
            ++count;
        return count;
    }
    STOA_DEVICE std::int64_t span_leaves(int level) const {
        return in.n.span[level] / in.n.rule.leaf;
    }
    /// Complete nodes of a level whose parent is not.
    STOA_DEVICE std::int64_t edge(int level) const {
        return far / span_leaves(level) % in.n.rule.fanout;
    }
    STOA_DEVICE std::int64_t count(TreePart part) const {
        const std::int64_t first = far * in.n.rule.leaf / kLanes;
        if (part == TreePart::local) return (t / kLanes + 1 - first) * kLanes;
        if (part == TreePart::leaves) return leaves * leaf_lanes;
        std::int64_t nodes = 0;
        for (int l = 0; l <= top; ++l)
            nodes += candidates.read(l);
        return nodes;
    }
    STOA_DEVICE TreeItem<W> token(std::int64_t s, std::int64_t from, std::int64_t to,
                                  bool near) const {
        if (s < from || s >= to) return {};
        const W gate = in.gate_of(batch, begin + s, s, head);
        return {begin + s, true, near ? gate_ramp<W>(t - s, in.n.rule.window) * gate : gate};
    }
    STOA_DEVICE TreeItem<W> item(TreePart part, std::int64_t x) const {
        const std::int64_t leaf = in.n.rule.leaf, f = in.n.rule.fanout;
        if (part == TreePart::local) {
            const std::int64_t first = far * leaf;
            return token(first / kLanes * kLanes + x, first, t + 1, true);
        }
        if (part == TreePart::leaves) {
            const std::int64_t slot = x / leaf_lanes;
            if (slot >= leaves) return {};
            const std::int64_t first = selection[slot] * leaf;
            return token(first / kLanes * kLanes + x % leaf_lanes, first, first + leaf, false);
        }
        for (int l = top; l >= 0; --l) {
            const std::int64_t n = candidates.read(l);
            if (x >= n) {
                x -= n;
                continue;
            }
            const std::int64_t above =
                x / f < n / f ? selection[(l + 1) * in.n.slots + x / f] : far / span_leaves(l) / f;
            const std::int64_t node = above * f + x % f;
            for (std::int64_t i = 0; i < in.n.slots; ++i)
                if (selection[l * in.n.slots + i] == node) return {};
            const std::int64_t at = in.n.place(pair, l, begin, node);
            return {at, true, in.nodes.log_mass[at]};
        }
        return {};
    }
    /// scale x key + bias: tokens' keys, or means.
    STOA_DEVICE W logit(TreePart part, const TreeItem<W>& i, const T* q) const {
        const W dot =
            part == TreePart::nodes
                ? chain_dot(q, W{1}, in.nodes.mean_k + i.row * in.n.dim, in.n.dim)
                : chain_dot(q, W{1}, in.k + in.key_at(batch, i.row, head) * in.n.dim, in.n.dim);
        return in.scale * dot + i.bias;
    }
    /// fn(part, item of the lane) for 32 items at a time.
    template <class Fn>
    STOA_DEVICE void for_items(const Fn& fn) const {
        for (const TreePart part : {TreePart::local, TreePart::nodes, TreePart::leaves}) {
            const std::int64_t n = count(part);
            for (std::int64_t x = 0; x < n; x += kWarp) {
                const std::int64_t own = x + thread_index() % kWarp;
                fn(part, own < n ? item(part, own) : TreeItem<W>{});
            }
        }
    }
};

/// What a warp's lanes have of 32 items, for all of them: a weight and the row that it goes with.
template <class W>
struct ItemWeights {
    Shared<W> weight;           // (2, warps, 32)
    Shared<std::int32_t> rows;  // the same
    int set = 0;
    std::uint32_t seen = 0;
    STOA_DEVICE int at(int i) const {
        return set * block_threads() + thread_index() / kWarp * kWarp + i;
    }
    STOA_DEVICE void write(bool here, W value, std::int64_t row) {
        set = 1 - set;
        seen = warp_ballot(here);
        if (!here) return;
        weight.write(at(thread_index() % kWarp), value);
        rows.write(at(thread_index() % kWarp), static_cast<std::int32_t>(row));
    }
    /// fn(weight, row), in the order of the lanes.
    template <class Fn>
    STOA_DEVICE void for_seen(const Fn& fn) const {
        for (std::uint32_t left = seen; left != 0; left &= left - 1) {
            const int i = lowest_bit(left);
            fn(weight.read(at(i)), static_cast<std::int64_t>(rows.read(at(i))));
        }
    }
    static std::int64_t bytes(std::int64_t warps) {
        return 2 * warps * kWarp * static_cast<std::int64_t>(sizeof(W) + 4);
    }
};

}  // namespace stoa::cuda
