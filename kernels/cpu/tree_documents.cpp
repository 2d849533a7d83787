#include "kernels/cpu/tree_documents.h"

namespace stoa::cpu {
namespace {

/// Tokens of piece, and the leaves among them.
template <class T, class W>
void plant_piece(KeyTree<W>& tree, const Document& doc, const Piece& piece,
                 const ConstTensorView& k, const ConstTensorView& v, const ConstTensorView& gate) {
    const std::int64_t len = k.shape[1], heads = k.shape[2], leaf = tree.rule.leaf;
    const auto keys = head_matrix<T>(k, doc.batch, doc.kv_head),
               values = head_matrix<T>(v, doc.batch, doc.kv_head);
    const W* const gates =
        gate.empty() ? nullptr
                     : gate.as<W>().data() + (doc.batch * len + doc.begin) * heads + doc.kv_head;
    vectorised([&] {
        for (std::int64_t s = piece.begin; s < piece.end; ++s)
            put_token(tree, s, keys.row(doc.begin + s), values.row(doc.begin + s),
                      gates == nullptr ? nullptr : gates + s * heads);
        if (tree.n_levels > 0)
            for (std::int64_t j = piece.begin / leaf; j < piece.end / leaf; ++j)
                build_leaf(tree, j);
    });
}

}  // namespace

template <class W>
void plant_trees(std::span<KeyTree<W>> trees, std::span<const Document> docs,
                 const ConstTensorView& k, const ConstTensorView& v, const ConstTensorView& gate) {
    const auto pieces = pieces_of(
        docs.size(), [&](std::size_t i) { return docs[i].len; },
        [&](std::size_t i) {
            const std::int64_t leaf = trees[i].rule.leaf;
            return leaf * std::max<std::int64_t>(1, 2048 / leaf);
        });
    for_each_piece(pieces, [&](const Piece& piece) {
        dispatch_dtype(k.dtype, [&]<Element T>(T) {
            if constexpr (std::is_same_v<Wide<T>, W>)
                plant_piece<T>(trees[piece.doc], docs[piece.doc], piece, k, v, gate);
        });
    });
    parallel_for(std::ssize(docs), 1, [&](std::int64_t i, std::int64_t last) {
        for (; i < last; ++i) {
            KeyTree<W>& tree = trees[static_cast<std::size_t>(i)];
            const std::int64_t len = docs[static_cast<std::size_t>(i)].len;
            if (tree.n_levels > 0) tree.levels[0].count = len / tree.rule.leaf;
            vectorised([&] { complete_nodes(tree, len); });
        }
    });
}
template void plant_trees(std::span<KeyTree<float>>, std::span<const Document>,
                          const ConstTensorView&, const ConstTensorView&, const ConstTensorView&);
template void plant_trees(std::span<KeyTree<double>>, std::span<const Document>,
                          const ConstTensorView&, const ConstTensorView&, const ConstTensorView&);

}  // namespace stoa::cpu
