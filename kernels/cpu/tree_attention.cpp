// The forward over a batch: trees of a wave of documents, then their queries in chunks.
#include "kernels/cpu/ops.h"
#include "kernels/cpu/tree_attend.h"
#include "kernels/cpu/tree_documents.h"

namespace stoa::cpu {
namespace {

/// Queries [piece.begin, piece.end) of a document.
template <class T, class W = Wide<T>>
void forward_chunk(const TreeAttentionArgs& a, const TreeSizes& n, const Document& doc,
                   const KeyTree<W>& tree, const Piece& piece) {
    struct QueryTag;
    struct OutTag;
    struct LseTag;
    struct SinkTag;
    const std::int64_t group = n.group(), first_head = doc.kv_head * group,
                       count = piece.end - piece.begin;
    W* const q = scratch<QueryTag, W>(count * group * tree.width);
    W* const sink = scratch<SinkTag, W>(group);
    sinks_of(sink, a, first_head, group);
    vectorised([&] {
        for (std::int64_t r = 0; r < count; ++r)
            for (std::int64_t g = 0; g < group; ++g)
                widen_row(q + (r * group + g) * tree.width,
                          head_row<T>(a.q, doc.batch, first_head + g, doc.begin + piece.begin + r),
                          n.dim);
    });
    const TreeQueries<W> queries{
        .begin = piece.begin,
        .count = count,
        .group = group,
        .q = q,
        .out = scratch<OutTag, W>(count * group * tree.width),
        .lse = scratch<LseTag, W>(count * group),
        .selection = a.selection.as<std::int32_t>().data() +
                     ((doc.batch * n.n_kv_heads + doc.kv_head) * n.len + doc.begin + piece.begin) *
                         n.levels * n.slots,
        .levels = n.levels,
        .sink = sink,
        .scale = static_cast<W>(a.scale)};
    tree_attend(tree, queries);
    vectorised([&] {
        for (std::int64_t r = 0; r < count; ++r)
            for (std::int64_t g = 0; g < group; ++g) {
                const std::int64_t t = doc.begin + piece.begin + r, h = first_head + g;
                narrow_row(head_row<T>(a.out, doc.batch, h, t),
                           queries.out + (r * group + g) * tree.width, n.dim);
                a.lse.as<W>()[static_cast<std::size_t>((doc.batch * n.n_heads + h) * n.len + t)] =
                    queries.lse[r * group + g];
            }
    });
}

}  // namespace

void tree_attention_forward(const TreeAttentionArgs& a) {
    struct TreesTag;
    dispatch_dtype(a.q.dtype, [&]<Element T>(T) {
        using W = Wide<T>;
        const TreeSizes n = tree_sizes(a);
        std::vector<KeyTree<W>> trees;
        for_each_wave(documents(a, n), [&](std::span<const Document> docs) {
            W* memory = working_memory<TreesTag, W>(make_trees(trees, docs, a.rule, n.dim));
            for (KeyTree<W>& tree : trees)
                memory += place_tree(tree, memory);
            plant_trees(std::span(trees), docs, a.k, a.v, a.gate);
            const auto chunks = pieces_of(
                docs.size(), [&](std::size_t i) { return docs[i].len; },
                [&](std::size_t i) { return tree_chunk(a.rule, docs[i].len, n.group(), n.dim); });
            for_each_piece(chunks, [&](const Piece& piece) {
                forward_chunk<T>(a, n, docs[piece.doc], trees[piece.doc], piece);
            });
        });
    });
}

}  // namespace stoa::cpu
