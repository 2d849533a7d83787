#pragma once
// The tree over the keys of one document and kv head, and the descent of a query through it.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/cpu/lanes.h"
#include "kernels/tree_attention.h"

namespace stoa::cpu {

/// Complete nodes of one level, in order.
template <class W>
struct TreeLevel {
    std::int64_t count = 0;
    std::vector<W> mass, mean_k, mean_v, low, high;  // (count), the others (count, dim)
    void resize(std::int64_t n, std::int64_t dim) {
        count = n;
        mass.assign(static_cast<std::size_t>(n), W{0});
        for (auto* v : {&mean_k, &mean_v, &low, &high})
            v->assign(static_cast<std::size_t>(n * dim), W{0});
    }
};

template <class W>
struct KeyTree {
    std::int64_t dim = 0;
    std::vector<TreeLevel<W>> levels;  // leaves first
};

/// token(s) gives {key, value, sigma} of token s of the document, key and value (dim) in W.
template <class W, class Token>
void build_leaves(TreeLevel<W>& level, std::int64_t tokens, std::int64_t dim, const TreeRule& rule,
                  const Token& token) {
    level.resize(tokens / rule.leaf, dim);
    for (std::int64_t j = 0; j < level.count; ++j) {
        W *const k = level.mean_k.data() + j * dim, *const v = level.mean_v.data() + j * dim,
                 *const low = level.low.data() + j * dim, *const high = level.high.data() + j * dim;
        W mass = 0;
        for (std::int64_t i = 0; i < rule.leaf; ++i) {
            const auto [key, value, sigma] = token(j * rule.leaf + i);
            mass += sigma;
            for (std::int64_t c = 0; c < dim; ++c) {
                const W x = key(c);
                k[c] += sigma * x;
                v[c] += sigma * value(c);
                low[c] = i == 0 || x < low[c] ? x : low[c];
                high[c] = i == 0 || x > high[c] ? x : high[c];
            }
        }
        level.mass[static_cast<std::size_t>(j)] = mass;
        for (std::int64_t c = 0; c < dim; ++c)
            k[c] /= mass, v[c] /= mass;
    }
}

template <class W>
void build_parents(TreeLevel<W>& level, const TreeLevel<W>& below, std::int64_t dim,
                   std::int64_t fanout) {
    level.resize(below.count / fanout, dim);
    for (std::int64_t j = 0; j < level.count; ++j) {
        W *const k = level.mean_k.data() + j * dim, *const v = level.mean_v.data() + j * dim,
                 *const low = level.low.data() + j * dim, *const high = level.high.data() + j * dim;
        W mass = 0;
        for (std::int64_t i = 0; i < fanout; ++i) {
            const std::int64_t child = j * fanout + i, at = child * dim;
            const W m = below.mass[static_cast<std::size_t>(child)];
            mass += m;
            for (std::int64_t c = 0; c < dim; ++c) {
                const auto from = static_cast<std::size_t>(at + c);
                k[c] += m * below.mean_k[from];
                v[c] += m * below.mean_v[from];
                low[c] = i == 0 ? below.low[from] : std::min(low[c], below.low[from]);
                high[c] = i == 0 ? below.high[from] : std::max(high[c], below.high[from]);
            }
        }
        level.mass[static_cast<std::size_t>(j)] = mass;
        for (std::int64_t c = 0; c < dim; ++c)
            k[c] /= mass, v[c] /= mass;
    }
}

/// Far leaves of query t of a document: those before its local range.
inline std::int64_t far_leaves(const TreeRule& rule, std::int64_t t) {
    return std::max<std::int64_t>(0, t / rule.leaf - rule.window / rule.leaf);
}

/// Candidates of one level, ascending: children of what is expanded above, then the complete nodes
/// within the far leaves whose parent is not.
inline void candidates(std::vector<std::int32_t>& out, const std::int32_t* above,
                       std::int64_t slots, bool top, std::int64_t far, std::int64_t level,
                       std::int64_t fanout) {
    out.clear();
    for (std::int64_t i = 0; !top && i < slots && above[i] >= 0; ++i)
        for (std::int64_t c = 0; c < fanout; ++c)
            out.push_back(static_cast<std::int32_t>(above[i] * fanout + c));
    std::int64_t width = 1;  // leaves of a node
    for (std::int64_t l = 0; l < level; ++l)
        width *= fanout;
    const std::int64_t first = top ? 0 : far / (width * fanout) * fanout;
    for (std::int64_t j = first; j < far / width; ++j)
        out.push_back(static_cast<std::int32_t>(j));
}

/// The highest level with a complete node within `far` leaves; -1: none.
inline std::int64_t top_level(std::int64_t far, std::int64_t fanout) {
    std::int64_t top = -1;
    for (; far > 0; far /= fanout)
        ++top;
    return top;
}

/// scale * sum_c max(q_c low_c, q_c high_c)
template <class W>
W upper_bound(const W* q, const TreeLevel<W>& level, std::int64_t node, std::int64_t dim, W scale) {
    const W *const low = level.low.data() + node * dim, *const high =
                                                            level.high.data() + node * dim;
    return scale * lane_sum<W>(dim, [&](std::int64_t c) {
               const W a = q[c] * low[c], b = q[c] * high[c];
               return a > b ? a : b;
           });
}

/// Working memory of a descent.
template <class W>
struct Descent {
    std::vector<std::int32_t> nodes;
    std::vector<W> bounds;
    std::vector<std::pair<W, std::int32_t>> ranked;
};

/// Fills `selection` (levels, slots) for a query whose group has the rows q (group, dim).
template <class W>
void descend(std::int32_t* selection, std::int64_t levels, const KeyTree<W>& tree, const W* q,
             std::int64_t group, std::int64_t t, const TreeRule& rule, W scale, Descent<W>& d) {
    const std::int64_t slots = tree_slots(rule), far = far_leaves(rule, t);
    std::fill_n(selection, levels * slots, std::int32_t{-1});
    const std::int64_t top = top_level(far, rule.fanout);
    for (std::int64_t l = top; l >= 0; --l) {
        std::int32_t* const expanded = selection + l * slots;
        candidates(d.nodes, expanded + slots, slots, l == top, far, l, rule.fanout);
        const auto n = std::ssize(d.nodes);
        d.ranked.clear();
        for (const std::int32_t node : d.nodes)
            d.ranked.emplace_back(W{0}, node);
        d.bounds.resize(static_cast<std::size_t>(n));
        for (std::int64_t i = 0; i < group; ++i) {
            W max = std::numeric_limits<W>::lowest();
            for (std::size_t j = 0; j < d.bounds.size(); ++j) {
                d.bounds[j] =
                    upper_bound(q + i * tree.dim, tree.levels[static_cast<std::size_t>(l)],
                                d.nodes[j], tree.dim, scale);
                if (d.bounds[j] != d.bounds[j]) d.bounds[j] = -std::numeric_limits<W>::infinity();
                max = d.bounds[j] > max ? d.bounds[j] : max;
            }
            W sum = 0;
            for (W& b : d.bounds) {
                if (group > 1) b = std::exp(b - max);
                sum += b;
            }
            for (std::size_t j = 0; j < d.bounds.size(); ++j)
                d.ranked[j].first += group > 1 ? d.bounds[j] / sum : d.bounds[j];
        }
        // The first leaf, and so every node above it, is read whatever its rank.
        const bool forced = rule.sinks > 0 && n > 0 && d.nodes.front() == 0;
        const auto begin = d.ranked.begin() + (forced ? 1 : 0);
        const auto rest = d.ranked.end() - begin;
        const auto take = std::min<std::ptrdiff_t>(rest, rule.beam);
        std::partial_sort(begin, begin + take, d.ranked.end(), [](const auto& a, const auto& b) {
            return a.first > b.first || (a.first == b.first && a.second > b.second);
        });
        std::int64_t filled = 0;
        for (auto it = d.ranked.begin(); it != begin + take; ++it)
            expanded[filled++] = it->second;
        std::sort(expanded, expanded + filled);
    }
}

/// visit(level, node) for every node that stands for its tokens: the candidates that `selection`
/// does not expand, from the top level down.
template <class Visit>
void for_each_summary(const std::int32_t* selection, std::int64_t t, const TreeRule& rule,
                      std::vector<std::int32_t>& nodes, const Visit& visit) {
    const std::int64_t slots = tree_slots(rule), far = far_leaves(rule, t);
    const std::int64_t top = top_level(far, rule.fanout);
    for (std::int64_t l = top; l >= 0; --l) {
        const std::int32_t* const expanded = selection + l * slots;
        candidates(nodes, expanded + slots, slots, l == top, far, l, rule.fanout);
        const std::int32_t* next = expanded;  // both ascend
        for (const std::int32_t node : nodes) {
            if (next < expanded + slots && *next == node)
                ++next;
            else
                visit(l, node);
        }
    }
}

}  // namespace stoa::cpu
