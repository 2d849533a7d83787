// d_q of a chunk of queries: of each its local range and summaries, then, leaf by leaf as in the
// forward, the tokens of selected leaves.
#include <limits>

#include "kernels/cpu/fast_exp.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/tree_backward.h"

namespace stoa::cpu {
namespace {

constexpr std::int64_t kBatch = 32;

/// Rows of the chunk: query and d_out, (count, group, width), and working memory of one row.
template <class W>
struct Chunk {
    const LaneKernels<W>& kernels;
    std::int64_t begin, count;
    const W *q, *d_out;
    W* d_q;
    std::int32_t *pack_offset, *block_offset;  // (dim)
    SiblingBlock* blocks;                      // of one query
    const W** part;
    W *z, *d_z, *bias;
    RowRun<W>* runs;
};

/// z[l] = p (d_p - delta) with the scores in z and d_p in d_z.
template <class W>
void score_gradients(W* z, const W* d_p, const W* bias, std::int64_t n, W scale, W lse, W delta) {
    for (std::int64_t l = 0; l < n; ++l)
        z[l] = fused_exp(scale * z[l] + bias[l] - lse) * (d_p[l] - delta);
}

/// Local range: d_z in the lanes of its packs.
template <class W>
RowRun<W> local_part(const TreeBackward<W>& b, const Chunk<W>& c, std::int64_t t, std::int64_t row,
                     W lse, W delta) {
    const KeyTree<W>& tree = b.tree;
    const std::int64_t first = far_leaves(tree.rule, t) * tree.rule.leaf,
                       first_pack = first / kLanes, packs = t / kLanes + 1 - first_pack;
    for (std::int64_t i = 0; i < packs; ++i)
        c.part[i] = tree.pack(first_pack + i);
    c.kernels.block_dots(c.z, c.q + row * tree.width, c.pack_offset, tree.dim, c.part, packs);
    for (std::int64_t i = 0; i < packs; ++i)
        c.part[i] = b.pack_v(first_pack + i);
    c.kernels.block_dots(c.d_z, c.d_out + row * tree.width, c.pack_offset, tree.dim, c.part, packs);
    const W inverse = W{1} / static_cast<W>(tree.rule.window);
    const auto age = static_cast<std::int32_t>(t - first_pack * kLanes);
    const W* const gate = tree.gate + first_pack * kLanes;
    for (std::int32_t l = 0; l < packs * kLanes; ++l) {
        const W x = static_cast<W>(age - l) * inverse;
        c.bias[l] = (x < W{1} ? x : W{1}) * gate[l];
    }
    score_gradients(c.z, c.d_z, c.bias, packs * kLanes, b.scale, lse, delta);
    return {b.k + first * tree.width, c.z + first % kLanes, t + 1 - first};
}

/// Lists the blocks of query t.
template <class W>
std::int64_t list_blocks(const TreeBackward<W>& b, const Chunk<W>& c, std::int64_t t) {
    const std::int64_t far = far_leaves(b.tree.rule, t), f = b.tree.rule.fanout;
    const TreeTop top = tree_top(far, f);
    std::int64_t n = 0;
    for (std::int64_t l = top.level, span = top.span; l >= 0; --l, span /= f)
        n += list_candidates(c.blocks + n, l == top.level ? nullptr : b.selected(t, l + 1), b.slots,
                             l, span, far, f);
    return n;
}

/// Summaries: runs of d_z per block, in z.
template <class W>
void block_part(const TreeBackward<W>& b, const Chunk<W>& c, std::int64_t t, std::int64_t row,
                std::int64_t n, W* z, W* d_z, RowRun<W>* runs, W lse, W delta) {
    const KeyTree<W>& tree = b.tree;
    const std::int64_t lanes = b.block_lanes, units = lanes / kBlockLanes, f = tree.rule.fanout;
    const auto products = [&](W* out, const W* x, W* LevelGradient<W>::*of) {
        for (std::int64_t i = 0; i < n; ++i)
            for (std::int64_t u = 0; u < units; ++u)
                c.part[i * units + u] = b.level[static_cast<std::size_t>(c.blocks[i].level)].*of +
                                        c.blocks[i].block * tree.dim * lanes + u * kBlockLanes;
        c.kernels.half_block_dots(out, x, c.block_offset, tree.dim, c.part, n * units);
    };
    products(z, c.q + row * tree.width, &LevelGradient<W>::k);
    products(d_z, c.d_out + row * tree.width, &LevelGradient<W>::v);
    for (std::int64_t i = 0; i < n; ++i) {
        const TreeLevel<W>& level = tree.levels[static_cast<std::size_t>(c.blocks[i].level)];
        W* const bias = c.bias + i * lanes;
        const W* const log_mass = level.log_mass + c.blocks[i].block * f;
        for_children(f, [&](int j) { bias[j] = log_mass[j]; });
    }
    score_gradients(z, d_z, c.bias, n * lanes, b.scale, lse, delta);
    for (std::int64_t i = 0; i < n; ++i) {
        const SiblingBlock& block = c.blocks[i];
        const std::int32_t* const expanded = b.selected(t, block.level);
        for (std::int64_t e = 0; e < b.slots && expanded[e] >= 0; ++e) {
            const std::int64_t j = expanded[e] - block.block * f;
            if (j >= 0 && j < f) z[i * lanes + j] = W{0};
        }
        runs[i] = {
            b.level[static_cast<std::size_t>(block.level)].mean_k + block.block * f * tree.width,
            z + i * lanes, block.count};
    }
}

template <class W>
void leaf_part(const TreeBackward<W>& b, const Chunk<W>& c, const SelectedLeaves& leaves, W* z,
               W* d_z, std::int64_t lanes) {
    const KeyTree<W>& tree = b.tree;
    const auto batch = [&](std::int64_t begin, std::int64_t n, const std::int64_t* row) {
        const std::int64_t end = begin + tree.rule.leaf, first_pack = begin / kLanes,
                           packs = (end - 1) / kLanes + 1 - first_pack;
        const W *q[kBatch], *d_out[kBatch];
        W *s[kBatch], *d_p[kBatch], *d_q[kBatch];
        for (std::int64_t i = 0; i < n; ++i) {
            q[i] = c.q + row[i] * tree.width;
            d_out[i] = c.d_out + row[i] * tree.width;
            d_q[i] = c.d_q + row[i] * tree.width;
        }
        for (std::int64_t i = 0; i < n; ++i) {
            s[i] = z + i * lanes;
            d_p[i] = d_z + i * lanes;
        }
        c.kernels.tile_dots(s, q, n, tree.dim, tree.pack(first_pack), packs);
        c.kernels.tile_dots(d_p, d_out, n, tree.dim, b.pack_v(first_pack), packs);
        for (std::int64_t i = 0; i < n; ++i) {
            const std::int64_t at = c.begin * b.group + row[i];
            score_gradients(s[i], d_p[i], tree.gate + first_pack * kLanes, packs * kLanes, b.scale,
                            b.lse[at], b.delta[at]);
        }
        for (std::int64_t i = 0; i < n; ++i)
            s[i] += begin % kLanes;
        c.kernels.add_rows(d_q, s, n, b.k + begin * tree.width, tree.rule.leaf, tree.width);
    };
    for_each_leaf(leaves, [&](std::int64_t leaf, std::int64_t first, std::int64_t last) {
        std::int64_t row[kBatch], n = 0;
        for (std::int64_t i = first; i < last; ++i)
            for (std::int64_t g = 0; g < b.group; ++g) {
                row[n++] = leaves.entry[i] / leaves.slots * b.group + g;
                if (n == kBatch) batch(leaf * tree.rule.leaf, n, row), n = 0;
            }
        if (n > 0) batch(leaf * tree.rule.leaf, n, row);
    });
}

}  // namespace

template <class W>
void query_gradients(const TreeBackward<W>& b, std::int64_t begin, std::int64_t count, W* d_q) {
    struct QTag;
    struct DOutTag;
    struct OffsetTag;
    struct BlocksTag;
    struct PartTag;
    struct LanesTag;
    struct RunsTag;
    struct LeafTag;
    struct LeafBeginTag;
    struct EntryTag;
    const KeyTree<W>& tree = b.tree;
    const TreeRule& rule = tree.rule;
    const std::int64_t rows = count * b.group, far = far_leaves(rule, begin + count - 1);
    const std::int64_t most_blocks = (tree_top(far, rule.fanout).level + 1) * (b.slots + 1),
                       near_lanes = round_up(rule.window + rule.leaf + kLanes, kLanes) + kLanes,
                       block_lanes = most_blocks * b.block_lanes, lanes = near_lanes + block_lanes,
                       leaf_lanes = round_up(rule.leaf + kLanes, kLanes);
    W* const q = scratch<QTag, W>(rows * tree.width);
    W* const d_out = scratch<DOutTag, W>(rows * tree.width);
    auto* const offset = scratch<OffsetTag, std::int32_t>(2 * tree.dim);
    W* const z = scratch<LanesTag, W>(3 * lanes);
    W* const leaf_z = scratch<LeafTag, W>(2 * kBatch * leaf_lanes);
    const Chunk<W> c{
        lane_kernels<W>(current_isa()),
        begin,
        count,
        q,
        d_out,
        d_q,
        offset,
        offset + tree.dim,
        scratch<BlocksTag, SiblingBlock>(most_blocks),
        scratch<PartTag, const W*>(std::max(near_lanes / kLanes, block_lanes / kBlockLanes)),
        z,
        z + lanes,
        z + 2 * lanes,
        scratch<RunsTag, RowRun<W>>(most_blocks + 1)};
    for (std::int64_t i = 0; i < tree.dim; ++i) {
        c.pack_offset[i] = static_cast<std::int32_t>(i * kLanes);
        c.block_offset[i] = static_cast<std::int32_t>(i * b.block_lanes);
    }
    std::fill_n(c.bias, lanes, W{0});
    std::fill_n(d_q, rows * tree.width, W{0});
    SelectedLeaves leaves{b.selected(begin, 0),
                          count,
                          b.levels * b.slots,
                          b.slots,
                          0,
                          scratch<EntryTag, std::int32_t>(count * b.slots)};
    order_leaves(leaves, scratch<LeafBeginTag, std::int64_t>(far + 1), far);
    vectorised([&] {
        for (std::int64_t row = 0; row < rows; ++row) {
            const std::int64_t t = begin + row / b.group, g = row % b.group;
            load_row(q + row * tree.width, b.q, t, g, tree.dim, tree.width);
            load_row(d_out + row * tree.width, b.d_out, t, g, tree.dim, tree.width);
        }
        for (std::int64_t r = 0; r < count; ++r) {
            const std::int64_t n = list_blocks(b, c, begin + r);
            for (std::int64_t g = 0; g < b.group; ++g) {
                const std::int64_t row = r * b.group + g, at = begin * b.group + row;
                c.runs[0] = local_part(b, c, begin + r, row, b.lse[at], b.delta[at]);
                block_part(b, c, begin + r, row, n, c.z + near_lanes, c.d_z + near_lanes,
                           c.runs + 1, b.lse[at], b.delta[at]);
                c.kernels.add_runs(d_q + row * tree.width, c.runs, n + 1, tree.width);
            }
        }
        leaf_part(b, c, leaves, leaf_z, leaf_z + kBatch * leaf_lanes, leaf_lanes);
        for (std::int64_t i = 0; i < rows * tree.width; ++i)
            d_q[i] *= b.scale;
    });
}
template void query_gradients(const TreeBackward<float>&, std::int64_t, std::int64_t, float*);
template void query_gradients(const TreeBackward<double>&, std::int64_t, std::int64_t, double*);

}  // namespace stoa::cpu
