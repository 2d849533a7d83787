// Gradients towards keys: whoever owns a sibling block or a range of tokens walks the queries that
// have read it, in order, some of them at a time.
#include <cmath>

#include "kernels/cpu/fast_exp.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/tree_backward.h"

namespace stoa::cpu {
namespace {

constexpr std::int64_t kBatch = 32;

/// Some (query, head) rows and, in lanes, what they give a few keys: weights p and d_z.
template <class W>
struct Batch {
    const LaneKernels<W>& kernels;
    std::int64_t n = 0;
    std::int64_t t[kBatch];
    W lse[kBatch], delta[kBatch];
    const W *q_row[kBatch], *d_out_row[kBatch];
    W *p_row[kBatch], *d_z_row[kBatch];
    W *q, *d_out, *p, *d_z;  // (kBatch, width) twice: room; (kBatch, lanes) twice
    std::int64_t lanes;
};
template <class W>
Batch<W> place_batch(const TreeBackward<W>& b, std::int64_t lanes) {
    struct RowsTag;
    struct LanesTag;
    Batch<W> batch{lane_kernels<W>(current_isa())};
    batch.q = scratch<RowsTag, W>(2 * kBatch * b.tree.width);
    batch.d_out = batch.q + kBatch * b.tree.width;
    batch.p = scratch<LanesTag, W>(2 * kBatch * lanes);
    batch.d_z = batch.p + kBatch * lanes;
    batch.lanes = lanes;
    return batch;
}

/// Listed queries lie anywhere: what one of them needs is asked for this many before its turn.
constexpr std::int64_t kAhead = 6;
template <class W>
void prefetch_query(const TreeBackward<W>& b, std::int64_t t, std::int64_t level) {
    const auto lines = [](const std::byte* first, std::int64_t bytes) {
        for (std::int64_t i = 0; i < bytes; i += 64)
            __builtin_prefetch(first + i);
    };
    for (const HeadRows* rows : {&b.q, &b.d_out}) {
        const std::int64_t size = size_of(rows->dtype);
        for (std::int64_t g = 0; g < b.group; ++g)
            lines(rows->data + (t * rows->token_ld + g * rows->head_ld) * size, b.tree.dim * size);
    }
    __builtin_prefetch(b.lse + t * b.group);
    __builtin_prefetch(b.delta + t * b.group);
    __builtin_prefetch(b.selected(t, level));
    __builtin_prefetch(b.selected(t, level) + b.slots - 1);
}

/// A row in W and whole lanes: where it lies, if it is that there, else in `room`.
template <class W>
const W* row_of(const TreeBackward<W>& b, const HeadRows& rows, std::int64_t t, std::int64_t g,
                W* room) {
    if (rows.dtype == dtype_of<W>() && b.tree.dim == b.tree.width)
        return reinterpret_cast<const W*>(rows.data) + t * rows.token_ld + g * rows.head_ld;
    load_row(room, rows, t, g, b.tree.dim, b.tree.width);
    return room;
}

/// Gives fn the rows of queries [begin, end), then those of a list, batch by batch.
template <class W, class Fn>
void in_batches(const TreeBackward<W>& b, Batch<W>& batch, std::int64_t begin, std::int64_t end,
                const std::int32_t* list, std::int64_t listed, std::int64_t level, const Fn& fn) {
    batch.n = 0;
    const std::int64_t range = std::max<std::int64_t>(0, end - begin);
    for (std::int64_t i = 0; i < range + listed; ++i) {
        const std::int64_t t = i < range ? begin + i : list[i - range];
        if (i >= range && i + kAhead < range + listed)
            prefetch_query(b, list[i + kAhead - range], level);
        for (std::int64_t g = 0; g < b.group; ++g) {
            const std::int64_t row = batch.n++, at = t * b.group + g;
            batch.q_row[row] = row_of(b, b.q, t, g, batch.q + row * b.tree.width);
            batch.d_out_row[row] = row_of(b, b.d_out, t, g, batch.d_out + row * b.tree.width);
            batch.t[row] = t;
            batch.lse[row] = b.lse[at];
            batch.delta[row] = b.delta[at];
            if (batch.n == kBatch) fn(), batch.n = 0;
        }
    }
    if (batch.n > 0) fn();
}

/// Scores of the batch with a block of keys, `ld` to a channel, and their values: q k in p, d_out v
/// in d_z, both from lane `first`.
template <class W>
void products(Batch<W>& batch, typename LaneKernels<W>::RowDots dots, const W* k, const W* v,
              std::int64_t ld, std::int64_t first, std::int64_t dim) {
    for (std::int64_t i = 0; i < batch.n; ++i) {
        batch.p_row[i] = batch.p + i * batch.lanes + first;
        batch.d_z_row[i] = batch.d_z + i * batch.lanes + first;
    }
    dots(batch.p_row, batch.q_row, batch.n, dim, k, ld);
    dots(batch.d_z_row, batch.d_out_row, batch.n, dim, v, ld);
}

template <class W>
struct TokenSums {
    std::int64_t begin;  // their first token
    W *d_k, *d_v, *d_gate;
};

/// One pack's tokens [begin, end) as the batch sees them: those from first(t) to t.
template <class W, class First>
void add_pack(const TreeBackward<W>& b, Batch<W>& batch, const TokenSums<W>& sums,
              std::int64_t pack, std::int64_t begin, std::int64_t end, const First& first) {
    const KeyTree<W>& tree = b.tree;
    products(batch, batch.kernels.row_dots, tree.pack(pack), b.pack_v(pack), kLanes, 0, tree.dim);
    const W inverse = W{1} / static_cast<W>(tree.rule.window);
    const W* const gate = tree.gate + pack * kLanes;
    W d_gate[kLanes] = {};
    for (std::int64_t i = 0; i < batch.n; ++i) {
        const auto age = static_cast<std::int32_t>(batch.t[i] - pack * kLanes),
                   oldest = static_cast<std::int32_t>(batch.t[i] - first(batch.t[i]));
        W *const p = batch.p_row[i], *const z = batch.d_z_row[i];
        const W lse = batch.lse[i], delta = batch.delta[i];
        for_lanes<kLanes>([&](std::int32_t l) {
            const W x = static_cast<W>(age - l) * inverse, ramp = x < W{1} ? x : W{1};
            const bool seen = l <= age && age - l <= oldest;
            const W weight = fused_exp(b.scale * p[l] + ramp * gate[l] - lse),
                    d_z = weight * (z[l] - delta);
            p[l] = seen ? weight : W{0};
            z[l] = seen ? d_z : W{0};
            d_gate[l] += ramp * z[l];
        });
    }
    const std::int64_t low = begin - pack * kLanes, n = end - begin, row = begin - sums.begin;
    batch.kernels.add_outer(sums.d_v + row * tree.width, n, batch.p + low, batch.lanes,
                            batch.d_out_row, batch.n, tree.width);
    batch.kernels.add_outer(sums.d_k + row * tree.width, n, batch.d_z + low, batch.lanes,
                            batch.q_row, batch.n, tree.width);
    for (std::int64_t j = 0; j < n; ++j)
        sums.d_gate[row + j] += d_gate[low + j];
}

}  // namespace

template <class W>
void block_gradients(const TreeBackward<W>& b, const BlockId& id) {
    struct BiasTag;
    struct DropTag;
    const KeyTree<W>& tree = b.tree;
    const TreeRule& rule = tree.rule;
    const LevelGradient<W>& level = b.level[static_cast<std::size_t>(id.level)];
    const std::int64_t f = rule.fanout, lanes = b.block_lanes, first = id.block * f;
    const std::int64_t nodes = tree.levels[static_cast<std::size_t>(id.level)].count;
    const std::int64_t present = std::min(f, nodes - first);
    Batch<W> batch = place_batch(b, lanes);
    W* const bias = scratch<BiasTag, W>(lanes);
    auto* const drop = scratch<DropTag, std::int32_t>(lanes + 1);
    std::fill_n(bias, lanes, W{0});
    std::copy_n(tree.levels[static_cast<std::size_t>(id.level)].log_mass + first, present, bias);
    // At the edge of their far leaves: the queries to which the parent is not yet complete.
    std::int64_t span = 1;
    for (std::int64_t l = 0; l < id.level; ++l)
        span *= f;
    const std::int64_t local = rule.window / rule.leaf;
    const std::int64_t edge_begin = std::min(b.len(), ((first + 1) * span + local) * rule.leaf),
                       edge_end = std::min(b.len(), ((first + f) * span + local) * rule.leaf);
    const std::int32_t* list = nullptr;
    std::int64_t listed = 0;
    if (id.level + 1 < tree.n_levels &&
        id.block < tree.levels[static_cast<std::size_t>(id.level + 1)].count) {
        const LevelGradient<W>& above = b.level[static_cast<std::size_t>(id.level + 1)];
        list = above.queries + above.begin[id.block];
        listed = above.begin[id.block + 1] - above.begin[id.block];
    }
    W *const d_k = level.d_mean_k + first * tree.width,
             *const d_v = level.d_mean_v + first * tree.width,
             *const d_log_mass = level.d_log_mass + first;
    vectorised([&] {
        std::fill_n(d_k, present * tree.width, W{0});
        std::fill_n(d_v, present * tree.width, W{0});
        std::fill_n(d_log_mass, present, W{0});
        in_batches(b, batch, edge_begin, edge_end, list, listed, id.level, [&] {
            for (std::int64_t u = 0; u < lanes; u += kBlockLanes)
                products(batch, batch.kernels.half_row_dots,
                         level.k + id.block * tree.dim * lanes + u,
                         level.v + id.block * tree.dim * lanes + u, lanes, u, tree.dim);
            for (std::int64_t i = 0; i < batch.n; ++i) {
                W *const p = batch.p + i * lanes, *const z = batch.d_z + i * lanes;
                const W lse = batch.lse[i], delta = batch.delta[i];
                for_children(lanes, [&](int j) {
                    p[j] = fused_exp(b.scale * p[j] + bias[j] - lse);
                    z[j] = p[j] * (z[j] - delta);
                });
                // What is not complete to the query, or expanded, stands for nothing. Without
                // branches: which child is expanded is anybody's guess.
                const std::int64_t far = far_leaves(rule, batch.t[i]);
                const std::int32_t* const expanded = b.selected(batch.t[i], id.level);
                for_children(lanes, [&](int j) { drop[j] = 0; });
                for (std::int64_t e = 0; e < b.slots && expanded[e] >= 0; ++e) {
                    const auto j = static_cast<std::uint64_t>(expanded[e] - first);
                    drop[j < static_cast<std::uint64_t>(lanes) ? j : lanes] = 1;
                }
                const std::int64_t complete = far / span - first;
                for_children(lanes, [&](int j) {
                    const bool stays = drop[j] == 0 && j < complete;
                    p[j] = stays ? p[j] : W{0};
                    z[j] = stays ? z[j] : W{0};
                });
                for_children(present, [&](int j) { d_log_mass[j] += z[j]; });
            }
            batch.kernels.add_outer(d_v, present, batch.p, lanes, batch.d_out_row, batch.n,
                                    tree.width);
            batch.kernels.add_outer(d_k, present, batch.d_z, lanes, batch.q_row, batch.n,
                                    tree.width);
        });
    });
}
template void block_gradients(const TreeBackward<float>&, const BlockId&);
template void block_gradients(const TreeBackward<double>&, const BlockId&);

template <class W>
void push_down(const TreeBackward<W>& b) {
    const KeyTree<W>& tree = b.tree;
    const auto dot = [&](const W* x, const W* y) {
        return lane_sum<W>(tree.dim, [&](std::int64_t c) { return x[c] * y[c]; });
    };
    vectorised([&] {
        for (std::int64_t l = tree.n_levels - 1; l >= 0; --l) {
            const TreeLevel<W>& nodes = tree.levels[static_cast<std::size_t>(l)];
            const LevelGradient<W>& own = b.level[static_cast<std::size_t>(l)];
            for (std::int64_t j = 0; j < nodes.count; ++j) {
                W *const a = own.d_mean_k + j * tree.width, *const e =
                                                                own.d_mean_v + j * tree.width;
                const W inverse = W{1} / nodes.mass[j];
                for (std::int64_t c = 0; c < tree.dim; ++c) {
                    a[c] = b.scale * a[c] * inverse;
                    e[c] *= inverse;
                }
                own.d_log_mass[j] = own.d_log_mass[j] * inverse -
                                    dot(a, own.mean_k + j * tree.width) -
                                    dot(e, nodes.mean_v + j * tree.width);
                const std::int64_t parent = j / tree.rule.fanout;
                if (l + 1 == tree.n_levels ||
                    parent >= tree.levels[static_cast<std::size_t>(l + 1)].count)
                    continue;
                const LevelGradient<W>& above = b.level[static_cast<std::size_t>(l + 1)];
                for (std::int64_t c = 0; c < tree.dim; ++c) {
                    a[c] += above.d_mean_k[parent * tree.width + c];
                    e[c] += above.d_mean_v[parent * tree.width + c];
                }
                own.d_log_mass[j] += above.d_log_mass[parent];
            }
        }
    });
}
template void push_down(const TreeBackward<float>&);
template void push_down(const TreeBackward<double>&);

template <class W>
void token_gradients(const TreeBackward<W>& b, std::int64_t begin, std::int64_t end, W* d_k, W* d_v,
                     W* d_gate) {
    const KeyTree<W>& tree = b.tree;
    const TreeRule& rule = tree.rule;
    const TokenSums<W> sums{begin, d_k, d_v, d_gate};
    const std::int64_t nodes = tree.n_levels > 0 ? tree.levels[0].count : 0;
    Batch<W> batch = place_batch(b, kLanes);
    vectorised([&] {
        std::fill_n(d_k, (end - begin) * tree.width, W{0});
        std::fill_n(d_v, (end - begin) * tree.width, W{0});
        std::fill_n(d_gate, end - begin, W{0});
        for (std::int64_t s = begin; s < end; s += kLanes) {
            const std::int64_t last = std::min(s + kLanes, end) - 1;
            const std::int64_t until =
                std::min(b.len(), ((last + rule.window) / rule.leaf + 1) * rule.leaf);
            in_batches(b, batch, s, until, nullptr, 0, 0, [&] {
                add_pack(b, batch, sums, s / kLanes, s, last + 1,
                         [&](std::int64_t t) { return far_leaves(rule, t) * rule.leaf; });
            });
        }
        for (std::int64_t j = begin / rule.leaf; j < std::min(nodes, end / rule.leaf); ++j) {
            const std::int64_t first = j * rule.leaf, behind = first + rule.leaf;
            const LevelGradient<W>& leaves = b.level[0];
            in_batches(b, batch, 0, 0, leaves.queries + leaves.begin[j],
                       leaves.begin[j + 1] - leaves.begin[j], 0, [&] {
                           for (std::int64_t pack = first / kLanes; pack * kLanes < behind; ++pack)
                               add_pack(b, batch, sums, pack, std::max(first, pack * kLanes),
                                        std::min(behind, (pack + 1) * kLanes),
                                        [](std::int64_t) { return std::int64_t{0}; });
                       });
            // What the summaries above pass down.
            const W *const a = leaves.d_mean_k + j * tree.width, *const e = leaves.d_mean_v +
                                                                            j * tree.width;
            for (std::int64_t s = first; s < behind; ++s) {
                const W *const k = b.k + s * tree.width, *const v = tree.v + s * tree.width;
                W *const to_k = d_k + (s - begin) * tree.width, *const to_v =
                                                                    d_v + (s - begin) * tree.width;
                const W sigma = tree.sigma[s];
                for (std::int64_t c = 0; c < tree.dim; ++c) {
                    to_k[c] = b.scale * to_k[c] + sigma * a[c];
                    to_v[c] += sigma * e[c];
                }
                d_gate[s - begin] +=
                    sigma * (lane_sum<W>(tree.dim, [&](std::int64_t c) { return k[c] * a[c]; }) +
                             lane_sum<W>(tree.dim, [&](std::int64_t c) { return v[c] * e[c]; }) +
                             leaves.d_log_mass[j]);
            }
        }
        for (std::int64_t s = std::max(begin, nodes * rule.leaf); s < end; ++s)
            for (std::int64_t c = 0; c < tree.dim; ++c)
                d_k[(s - begin) * tree.width + c] *= b.scale;
    });
}
template void token_gradients(const TreeBackward<float>&, std::int64_t, std::int64_t, float*,
                              float*, float*);
template void token_gradients(const TreeBackward<double>&, std::int64_t, std::int64_t, double*,
                              double*, double*);

}  // namespace stoa::cpu
