#pragma once
// The attention of one layer, of whatever kind the stage has for it: from q, k, v and importance to
// what the output matrix reads, and back. Selection is local to a kv head, so nobody communicates:
// the tp ranks hold different kv heads.
#include "kernels/importance_attention.h"
#include "kernels/tree_attention.h"
#include "trainer/model/block.h"

namespace stoa {

TreeRule tree_rule(const AttentionConfig& a);
/// Of `importance`, or of `window`, which keeps nothing.
KeyRule key_rule(const AttentionConfig& a, LayerAttention kind);
Shape selection_shape(const TreeRule& rule, std::int64_t heads, std::int64_t seq_len);
double attention_scale(const LocalDims& d);

/// Of each sequence, in training: rows of the layers that select by importance that see all keys.
std::int64_t dense_row_count(const LocalDims& d, std::int64_t seq_len);

/// (rows, heads * head_dim) as (micro_batch, seq_len, heads, head_dim).
template <class View>
View by_batch(const View& x, const Activations& a, std::int64_t head_dim) {
    return x.reshaped({a.micro_batch, a.seq_len, x.cols() / head_dim, head_dim});
}

/// Importance and gates of the tokens from s.h1, where the layer selects keys.     comm: none
void importance_forward(const BlockContext& c, const BlockWeights& w, const BlockSaved& s);

/// s.attn, s.lse and s.selection from s.q and k, v (micro_batch, k_len, n_kv_heads, head_dim);
/// other kinds than dense need k_len = seq_len. causal: k and v are those of the queries' tokens,
/// and every one of these sees itself last (AttentionArgs).     comm: none
void attend_forward(const BlockContext& c, const BlockWeights& w, const BlockSaved& s,
                    ConstTensorView k, ConstTensorView v, bool causal);

/// d_q, d_k, d_v in the scratch from its d_attn; where the layer selects keys its d_importance,
/// too, and the gradients of sinks, importance weights and biases.     comm: none
void attend_backward(const BlockContext& c, const BlockWeights& w, const BlockWeights& g,
                     const BlockSaved& s);

}  // namespace stoa
