#pragma once
#include "kernels/core/exec.h"

namespace stoa {

/// Which keys of its document a query sees, when not all: the first `sinks` tokens, the last
/// `window` ones (its own included), and of those between the `keep` that are most important.
/// keep = 0 and sinks = 0: a plain local window.
struct KeyRule {
    std::int64_t window = 0, sinks = 0, keep = 0;
};

/// A token is a candidate once, when it leaves the window; if it is not among the `keep` best then,
/// or better ones come later, it never returns. So key s is seen by the queries s <= t < expiry[s],
/// and this one number per key is the whole mask.
///   better: larger importance, among equals the older token; NaN counts as -infinity, -0 as 0
/// O(len log keep) per kv head; every document begins anew.
/// shapes: expiry (batch, n_kv_heads, len) int32; importance (batch, len, n_kv_heads), absent where
///         keep = 0; key_begin (batch * len) int32, the start of each token's document
/// dtype:  importance fp32 | fp64     comm: none     errors: ShapeError
struct SelectKeysArgs {
    TensorView expiry;
    ConstTensorView importance, key_begin;
    KeyRule rule;
};
void select_keys(const SelectKeysArgs& args, const Exec& exec);

/// Causal grouped-query attention over the keys that `expiry` lets a query see.
///   z_ts = scale q_t k_s + min(1, (t - s) / window) gate_s      (a sink token has no gate)
///   out_t = sum_s p_ts v_s,  p_ts = exp(z_ts - lse_t)
///   lse_t = log(exp(sink_logit) + sum_s exp(z_ts))
/// gate = log sigmoid(importance) lets learned importance weigh what a query sees, and grow into it
/// over the window; the learned sink_logit, of a head, lets a query see nothing.
/// The queries of dense_rows see all keys of their document before them, with the same gates,
/// whatever expiry says: in training, so that importance hears of keys that it did not keep. O(len
/// (window + sinks + keep) + dense rows x len). A query's bits depend on the keys that it sees, in
/// their order, and on nothing else: not on threads, other sequences, or how many queries are in
/// the call, which are the last q_len of the tokens (fewer than all: a prefill by parts). shapes:
/// q, out (batch, q_len, n_heads, head_dim); k, v (batch, len, n_kv_heads, head_dim); lse
///         (batch, n_heads, q_len); gate (batch, len, n_kv_heads) and sink_logit (n_heads), each
///         absent or given; expiry, key_begin and rule as in SelectKeysArgs; dense_rows (batch,
///         rows) int32, ascending tokens of each entry, absent or given where q_len is len
/// dtype:  q, k, v, out alike: fp32 | bf16 | fp16 | fp64; lse, gate, sink_logit Wide
/// comm:   none     errors: ShapeError     saves for backward: out, lse, expiry
struct ImportanceAttentionArgs {
    TensorView out, lse;
    ConstTensorView q, k, v, expiry, key_begin, gate, sink_logit, dense_rows;
    KeyRule rule;
    double scale = 1.0;
};
void importance_attention_forward(const ImportanceAttentionArgs& args, const Exec& exec);

/// With delta_t = d_out_t out_t and d_z = p (d_out_t v_s - delta_t):
///   d_v = p^T d_out;  d_q = scale d_z k;  d_k = scale d_z^T q
///   d_gate_s = sum_t min(1, (t - s) / window) d_z_ts;  d_sink_t = -exp(sink_logit - lse_t) delta_t
/// d_sink (batch, len, n_heads), Wide: what each query gives to its head's sink_logit; the sum over
/// tokens is the caller's, in the caller's order.
/// far_mass (batch, len, n_kv_heads), Wide, absent or given with dense_rows: what these see of each
/// key behind their window, for importance to learn from (kernels/importance_distil.h):
///   far_mass_s = sum of p_ts over dense rows t >= s + window and the query heads of the kv head
/// Writes (not adds) all of them; those of absent inputs stay absent. The selection is a constant.
/// Sums over queries go by chunks of a fixed length, in order, then over the dense rows, head by
/// head. Here q_len is len.
struct ImportanceAttentionBackwardArgs {
    TensorView d_q, d_k, d_v, d_gate, d_sink, far_mass;
    ConstTensorView d_out, out, lse, q, k, v, expiry, key_begin, gate, sink_logit, dense_rows;
    KeyRule rule;
    double scale = 1.0;
};
void importance_attention_backward(const ImportanceAttentionBackwardArgs& args, const Exec& exec);

}  // namespace stoa
