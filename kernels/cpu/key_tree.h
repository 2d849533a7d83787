#pragma once
// The keys and values of one document and kv head as the tree attention reads them: token by token
// and as a tree of summaries. It grows by tokens; what it holds of the first n tokens does not
// depend on how many came at once.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "kernels/cpu/lane_blocks.h"
#include "kernels/tree_attention.h"

namespace stoa::cpu {

constexpr std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

/// Nodes of one level, in order, complete ones only. Children of one parent (a sibling block) lie
/// side by side, so that a query's product with a channel covers them all.
template <class W>
struct TreeLevel {
    std::int64_t count = 0;
    W* rows = nullptr;    // (blocks, dim, 2, row_lanes): the fanout's largest keys, then its mean
                          // keys; the same with the least
    W* mean_v = nullptr;  // (nodes, width)
    W *mass = nullptr, *log_mass = nullptr;  // (nodes)
};

constexpr int kMaxTreeLevels = 32;

template <class W>
struct KeyTree {
    TreeRule rule;
    std::int64_t dim = 0, capacity = 0, len = 0, n_levels = 0;
    std::int64_t width = 0;      // dim in whole lanes
    std::int64_t row_lanes = 0;  // 2 fanout in whole lanes
    W* k = nullptr;              // (packs, dim, kLanes): token s is lane s % kLanes of its pack
    W* v = nullptr;              // (tokens, width)
    W *gate = nullptr, *sigma = nullptr;                // (tokens) 0 and 1 where there is no gate
    std::array<TreeLevel<W>, kMaxTreeLevels> levels{};  // leaves first

    const W* pack(std::int64_t i) const { return k + i * dim * kLanes; }
    std::int64_t block_values() const { return dim * 2 * row_lanes; }
};

/// A tree for at most `capacity` tokens, without memory.
template <class W>
KeyTree<W> make_tree(const TreeRule& rule, std::int64_t dim, std::int64_t capacity) {
    KeyTree<W> t;
    t.rule = rule;
    t.dim = dim;
    t.capacity = capacity;
    t.width = round_up(dim, kLanes);
    t.row_lanes = round_up(2 * rule.fanout, kLanes);
    t.n_levels = capacity > rule.window ? tree_levels(rule, capacity) : 0;
    return t;
}

/// Gives it its parts of `memory`; returns how many values that takes (null: only this). Some 2.4
/// values per key channel and token with leaves of 16.
template <class W>
std::int64_t place_tree(KeyTree<W>& t, W* memory) {
    std::int64_t used = 0;
    const auto take = [&](W*& at, std::int64_t n) {
        at = memory == nullptr ? nullptr : memory + used;
        used += round_up(n, kLanes);
    };
    const std::int64_t tokens = round_up(t.capacity, kLanes);
    take(t.k, tokens * t.dim);
    take(t.v, tokens * t.width);
    take(t.gate, tokens);
    take(t.sigma, tokens);
    std::int64_t nodes = t.capacity / t.rule.leaf;
    for (std::int64_t l = 0; l < t.n_levels; ++l, nodes /= t.rule.fanout) {
        TreeLevel<W>& level = t.levels[static_cast<std::size_t>(l)];
        const std::int64_t blocks = (nodes + t.rule.fanout - 1) / t.rule.fanout;
        take(level.rows, blocks * t.block_values());
        take(level.mean_v, blocks * t.rule.fanout * t.width);
        take(level.mass, blocks * t.rule.fanout);
        take(level.log_mass, blocks * t.rule.fanout);
    }
    return used;
}

/// Token s; gate null: none.
template <class T, class W>
void put_token(KeyTree<W>& t, std::int64_t s, const T* k, const T* v, const W* gate) {
    W* const column = t.k + s / kLanes * t.dim * kLanes + s % kLanes;
    W* const row = t.v + s * t.width;
    for (std::int64_t c = 0; c < t.dim; ++c) {
        column[c * kLanes] = widen(k[c]);
        row[c] = widen(v[c]);
    }
    std::fill(row + t.dim, row + t.width, W{0});
    const bool gated = gate != nullptr && s >= t.rule.sinks;
    t.gate[s] = gated ? *gate : W{0};
    t.sigma[s] = gated ? std::exp(*gate) : W{1};
}

/// Where channel c of a node begins: its largest key; its mean key, its least, further on.
template <class W>
W* node_channel(const KeyTree<W>& t, const TreeLevel<W>& level, std::int64_t node, std::int64_t c) {
    const std::int64_t f = t.rule.fanout;
    return level.rows + node / f * t.block_values() + c * 2 * t.row_lanes + node % f;
}
template <class W>
void put_channel(const KeyTree<W>& t, const TreeLevel<W>& level, std::int64_t node, std::int64_t c,
                 W low, W high, W mean) {
    W* const at = node_channel(t, level, node, c);
    at[0] = high;
    at[t.row_lanes] = low;
    at[t.rule.fanout] = at[t.row_lanes + t.rule.fanout] = mean;
}

/// The mean of `count` rows of `width` from their weights and the sum of these.
template <class W>
void mean_row(W* mean, const W* rows, const W* weights, std::int64_t count, W mass,
              std::int64_t width) {
    std::fill_n(mean, width, W{0});
    for (std::int64_t i = 0; i < count; ++i)
        for (std::int64_t c = 0; c < width; ++c)
            mean[c] = fused(weights[i], rows[i * width + c], mean[c]);
    for (std::int64_t c = 0; c < width; ++c)
        mean[c] /= mass;
}
template <class W>
W put_mass(TreeLevel<W>& level, std::int64_t j, const W* weights, std::int64_t count) {
    W mass = 0;
    for (std::int64_t i = 0; i < count; ++i)
        mass += weights[i];
    level.mass[j] = mass;
    level.log_mass[j] = std::log(mass);
    return mass;
}

/// Leaf j, whose tokens are there.
template <class W>
void build_leaf(KeyTree<W>& t, std::int64_t j) {
    TreeLevel<W>& level = t.levels[0];
    const std::int64_t begin = j * t.rule.leaf, end = begin + t.rule.leaf;
    const W mass = put_mass(level, j, t.sigma + begin, t.rule.leaf);
    mean_row(level.mean_v + j * t.width, t.v + begin * t.width, t.sigma + begin, t.rule.leaf, mass,
             t.width);
    for (std::int64_t c = 0; c < t.dim; ++c) {
        W low{}, high{}, sum = 0;
        for (std::int64_t s = begin; s < end; ++s) {
            const W x = t.pack(s / kLanes)[c * kLanes + s % kLanes];
            low = s == begin || x < low ? x : low;
            high = s == begin || x > high ? x : high;
            sum = fused(t.sigma[s], x, sum);
        }
        put_channel(t, level, j, c, low, high, sum / mass);
    }
}

/// Node j of level l > 0, whose children are there.
template <class W>
void build_parent(KeyTree<W>& t, std::int64_t l, std::int64_t j) {
    TreeLevel<W>& level = t.levels[static_cast<std::size_t>(l)];
    const TreeLevel<W>& below = t.levels[static_cast<std::size_t>(l - 1)];
    const std::int64_t f = t.rule.fanout;
    const W* const weights = below.mass + j * f;
    const W mass = put_mass(level, j, weights, f);
    mean_row(level.mean_v + j * t.width, below.mean_v + j * f * t.width, weights, f, mass, t.width);
    for (std::int64_t c = 0; c < t.dim; ++c) {
        const W *const high = node_channel(t, below, j * f, c), *const low = high + t.row_lanes;
        W least = low[0], largest = high[0], sum = 0;
        for (std::int64_t i = 0; i < f; ++i) {
            least = low[i] < least ? low[i] : least;
            largest = high[i] > largest ? high[i] : largest;
            sum = fused(weights[i], high[f + i], sum);
        }
        put_channel(t, level, j, c, least, largest, sum / mass);
    }
}

/// After tokens [len, new_len) are put: the nodes that they complete, leaves first.
template <class W>
void complete_nodes(KeyTree<W>& t, std::int64_t new_len) {
    t.len = new_len;
    std::int64_t nodes = new_len / t.rule.leaf;
    for (std::int64_t l = 0; l < t.n_levels; ++l, nodes /= t.rule.fanout) {
        TreeLevel<W>& level = t.levels[static_cast<std::size_t>(l)];
        for (; level.count < nodes; ++level.count)
            l == 0 ? build_leaf(t, level.count) : build_parent(t, l, level.count);
    }
}

/// Far leaves of query t of a document: those before its local range.
inline std::int64_t far_leaves(const TreeRule& rule, std::int64_t t) {
    return std::max<std::int64_t>(0, t / rule.leaf - rule.window / rule.leaf);
}

/// The highest level with a complete node within `far` leaves, -1: none; and the leaves of a node
/// of it.
struct TreeTop {
    std::int64_t level = -1, span = 0;
};
inline TreeTop tree_top(std::int64_t far, std::int64_t fanout) {
    TreeTop top;
    for (std::int64_t span = 1; span <= far; span *= fanout)
        ++top.level, top.span = span;
    return top;
}

/// Candidates of one level that have one parent: the first `count` children of node `block` of the
/// level above, complete or not.
struct SiblingBlock {
    std::int32_t level, block, count;
};
/// Writes the candidates of a level whose nodes span `span` leaves, ascending: the children of what
/// is expanded above (null at the top), then the complete nodes within the far leaves whose parent
/// is not. At most slots + 1 blocks; returns how many.
inline std::int64_t list_candidates(SiblingBlock* out, const std::int32_t* above,
                                    std::int64_t slots, std::int64_t level, std::int64_t span,
                                    std::int64_t far, std::int64_t fanout) {
    std::int64_t n = 0;
    const auto add = [&](std::int64_t block, std::int64_t count) {
        out[n++] = {static_cast<std::int32_t>(level), static_cast<std::int32_t>(block),
                    static_cast<std::int32_t>(count)};
    };
    for (std::int64_t i = 0; above != nullptr && i < slots && above[i] >= 0; ++i)
        add(above[i], fanout);
    const std::int64_t edge = far / span % fanout;
    if (edge > 0) add(far / span / fanout, edge);
    return n;
}

}  // namespace stoa::cpu
