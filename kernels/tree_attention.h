#pragma once
#include "kernels/core/exec.h"

namespace stoa {

/// How a query finds its keys. Its own document's tokens t - window - leaf < s <= t it sees one by
/// one; those before lie in leaves of `leaf` tokens, the leaves under nodes of `fanout` children. A
/// descent from the top expands the `beam` best nodes of every level; the leaves at its end are
/// read token by token, every node that it passes over stands for all its tokens at once. So each
/// past token is represented exactly once. O(log len) nodes are scored per query.
struct TreeRule {
    std::int64_t window = 0;  // a multiple of leaf
    std::int64_t leaf = 0, fanout = 0, beam = 0;
    std::int64_t sinks = 0;  // first tokens, at most a leaf: always read, without a gate
};

/// errors: ShapeError, when the rule breaks one of its bounds
void require_tree_rule(const TreeRule& rule);

/// Levels that a document of `len` tokens can have, and the nodes of a level that a query may have
/// expanded: what is saved of a selection per query.
std::int64_t tree_levels(const TreeRule& rule, std::int64_t len);
std::int64_t tree_slots(const TreeRule& rule);

/// Causal grouped-query attention over the keys of a tree.
///   sigma_s = exp(gate_s);  a node: mass M = sum sigma_s, mean key kappa = sum sigma_s k_s / M,
///                           mean value nu = sum sigma_s v_s / M
///   token   z_ts = scale q_t k_s + min(1, (t - s) / window) gate_s      (a sink has no gate)
///   node    z_tj = scale q_t kappa_j + log M_j
///   out_t = sum_s p_ts v_s + sum_j p_tj nu_j, p = exp(z - lse_t), lse_t with exp(sink_logit)
/// A node is ranked by an upper bound of its tokens' scores, scale sum_c max(q_c lo_c, q_c hi_c)
/// with the least and largest of every key channel [Quest, Tang et al. 2024]; with several query
/// heads to a kv head by the sum over them of the softmax of their bounds; among equals the newer
/// one wins. The heads of a group share the selection.
/// shapes: q, out (batch, len, n_heads, head_dim); k, v (batch, len, n_kv_heads, head_dim); lse
///         (batch, n_heads, len); gate (batch, len, n_kv_heads), <= 0, and sink_logit (n_heads),
///         each absent or given; key_begin (batch * len) int32, the start of each token's document;
///         selection (batch * n_kv_heads, len, tree_levels, tree_slots) int32: the expanded nodes
///         of every level, -1 behind the last
/// dtype:  q, k, v, out alike: fp32 | bf16 | fp16 | fp64; lse, gate, sink_logit Wide
/// comm:   none     errors: ShapeError     saves for backward: out, lse, selection
struct TreeAttentionArgs {
    TensorView out, lse, selection;
    ConstTensorView q, k, v, key_begin, gate, sink_logit;
    TreeRule rule;
    double scale = 1.0;
};
void tree_attention_forward(const TreeAttentionArgs& args, const Exec& exec);

/// As importance_attention_backward; a node's gradients d_kappa, d_nu, d_log_M go down to its
/// tokens: with A = d_kappa / M, E = d_nu / M, C = (d_log_M - kappa d_kappa - nu d_nu) / M, each
/// summed over the nodes above a token,
///   d_k_s += sigma_s A;  d_v_s += sigma_s E;  d_gate_s += sigma_s (k_s A + v_s E + C)
/// The selection is a constant. d_sink (batch, len, n_heads) Wide is each query's part of the
/// gradient towards the sink logit, -exp(sink_logit - lse_t) delta_t with delta_t = d_out_t out_t:
/// whoever sums it over tokens chooses the order. Writes (not adds). Sums over queries go in their
/// order, over the heads of a group within each. Working memory: some 5 Wide values per channel of
/// k as above, and 4 bytes per element of the selection.
struct TreeAttentionBackwardArgs {
    TensorView d_q, d_k, d_v, d_gate, d_sink;
    ConstTensorView d_out, out, lse, selection, q, k, v, key_begin, gate, sink_logit;
    TreeRule rule;
    double scale = 1.0;
};
void tree_attention_backward(const TreeAttentionBackwardArgs& args, const Exec& exec);

}  // namespace stoa
