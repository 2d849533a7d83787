#pragma once
// The keys and values of one document and kv head as the tree attention reads them: token by token
// and as a tree of summaries. It grows by tokens; what it holds of the first n tokens does not
// depend on how many came at once.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "kernels/core/block_scale.h"
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

/// Tokens in 8 bits: a code per channel and a power of two per token, for its key and its value.
struct TokenCodes {
    e4m3 *k = nullptr, *v = nullptr;              // (packs, dim, kLanes), (tokens, dim)
    e8m0 *k_scale = nullptr, *v_scale = nullptr;  // (tokens)
};

template <class W>
struct KeyTree {
    TreeRule rule;
    std::int64_t dim = 0, capacity = 0, len = 0, n_levels = 0;
    std::int64_t width = 0;      // dim in whole lanes
    std::int64_t row_lanes = 0;  // 2 fanout in whole lanes
    // Tokens from `first` on, a multiple of kLanes; there is room for wide_tokens.
    std::int64_t first = 0, wide_tokens = 0;
    W* k = nullptr;      // (packs, dim, kLanes): token s is lane s % kLanes of its pack
    W* v = nullptr;      // (tokens, width)
    W* sigma = nullptr;  // (tokens) exp(gate)
    // Of all tokens; 0 where there is no gate.
    W* gate = nullptr;
    bool coded = false;  // a query reads the tokens of a selected leaf from their codes
    TokenCodes codes;    // of the tokens of complete leaves
    std::array<TreeLevel<W>, kMaxTreeLevels> levels{};  // leaves first

    const W* pack(std::int64_t i) const { return k + (i * kLanes - first) * dim; }
    const W* value(std::int64_t s) const { return v + (s - first) * width; }
    std::int64_t block_values() const { return dim * 2 * row_lanes; }
};

/// A tree for at most `capacity` tokens, without memory. With `wide_tokens` only so many are there
/// as they came at a time, and selected leaves are read from codes.
template <class W>
KeyTree<W> make_tree(const TreeRule& rule, std::int64_t dim, std::int64_t capacity,
                     std::int64_t wide_tokens = 0) {
    KeyTree<W> t;
    t.rule = rule;
    t.dim = dim;
    t.capacity = capacity;
    t.coded = wide_tokens > 0;
    t.wide_tokens = t.coded ? std::min(capacity, wide_tokens) : capacity;
    t.width = round_up(dim, kLanes);
    t.row_lanes = round_up(2 * rule.fanout, kLanes);
    t.n_levels = capacity > rule.window ? tree_levels(rule, capacity) : 0;
    return t;
}

/// Gives it its parts of `memory`; returns how many values that takes (null: only this). Some 2.4
/// values per key channel and token with leaves of 16; where tokens are coded, 0.9.
template <class W>
std::int64_t place_tree(KeyTree<W>& t, W* memory) {
    constexpr auto kBytes = static_cast<std::int64_t>(sizeof(W));
    std::int64_t used = 0;
    const auto take = [&](W*& at, std::int64_t n) {
        at = memory == nullptr ? nullptr : memory + used;
        used += round_up(n, kLanes);
    };
    const auto take_codes = [&](auto*& at, std::int64_t n) {
        W* place = nullptr;
        take(place, (n + kBytes - 1) / kBytes);
        at = reinterpret_cast<std::remove_reference_t<decltype(at)>>(place);
    };
    const std::int64_t tokens = round_up(t.capacity, kLanes),
                       wide = round_up(t.wide_tokens, kLanes);
    take(t.k, wide * t.dim);
    take(t.v, wide * t.width);
    take(t.sigma, wide);
    take(t.gate, tokens);
    if (t.coded) {
        take_codes(t.codes.k, tokens * t.dim);
        take_codes(t.codes.v, tokens * t.dim);
        take_codes(t.codes.k_scale, tokens);
        take_codes(t.codes.v_scale, tokens);
    }
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
    const std::int64_t at = s - t.first;
    W* const column = t.k + at / kLanes * t.dim * kLanes + at % kLanes;
    W* const row = t.v + at * t.width;
    for (std::int64_t c = 0; c < t.dim; ++c) {
        column[c * kLanes] = widen(k[c]);
        row[c] = widen(v[c]);
    }
    std::fill(row + t.dim, row + t.width, W{0});
    const bool gated = gate != nullptr && s >= t.rule.sinks;
    t.gate[s] = gated ? *gate : W{0};
    t.sigma[at] = gated ? std::exp(*gate) : W{1};
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
    const W* const sigma = t.sigma + begin - t.first;
    const W mass = put_mass(level, j, sigma, t.rule.leaf);
    mean_row(level.mean_v + j * t.width, t.value(begin), sigma, t.rule.leaf, mass, t.width);
    for (std::int64_t c = 0; c < t.dim; ++c) {
        W low{}, high{}, sum = 0;
        for (std::int64_t s = begin; s < end; ++s) {
            const W x = t.pack(s / kLanes)[c * kLanes + s % kLanes];
            low = s == begin || x < low ? x : low;
            high = s == begin || x > high ? x : high;
            sum = fused(sigma[s - begin], x, sum);
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

/// codes[i * stride] of n values x[i * x_stride]; returns their scale.
template <class W>
e8m0 encode(e4m3* codes, std::int64_t stride, const W* x, std::int64_t x_stride, std::int64_t n) {
    std::int32_t most = 0;
    for (std::int64_t i = 0; i < n; ++i)
        most = std::max(most, magnitude(static_cast<float>(x[i * x_stride])));
    const std::int32_t byte = scale_byte<e4m3>(most);
    const float factor = factor_of(byte);
    for (std::int64_t i = 0; i < n; ++i)
        codes[i * stride] = to_e4m3(static_cast<float>(x[i * x_stride]) * factor);
    return {static_cast<std::uint8_t>(byte)};
}
/// The codes of leaf j, whose tokens are there.
template <class W>
void encode_leaf(KeyTree<W>& t, std::int64_t j) {
    const std::int64_t begin = j * t.rule.leaf, end = begin + t.rule.leaf;
    for (std::int64_t s = begin; s < end; ++s) {
        const std::int64_t lane = s % kLanes;
        t.codes.k_scale[s] = encode(t.codes.k + s / kLanes * t.dim * kLanes + lane, kLanes,
                                    t.pack(s / kLanes) + lane, kLanes, t.dim);
        t.codes.v_scale[s] = encode(t.codes.v + s * t.dim, 1, t.value(s), 1, t.dim);
    }
}
/// Packs of codes as pack() has them; of tokens that have no codes yet, anything finite.
template <class W>
void decode_packs(W* out, const KeyTree<W>& t, std::int64_t first_pack, std::int64_t count) {
    for (std::int64_t i = first_pack; i < first_pack + count; ++i) {
        float scale[kLanes];
        for_lanes<kLanes>([&](int l) { scale[l] = to_float(t.codes.k_scale[i * kLanes + l]); });
        const e4m3* codes = t.codes.k + i * t.dim * kLanes;
        for (std::int64_t c = 0; c < t.dim; ++c, codes += kLanes, out += kLanes)
            for_lanes<kLanes>([&](int l) { out[l] = to_float(codes[l]) * scale[l]; });
    }
}
/// (count, width) values of tokens from s on.
template <class W>
void decode_values(W* out, const KeyTree<W>& t, std::int64_t s, std::int64_t count) {
    for (const std::int64_t end = s + count; s < end; ++s, out += t.width) {
        const float scale = to_float(t.codes.v_scale[s]);
        const e4m3* const codes = t.codes.v + s * t.dim;
        for (std::int64_t c = 0; c < t.dim; ++c)
            out[c] = to_float(codes[c]) * scale;
        std::fill(out + t.dim, out + t.width, W{0});
    }
}

/// After tokens [len, new_len) are put: the nodes that they complete, leaves first.
template <class W>
void complete_nodes(KeyTree<W>& t, std::int64_t new_len) {
    t.len = new_len;
    std::int64_t nodes = new_len / t.rule.leaf;
    for (std::int64_t l = 0; l < t.n_levels; ++l, nodes /= t.rule.fanout) {
        TreeLevel<W>& level = t.levels[static_cast<std::size_t>(l)];
        for (; level.count < nodes; ++level.count) {
            l == 0 ? build_leaf(t, level.count) : build_parent(t, l, level.count);
            if (l == 0 && t.coded) encode_leaf(t, level.count);
        }
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
