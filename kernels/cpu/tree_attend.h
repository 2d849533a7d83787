#pragma once
// Queries over a key tree: what training, prefill and decoding share.
#include "kernels/cpu/key_tree.h"

namespace stoa::cpu {

/// Queries [begin, begin + count) of a document, for the query heads of one kv head.
template <class W>
struct TreeQueries {
    std::int64_t begin = 0, count = 0, group = 1;
    const W* q = nullptr;               // (count, group, width of the tree)
    W *out = nullptr, *lse = nullptr;   // (count, group, width), (count, group)
    std::int32_t* selection = nullptr;  // (count, levels, slots)
    std::int64_t levels = 1;
    const W* sink = nullptr;  // (group), -infinity without
    W scale = 1;
};

/// Selects and attends; the tree holds the tokens up to the last query's. Every query by itself:
/// its bits do not depend on the others.
template <class W>
void tree_attend(const KeyTree<W>& tree, const TreeQueries<W>& queries);

/// How many queries to give to tree_attend at a time: enough to meet a leaf several times while it
/// is in cache, within some megabytes of working memory.
std::int64_t tree_chunk(const TreeRule& rule, std::int64_t len, std::int64_t group,
                        std::int64_t dim);

}  // namespace stoa::cpu
