#pragma once
#include "kernels/core/exec.h"

namespace stoa {

/// Causal grouped-query attention. Query row r = (b, t) of batch entry b attends the keys j of the
/// same entry with key_begin[r] <= j < key_end[r]; head h reads kv head h / (n_heads / n_kv_heads).
///   out = softmax(q k^T * scale) v,  lse = log sum exp of the row        [Vaswani et al. 2017]
/// Training: key_begin = start of the token's document, key_end = t + 1 (packed documents never see
/// each other). Decoding: q has t = 1 and k, v are the cache (batch, capacity, ...).
/// shapes: q, out (batch, q_len, n_heads, head_dim); k, v (batch, k_len, n_kv_heads, head_dim);
///         lse (batch, n_heads, q_len); key_begin, key_end (batch * q_len) int32
/// dtype:  q, k, v, out alike: fp32 | bf16 | fp16 | fp64; lse Wide
/// causal: the caller's promise that q_len = k_len, key_end = t + 1 and key_begin <= t, by which a
///         GPU need not read key_end; checked on the CPU
/// comm:   none     errors: ShapeError     saves for backward: lse, out
struct AttentionArgs {
    TensorView out, lse;
    ConstTensorView q, k, v, key_begin, key_end;
    double scale = 1.0;
    bool causal = false;
};
void attention_forward(const AttentionArgs& args, const Exec& exec);

/// With p = exp(q k^T scale - lse), delta = rowsum(d_out * out):
///   d_v = p^T d_out;  d_s = p * (d_out v^T - delta);  d_q = scale * d_s k;  d_k = scale * d_s^T q
/// Writes (not adds) d_q, d_k, d_v; the heads of a group are summed into their kv head.
struct AttentionBackwardArgs {
    TensorView d_q, d_k, d_v;
    ConstTensorView d_out, out, lse, q, k, v, key_begin, key_end;
    double scale = 1.0;
    bool causal = false;
};
void attention_backward(const AttentionBackwardArgs& args, const Exec& exec);

}  // namespace stoa
