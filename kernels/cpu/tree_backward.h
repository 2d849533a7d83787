#pragma once
// The gradients of the tree attention for one document and kv head. First by queries: d_q. Then by
// keys, which no two threads share: the summaries of every sibling block, from the top down to the
// leaves, then the tokens. Both read the scores anew, so that nothing but the selection and its
// inverse is kept per query and key; every sum is one chain over ascending queries or keys.
#include "kernels/cpu/key_tree.h"
#include "kernels/cpu/node_lists.h"

namespace stoa::cpu {

constexpr std::int64_t kBlockLanes = kHalfLanes;  // children go by so many

template <class W>
struct LevelGradient {
    W *k = nullptr, *v = nullptr;  // mean keys and values, (blocks, dim, block_lanes)
    W* mean_k = nullptr;           // (nodes, width)
    // Towards mean key, mean value, log mass: (nodes, width) twice, (nodes). After push_down the
    // A, E, C of tree_attention.h.
    W *d_mean_k = nullptr, *d_mean_v = nullptr, *d_log_mass = nullptr;
    std::int64_t* begin = nullptr;  // (nodes + 1) into queries: who has expanded the node
    std::int32_t* queries = nullptr;
};

/// Rows of (token, head of the group), of any dtype.
struct HeadRows {
    const std::byte* data = nullptr;
    DType dtype = DType::fp32;
    std::int64_t token_ld = 0, head_ld = 0;
};

template <class W>
struct TreeBackward {
    KeyTree<W> tree;
    std::int64_t group = 1, levels = 1, slots = 0, block_lanes = 0;
    W scale = 1;
    HeadRows q, d_out;
    const std::int32_t* selection = nullptr;  // (len, levels, slots)
    W *v = nullptr, *k = nullptr;             // (packs, dim, kLanes), (tokens, width)
    W *lse = nullptr, *delta = nullptr;       // (len, group)
    std::array<LevelGradient<W>, kMaxTreeLevels> level{};

    std::int64_t len() const { return tree.capacity; }
    const W* pack_v(std::int64_t i) const { return v + i * tree.dim * kLanes; }
    std::int64_t blocks(std::int64_t l) const {
        const std::int64_t nodes = tree.levels[static_cast<std::size_t>(l)].count;
        return (nodes + tree.rule.fanout - 1) / tree.rule.fanout;
    }
    const std::int32_t* selected(std::int64_t t, std::int64_t l) const {
        return selection + (t * levels + l) * slots;
    }
};

/// Gives it its parts of the memories, as place_tree does; counts of values, and of 8 byte words.
struct BackwardMemory {
    std::int64_t values = 0, words = 0;
};
template <class W>
BackwardMemory place_backward(TreeBackward<W>& b, W* memory, std::int64_t* words);

/// A row in W, 0 behind dim.
template <class W>
void load_row(W* out, const HeadRows& rows, std::int64_t t, std::int64_t g, std::int64_t dim,
              std::int64_t width);

/// Sibling block i of all, those of the top level first: they have the longest lists.
struct BlockId {
    std::int64_t level, block;
};
template <class W>
std::int64_t count_blocks(const TreeBackward<W>& b) {
    std::int64_t n = 0;
    for (std::int64_t l = 0; l < b.tree.n_levels; ++l)
        n += b.blocks(l);
    return n;
}
template <class W>
BlockId block_at(const TreeBackward<W>& b, std::int64_t i) {
    std::int64_t l = b.tree.n_levels - 1;
    for (; i >= b.blocks(l); --l)
        i -= b.blocks(l);
    return {l, i};
}

/// Copies what the backward reads in other orders: tokens [begin, end), the nodes of a block.
template <class W>
void lay_out_tokens(const TreeBackward<W>& b, std::int64_t begin, std::int64_t end);
template <class W>
void lay_out_block(const TreeBackward<W>& b, const BlockId& id);
/// The lists of one level.
template <class W>
void list_queries(const TreeBackward<W>& b, std::int64_t level);

/// d_q (count, group, width) of queries [begin, begin + count).
template <class W>
void query_gradients(const TreeBackward<W>& b, std::int64_t begin, std::int64_t count, W* d_q);
/// The gradients towards the nodes of a sibling block.
template <class W>
void block_gradients(const TreeBackward<W>& b, const BlockId& id);
/// When those of all blocks are there: A, E and C of every node, its ancestors' included.
template <class W>
void push_down(const TreeBackward<W>& b);
/// d_k, d_v (tokens, width) and d_gate (tokens) of tokens [begin, end); begin begins a pack and a
/// leaf, and so does end, where it is not the document's; room for whole packs.
template <class W>
void token_gradients(const TreeBackward<W>& b, std::int64_t begin, std::int64_t end, W* d_k, W* d_v,
                     W* d_gate);

}  // namespace stoa::cpu
