#pragma once
// The descent of one query through a key tree.
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/cpu/fast_exp.h"
#include "kernels/cpu/key_tree.h"
#include "kernels/cpu/tree_attend.h"

namespace stoa::cpu {

/// Working memory of a descent, for candidates of one level.
template <class W>
struct Descent {
    const LaneKernels<W>& kernels;
    std::int32_t* offset;     // (group, dim): a channel's largest or least, by the sign of q
    const W** block;          // (blocks, row_lanes / kLanes)
    W *dots, *bound, *score;  // (group, blocks, row_lanes), (nodes), (nodes)
    std::int32_t* best;       // (nodes + 1)
    std::pair<W, std::int32_t>* room;  // (nodes)
};

/// A number that at least `take` of n scores reach, and that few more do: the take-th largest of
/// the lanes' maxima.
template <class W>
W score_to_reach(const W* score, std::int64_t n, std::int64_t take) {
    constexpr W kLeast = -std::numeric_limits<W>::infinity();
    if (take > kLanes) return kLeast;
    W most[kLanes];
    for_lanes<kLanes>([&](int l) { most[l] = kLeast; });
    std::int64_t j = 0;
    const auto rise = [&](const W* x) {
        for_lanes<kLanes>([&](int l) { most[l] = x[l] > most[l] ? x[l] : most[l]; });
    };
    for (; j + kLanes <= n; j += kLanes)
        rise(score + j);
    if (j < n) {
        W rest[kLanes];
        for_lanes<kLanes>([&](int l) { rest[l] = kLeast; });
        std::copy(score + j, score + n, rest);
        rise(rest);
    }
    W larger[kLanes] = {};
    for (int i = 0; i < kLanes; ++i) {
        const W x = most[i];
        for_lanes<kLanes>([&](int l) { larger[l] += x > most[l] ? W{1} : W{0}; });
    }
    const W wanted = static_cast<W>(take);
    return -lane_max<W>(kLanes, kLeast,
                        [&](std::int64_t l) { return larger[l] < wanted ? -most[l] : kLeast; });
}

/// Positions of the `take` largest of n scores, the later one among equals, ascending. room: (n).
template <class W>
std::int64_t best_positions(std::int32_t* best, std::pair<W, std::int32_t>* room, const W* score,
                            std::int64_t n, std::int64_t take) {
    take = std::min(take, n);
    const W reach = score_to_reach(score, n, take);
    std::int64_t left = 0;
    for (std::int64_t j = 0; j < n; ++j) {
        best[left] = static_cast<std::int32_t>(j);
        left += score[j] >= reach ? 1 : 0;
    }
    constexpr std::int64_t kFewMore = 16;
    if (left - take > kFewMore) {
        for (std::int64_t i = 0; i < left; ++i)
            room[i] = {score[best[i]], best[i]};
        std::nth_element(room, room + take, room + left, std::greater<>());
        for (std::int64_t i = 0; i < take; ++i)
            best[i] = room[i].second;
        std::sort(best, best + take);
        return take;
    }
    for (; left > take; --left) {  // the least goes, the first among equals
        std::int64_t least = 0;
        W x = score[best[0]];
        for (std::int64_t i = 1; i < left; ++i) {
            const W y = score[best[i]];
            least = y < x ? i : least;
            x = y < x ? y : x;
        }
        for (std::int64_t i = least + 1; i < left; ++i)
            best[i - 1] = best[i];
    }
    return take;
}

/// score[j] of n candidates from their bounds, the query heads' together: with one head the bound
/// itself, else the sum over the heads of the softmax of theirs. A NaN bound counts as -infinity.
template <class W>
void rank_candidates(W* score, W* bound, const W* dots, const KeyTree<W>& tree,
                     std::int64_t n_blocks, std::int64_t n, std::int64_t group, W scale) {
    for (std::int64_t g = 0; g < group; ++g) {
        W* const to = group == 1 ? score : bound;
        for (std::int64_t i = 0; i < n_blocks; ++i, dots += tree.row_lanes) {
            W* const at = to + i * tree.rule.fanout;
            for_children(tree.rule.fanout, [&](int j) {
                const W x = scale * dots[j];
                at[j] = x == x ? x : -std::numeric_limits<W>::infinity();
            });
        }
        if (group == 1) return;
        const W max = lane_max<W>(n, std::numeric_limits<W>::lowest(),
                                  [&](std::int64_t j) { return bound[j]; });
        for (std::int64_t j = 0; j < n; ++j)
            bound[j] = fast_exp(bound[j] - max);
        const W inverse = W{1} / lane_sum<W>(n, [&](std::int64_t j) { return bound[j]; });
        for (std::int64_t j = 0; j < n; ++j) {
            const W share = bound[j] * inverse;
            score[j] = (g == 0 ? W{0} : score[j]) + (share == share ? share : W{0});
        }
    }
}

/// Selects for query r: fills its selection, its blocks of candidates from the top level down, and
/// the logits of those that stand for their tokens (-infinity: it is expanded). Returns how many
/// blocks. node_z is `z_ld` apart for the heads.
template <class W>
std::int64_t descend(const KeyTree<W>& tree, const TreeQueries<W>& b, std::int64_t r,
                     const Descent<W>& d, SiblingBlock* blocks, W* node_z, std::int64_t z_ld) {
    const TreeRule& rule = tree.rule;
    const std::int64_t slots = tree_slots(rule), far = far_leaves(rule, b.begin + r),
                       f = rule.fanout, units = tree.row_lanes / kLanes;
    std::int32_t* const selection = b.selection + r * b.levels * slots;
    std::fill_n(selection, b.levels * slots, std::int32_t{-1});
    for (std::int64_t g = 0; g < b.group; ++g) {
        const W* const q = b.q + (r * b.group + g) * tree.width;
        for (std::int64_t c = 0; c < tree.dim; ++c)
            d.offset[g * tree.dim + c] =
                static_cast<std::int32_t>((2 * c + (q[c] < 0 ? 1 : 0)) * tree.row_lanes);
    }
    const SiblingBlock* const first = blocks;
    TreeTop top = tree_top(far, f);
    for (std::int64_t l = top.level, span = top.span; l >= 0; --l, span /= f) {
        const TreeLevel<W>& level = tree.levels[static_cast<std::size_t>(l)];
        std::int32_t* const expanded = selection + l * slots;
        const std::int64_t n_blocks = list_candidates(
            blocks, l == top.level ? nullptr : expanded + slots, slots, l, span, far, f);
        std::int64_t n = 0;
        for (std::int64_t i = 0; i < n_blocks; ++i) {
            n += blocks[i].count;
            for (std::int64_t u = 0; u < units; ++u)
                d.block[i * units + u] =
                    level.rows + blocks[i].block * tree.block_values() + u * kLanes;
        }
        // The first leaf, and so every node above it, is read whatever its rank.
        const std::int64_t forced = rule.sinks > 0 && n > 0 && blocks[0].block == 0 ? 1 : 0;
        const auto expand = [&](std::int64_t slot, std::int64_t position) {
            const auto at = static_cast<std::uint32_t>(position),
                       i = at / static_cast<std::uint32_t>(f);
            expanded[slot] = static_cast<std::int32_t>(blocks[i].block * f + at -
                                                       i * static_cast<std::uint32_t>(f));
            for (std::int64_t g = 0; g < b.group; ++g)
                node_z[g * z_ld + position] = -std::numeric_limits<W>::infinity();
        };
        if (n <= rule.beam + forced) {  // all are expanded, unseen
            for (std::int64_t i = 0; i < n; ++i)
                expand(i, i);
            node_z += n;
            blocks += n_blocks;
            continue;
        }
        for (std::int64_t g = 0; g < b.group; ++g) {
            W* const dots = d.dots + g * n_blocks * tree.row_lanes;
            d.kernels.block_dots(dots, b.q + (r * b.group + g) * tree.width,
                                 d.offset + g * tree.dim, tree.dim, d.block, n_blocks * units);
            for (std::int64_t i = 0; i < n_blocks; ++i) {
                // Of an edge block all children: those behind its count are not looked at.
                W* const z = node_z + g * z_ld + i * f;
                const W *const mean = dots + i * tree.row_lanes + f, *const log_mass =
                                                                         level.log_mass +
                                                                         blocks[i].block * f;
                for_children(f, [&](int j) { z[j] = b.scale * mean[j] + log_mass[j]; });
            }
        }
        rank_candidates(d.score, d.bound, d.dots, tree, n_blocks, n, b.group, b.scale);
        const std::int64_t taken =
            best_positions(d.best, d.room, d.score + forced, n - forced, rule.beam);
        if (forced > 0) expand(0, 0);
        for (std::int64_t i = 0; i < taken; ++i)
            expand(forced + i, d.best[i] + forced);
        node_z += n;
        blocks += n_blocks;
    }
    return blocks - first;
}

}  // namespace stoa::cpu
