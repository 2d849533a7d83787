// A chunk of queries in four passes: the descent of each through the tree; the tokens of selected
// leaves, leaf by leaf, so that a leaf comes to the cache once for all its queries; the softmax
// with the local range and the summaries; the values of selected leaves, leaf by leaf again.
#include "kernels/cpu/tree_attend.h"

#include <limits>

#include "kernels/cpu/fast_exp.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/node_lists.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/tree_select.h"

namespace stoa::cpu {
namespace {

constexpr std::int64_t kBatch = 32;    // rows that meet a leaf at a time
constexpr std::int64_t kNearRows = 8;  // rows that pass their local range at a time

/// Working memory of a chunk. The logits of a query and head, later its weights: of its
/// candidates, level by level from the top; of its leaves, slot by slot, in the lanes of their
/// packs; of its local range.
template <class W>
struct Work {
    const LaneKernels<W>& kernels;
    std::int64_t slots, max_blocks, max_nodes, leaf_packs;
    SiblingBlock* blocks;                         // (count, max_blocks)
    std::int32_t *n_blocks, *n_nodes, *n_leaves;  // (count)
    W *node_z, *leaf_z;  // (count, group, max_nodes), (count, group, slots, leaf lanes)
    std::int64_t local_lanes;
    W* local_z;  // (kNearRows, local_lanes)
    W* decoded;  // a leaf's packs or values, where they are coded
    SelectedLeaves leaves;
    std::int64_t leaf_lanes() const { return leaf_packs * kLanes; }
};
struct BlocksTag;
struct CountsTag;
struct NodeTag;
struct LeafTag;
struct LocalTag;
struct DecodedTag;
struct EntryTag;

/// Packs that a leaf can touch.
std::int64_t packs_of_leaf(std::int64_t leaf) {
    if (leaf % kLanes == 0) return leaf / kLanes;
    return kLanes % leaf == 0 ? 1 : (leaf + kLanes - 2) / kLanes + 1;
}

template <class W>
Work<W> place_work(const KeyTree<W>& tree, const TreeQueries<W>& b) {
    const TreeRule& rule = tree.rule;
    const std::int64_t far = far_leaves(rule, b.begin + b.count - 1);
    const std::int64_t levels = tree_top(far, rule.fanout).level + 1;
    const std::int64_t slots = tree_slots(rule), max_blocks = levels * (slots + 1),
                       max_nodes = max_blocks * rule.fanout, leaf_packs = packs_of_leaf(rule.leaf);
    const std::int64_t heads = b.count * b.group;
    auto* const counts = scratch<CountsTag, std::int32_t>(3 * b.count);
    const std::int64_t local_lanes = round_up(rule.window + rule.leaf + kLanes, kLanes) + kLanes;
    return {lane_kernels<W>(current_isa()),
            slots,
            max_blocks,
            max_nodes,
            leaf_packs,
            scratch<BlocksTag, SiblingBlock>(b.count * max_blocks),
            counts,
            counts + b.count,
            counts + 2 * b.count,
            scratch<NodeTag, W>(heads * max_nodes),
            scratch<LeafTag, W>(heads * slots * leaf_packs * kLanes),
            local_lanes,
            scratch<LocalTag, W>(kNearRows * local_lanes),
            scratch<DecodedTag, W>(
                tree.coded ? std::max(leaf_packs * kLanes * tree.dim, rule.leaf * tree.width) : 0),
            {b.selection, b.count, b.levels * slots, slots, 0,
             scratch<EntryTag, std::int32_t>(b.count * slots)}};
}

/// Calls fn(n, rows) for batches of the (query, head) rows of entries [first, last): row and leaf
/// logits of each.
template <class W, class Fn>
void in_batches(const Work<W>& w, std::int64_t group, std::int64_t first, std::int64_t last,
                const Fn& fn) {
    std::int64_t row[kBatch];
    W* z[kBatch];
    std::int64_t n = 0;
    for (std::int64_t i = first; i < last; ++i)
        for (std::int64_t g = 0; g < group; ++g) {
            const std::int32_t entry = w.leaves.entry[i];
            row[n] = entry / w.slots * group + g;
            z[n] = w.leaf_z + (row[n] * w.slots + entry % w.slots) * w.leaf_lanes();
            ++n;
            if (n == kBatch) fn(n, row, z), n = 0;
        }
    if (n > 0) fn(n, row, z);
}

template <class W>
void leaf_logits(const KeyTree<W>& tree, const TreeQueries<W>& b, const Work<W>& w) {
    for_each_leaf(w.leaves, [&](std::int64_t leaf, std::int64_t first, std::int64_t last) {
        const std::int64_t begin = leaf * tree.rule.leaf, end = begin + tree.rule.leaf,
                           first_pack = begin / kLanes, token = first_pack * kLanes,
                           lanes = round_up(end, kLanes) - token;
        const W* const gate = tree.gate + token;
        if (tree.coded) decode_packs(w.decoded, tree, first_pack, lanes / kLanes);
        const W* const keys = tree.coded ? w.decoded : tree.pack(first_pack);
        in_batches(w, b.group, first, last, [&](std::int64_t n, const std::int64_t* row, W** z) {
            const W* q[kBatch];
            for (std::int64_t i = 0; i < n; ++i)
                q[i] = b.q + row[i] * tree.width;
            w.kernels.tile_dots(z, q, n, tree.dim, keys, lanes / kLanes);
            for (std::int64_t i = 0; i < n; ++i) {
                W* const logit = z[i];
                for (std::int64_t l = 0; l < lanes; ++l)
                    logit[l] = b.scale * logit[l] + gate[l];
                // The packs hold tokens of other leaves too.
                std::fill_n(logit, begin - token, -std::numeric_limits<W>::infinity());
                std::fill_n(logit + end - token, w.leaf_lanes() - (end - token),
                            -std::numeric_limits<W>::infinity());
            }
        });
    });
}

template <class W>
void leaf_values(const KeyTree<W>& tree, const TreeQueries<W>& b, const Work<W>& w) {
    for_each_leaf(w.leaves, [&](std::int64_t leaf, std::int64_t first, std::int64_t last) {
        const std::int64_t begin = leaf * tree.rule.leaf;
        if (tree.coded) decode_values(w.decoded, tree, begin, tree.rule.leaf);
        const W* const values = tree.coded ? w.decoded : tree.value(begin);
        in_batches(w, b.group, first, last, [&](std::int64_t n, const std::int64_t* row, W** z) {
            W* out[kBatch];
            for (std::int64_t i = 0; i < n; ++i) {
                out[i] = b.out + row[i] * tree.width;
                z[i] += begin % kLanes;
            }
            w.kernels.add_rows(out, z, n, values, tree.rule.leaf, tree.width);
        });
    });
}

/// Products with the tokens from `token` on become logits of the local range, which begins at
/// `first`.
template <class W>
void gate_local(W* z, std::int64_t lanes, const KeyTree<W>& tree, std::int64_t token,
                std::int64_t first, std::int64_t t, W scale) {
    const W inverse = W{1} / static_cast<W>(tree.rule.window);
    const W* const gate = tree.gate + token;
    const auto age = static_cast<std::int32_t>(t - token);
    for (std::int32_t l = 0; l < lanes; ++l) {
        const W x = static_cast<W>(age - l) * inverse, ramp = x < W{1} ? x : W{1};
        z[l] = scale * z[l] + ramp * gate[l];
    }
    std::fill_n(z, first - token, -std::numeric_limits<W>::infinity());
    std::fill(z + age + 1, z + lanes, -std::numeric_limits<W>::infinity());
}

/// Logits of a row become weights of their sum, whose inverse it returns.
template <class W>
W softmax_row(const TreeQueries<W>& b, const Work<W>& w, std::int64_t row, W* local,
              std::int64_t near) {
    const std::int64_t r = row / b.group, nodes = w.n_nodes[r],
                       far = w.n_leaves[r] * w.leaf_lanes();
    W* const node = w.node_z + row * w.max_nodes;
    W* const leaf = w.leaf_z + row * w.slots * w.leaf_lanes();
    // A query always sees itself, so the maximum is finite.
    const W sink = b.sink[row % b.group];
    W max = lane_max<W>(near, sink, [&](std::int64_t j) { return local[j]; });
    max = lane_max<W>(nodes, max, [&](std::int64_t j) { return node[j]; });
    max = lane_max<W>(far, max, [&](std::int64_t j) { return leaf[j]; });
    W sum = std::exp(sink - max);
    const auto weights = [&](W* z, std::int64_t n) {
        sum += lane_sum<W>(n, [&](std::int64_t j) { return z[j] = fused_exp(z[j] - max); });
    };
    weights(local, near);
    weights(node, nodes);
    weights(leaf, far);
    b.lse[row] = max + std::log(sum);
    return W{1} / sum;
}

/// The softmax of n (query, head) rows whose local ranges begin at one token; their outputs get the
/// values of local ranges and summaries. Fills inverse (n) with 1 / sum.
template <class W>
void near_values(const KeyTree<W>& tree, const TreeQueries<W>& b, const Work<W>& w,
                 std::int64_t row, std::int64_t n, RowRun<W>* runs, W* inverse) {
    const std::int64_t t = b.begin + row / b.group, last = b.begin + (row + n - 1) / b.group,
                       first = far_leaves(tree.rule, t) * tree.rule.leaf,
                       first_pack = first / kLanes, token = first_pack * kLanes,
                       shared = t + 1 - first;
    const W *q[kNearRows], *weights[kNearRows];
    W *z[kNearRows], *out[kNearRows];
    for (std::int64_t i = 0; i < n; ++i) {
        q[i] = b.q + (row + i) * tree.width;
        z[i] = w.local_z + i * w.local_lanes;
        weights[i] = z[i] + first - token;
        out[i] = b.out + (row + i) * tree.width;
        std::fill_n(out[i], tree.width, W{0});
    }
    w.kernels.tile_dots(z, q, n, tree.dim, tree.pack(first_pack), last / kLanes + 1 - first_pack);
    for (std::int64_t i = 0; i < n; ++i) {
        const std::int64_t of = b.begin + (row + i) / b.group,
                           lanes = (of / kLanes + 1 - first_pack) * kLanes;
        gate_local(z[i], lanes, tree, token, first, of, b.scale);
        inverse[i] = softmax_row(b, w, row + i, z[i], lanes);
    }
    // The first query's range together, then what each sees beyond it, then its summaries.
    w.kernels.add_rows(out, weights, n, tree.value(first), shared, tree.width);
    for (std::int64_t i = 0; i < n; ++i) {
        const std::int64_t r = (row + i) / b.group;
        const W* node = w.node_z + (row + i) * w.max_nodes;
        std::int64_t n_runs = 0;
        runs[n_runs++] = {tree.value(t + 1), weights[i] + shared, b.begin + r - t};
        for (std::int64_t j = 0; j < w.n_blocks[r]; ++j) {
            const SiblingBlock& block = w.blocks[r * w.max_blocks + j];
            const TreeLevel<W>& level = tree.levels[static_cast<std::size_t>(block.level)];
            runs[n_runs++] = {level.mean_v + block.block * tree.rule.fanout * tree.width, node,
                              block.count};
            node += block.count;
        }
        w.kernels.add_runs(out[i], runs, n_runs, tree.width);
    }
}

template <class W>
Descent<W> place_descent(const KeyTree<W>& tree, std::int64_t group) {
    struct OffsetsTag;
    struct BlockTag;
    struct DotsTag;
    struct BoundTag;
    struct BestTag;
    struct RoomTag;
    const std::int64_t blocks = tree_slots(tree.rule) + 1, nodes = blocks * tree.rule.fanout;
    W* const bound = scratch<BoundTag, W>(2 * nodes);
    return {lane_kernels<W>(current_isa()),
            scratch<OffsetsTag, std::int32_t>(group * tree.dim),
            scratch<BlockTag, const W*>(blocks * tree.row_lanes / kLanes),
            scratch<DotsTag, W>(group * blocks * tree.row_lanes),
            bound,
            bound + nodes,
            scratch<BestTag, std::int32_t>(nodes + 1),
            scratch<RoomTag, std::pair<W, std::int32_t>>(nodes)};
}

}  // namespace

template <class W>
void tree_attend(const KeyTree<W>& tree, const TreeQueries<W>& b) {
    struct RunsTag;
    struct InverseTag;
    struct LeafBeginTag;
    Work<W> w = place_work(tree, b);
    const Descent<W> d = place_descent(tree, b.group);
    RowRun<W>* const runs = scratch<RunsTag, RowRun<W>>(w.max_blocks + 1);
    W* const inverse = scratch<InverseTag, W>(b.count * b.group);
    vectorised([&] {
        for (std::int64_t r = 0; r < b.count; ++r) {
            SiblingBlock* const blocks = w.blocks + r * w.max_blocks;
            w.n_blocks[r] = static_cast<std::int32_t>(
                descend(tree, b, r, d, blocks, w.node_z + r * b.group * w.max_nodes, w.max_nodes));
            w.n_nodes[r] = w.n_leaves[r] = 0;
            for (std::int64_t i = 0; i < w.n_blocks[r]; ++i)
                w.n_nodes[r] += blocks[i].count;
            while (w.n_leaves[r] < w.slots &&
                   b.selection[r * b.levels * w.slots + w.n_leaves[r]] >= 0)
                ++w.n_leaves[r];
        }
    });
    const std::int64_t far = far_leaves(tree.rule, b.begin + b.count - 1);
    order_leaves(w.leaves, scratch<LeafBeginTag, std::int64_t>(far + 1), far);
    vectorised([&] { leaf_logits(tree, b, w); });
    vectorised([&] {
        const std::int64_t rows = b.count * b.group, leaf = tree.rule.leaf;
        for (std::int64_t row = 0, end = 0; row < rows; row = end) {
            const std::int64_t t = b.begin + row / b.group, next_leaf = (t / leaf + 1) * leaf;
            end = std::min({rows, row + kNearRows, (next_leaf - b.begin) * b.group});
            near_values(tree, b, w, row, end - row, runs, inverse + row);
        }
    });
    vectorised([&] {
        leaf_values(tree, b, w);
        for (std::int64_t row = 0; row < b.count * b.group; ++row)
            for (std::int64_t c = 0; c < tree.width; ++c)
                b.out[row * tree.width + c] *= inverse[row];
    });
}
template void tree_attend(const KeyTree<float>&, const TreeQueries<float>&);
template void tree_attend(const KeyTree<double>&, const TreeQueries<double>&);

std::int64_t tree_chunk(const TreeRule& rule, std::int64_t len, std::int64_t group,
                        std::int64_t dim) {
    const std::int64_t levels = tree_levels(rule, len), slots = tree_slots(rule);
    const std::int64_t values =
        levels * (slots + 1) * rule.fanout + slots * packs_of_leaf(rule.leaf) * kLanes + 2 * dim;
    constexpr std::int64_t kValues = 1 << 21, kLeast = 64, kMost = 4096;
    // A leaf is met some 8 times where all are selected alike.
    const std::int64_t wanted = std::min(kMost, len / rule.leaf * 8 / slots);
    return std::max(kLeast, std::min(wanted, kValues / (values * group)));
}

}  // namespace stoa::cpu
