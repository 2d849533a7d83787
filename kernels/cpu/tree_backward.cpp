// What the backward of a document is laid out in.
#include "kernels/cpu/tree_backward.h"

#include "kernels/cpu/isa.h"

namespace stoa::cpu {

template <class W>
BackwardMemory place_backward(TreeBackward<W>& b, W* memory, std::int64_t* words) {
    BackwardMemory used{.values = place_tree(b.tree, memory)};
    const auto take = [&](W*& at, std::int64_t n) {
        at = memory == nullptr ? nullptr : memory + used.values;
        used.values += round_up(n, kLanes);
    };
    const KeyTree<W>& tree = b.tree;
    const std::int64_t tokens = round_up(tree.capacity, kLanes), f = tree.rule.fanout;
    b.block_lanes = round_up(f, kBlockLanes);
    take(b.v, tokens * tree.dim);
    take(b.k, tokens * tree.width);
    take(b.lse, tokens * b.group);
    take(b.delta, tokens * b.group);
    std::int64_t nodes = tree.capacity / tree.rule.leaf;
    for (std::int64_t l = 0; l < tree.n_levels; ++l, nodes /= f) {
        LevelGradient<W>& level = b.level[static_cast<std::size_t>(l)];
        const std::int64_t blocks = (nodes + f - 1) / f;
        take(level.k, blocks * tree.dim * b.block_lanes);
        take(level.v, blocks * tree.dim * b.block_lanes);
        take(level.mean_k, blocks * f * tree.width);
        take(level.d_mean_k, blocks * f * tree.width);
        take(level.d_mean_v, blocks * f * tree.width);
        take(level.d_log_mass, blocks * f);
        level.begin = words == nullptr ? nullptr : words + used.words;
        used.words += nodes + 1;
        level.queries =
            words == nullptr ? nullptr : reinterpret_cast<std::int32_t*>(words + used.words);
        used.words += (tree.capacity * b.slots + 1) / 2;
    }
    return used;
}
template BackwardMemory place_backward(TreeBackward<float>&, float*, std::int64_t*);
template BackwardMemory place_backward(TreeBackward<double>&, double*, std::int64_t*);

template <class W>
void load_row(W* out, const HeadRows& rows, std::int64_t t, std::int64_t g, std::int64_t dim,
              std::int64_t width) {
    const auto from = [&]<Element T>(T) {
        const T* const x =
            reinterpret_cast<const T*>(rows.data) + t * rows.token_ld + g * rows.head_ld;
        for (std::int64_t c = 0; c < dim; ++c)
            out[c] = widen(x[c]);
    };
    if constexpr (std::is_same_v<W, double>)
        from(double{});
    else if (rows.dtype == DType::bf16)
        from(bf16{});
    else if (rows.dtype == DType::fp16)
        from(fp16{});
    else
        from(float{});
    for (std::int64_t c = dim; c < width; ++c)
        out[c] = W{0};
}
template void load_row(float*, const HeadRows&, std::int64_t, std::int64_t, std::int64_t,
                       std::int64_t);
template void load_row(double*, const HeadRows&, std::int64_t, std::int64_t, std::int64_t,
                       std::int64_t);

template <class W>
void lay_out_tokens(const TreeBackward<W>& b, std::int64_t begin, std::int64_t end) {
    const KeyTree<W>& tree = b.tree;
    vectorised([&] {
        for (std::int64_t s = begin; s < end; ++s) {
            const W* const column = tree.pack(s / kLanes) + s % kLanes;
            W* const column_v = b.v + s / kLanes * tree.dim * kLanes + s % kLanes;
            W* const row = b.k + s * tree.width;
            for (std::int64_t c = 0; c < tree.dim; ++c) {
                row[c] = column[c * kLanes];
                column_v[c * kLanes] = tree.v[s * tree.width + c];
            }
            std::fill(row + tree.dim, row + tree.width, W{0});
        }
    });
}
template void lay_out_tokens(const TreeBackward<float>&, std::int64_t, std::int64_t);
template void lay_out_tokens(const TreeBackward<double>&, std::int64_t, std::int64_t);

template <class W>
void lay_out_block(const TreeBackward<W>& b, const BlockId& id) {
    const KeyTree<W>& tree = b.tree;
    const TreeLevel<W>& from = tree.levels[static_cast<std::size_t>(id.level)];
    const LevelGradient<W>& to = b.level[static_cast<std::size_t>(id.level)];
    const std::int64_t f = tree.rule.fanout, first = id.block * f,
                       present = std::min(f, from.count - first);
    W* const k = to.k + id.block * tree.dim * b.block_lanes;
    W* const v = to.v + id.block * tree.dim * b.block_lanes;
    for (std::int64_t c = 0; c < tree.dim; ++c)
        for (std::int64_t j = 0; j < b.block_lanes; ++j) {
            const bool there = j < present;
            const W mean_k = there ? node_channel(tree, from, first + j, c)[f] : W{0};
            k[c * b.block_lanes + j] = mean_k;
            v[c * b.block_lanes + j] = there ? from.mean_v[(first + j) * tree.width + c] : W{0};
            if (there) to.mean_k[(first + j) * tree.width + c] = mean_k;
        }
    for (std::int64_t j = 0; j < present; ++j)
        std::fill_n(to.mean_k + (first + j) * tree.width + tree.dim, tree.width - tree.dim, W{0});
}
template void lay_out_block(const TreeBackward<float>&, const BlockId&);
template void lay_out_block(const TreeBackward<double>&, const BlockId&);

template <class W>
void list_queries(const TreeBackward<W>& b, std::int64_t level) {
    const LevelGradient<W>& to = b.level[static_cast<std::size_t>(level)];
    sort_by_node(to.begin, to.queries, b.tree.levels[static_cast<std::size_t>(level)].count,
                 [&](const auto& fn) {
                     for (std::int64_t t = 0; t < b.len(); ++t) {
                         const std::int32_t* const expanded = b.selected(t, level);
                         for (std::int64_t i = 0; i < b.slots && expanded[i] >= 0; ++i)
                             fn(expanded[i], static_cast<std::int32_t>(t));
                     }
                 });
}
template void list_queries(const TreeBackward<float>&, std::int64_t);
template void list_queries(const TreeBackward<double>&, std::int64_t);

}  // namespace stoa::cpu
