#pragma once
// Attention as cuDNN's graphs of plain operations, which have a causal mask in all of cuDNN 9 (its
// one-operation form has it from 9.21 on). An engine recognises the whole and makes one kernel.
#include "kernels/cuda/op_graph.h"
#include "kernels/cuda/sdpa.h"

namespace stoa::cuda {

/// Ids of the graphs' inputs and outputs.
enum class SdpaTensor : std::int64_t {
    q = 1,
    k,
    v,
    out,
    lse,
    key_begin,
    key_end,
    d_out,
    d_q,
    d_k,
    d_v,
    delta,   // scratch of the backward: (batch, n_heads, q_len) fp32
    scale,   // by value, fp32
    masked,  // by value, fp32: kSdpaMasked
    one,     // by value, fp32: 1
};
/// The score of a key that is not seen. Finite: a tile in which a row sees nothing then adds what
/// the next tile multiplies by exp(kSdpaMasked - max) = 0, where -inf would give -inf - -inf.
constexpr float kSdpaMasked = -1e30f;

/// out and lse = log sum exp(scale q k^T).
/// errors: ShapeError where sdpa_refusal names a rule
OpGraph sdpa_forward_graph(const SdpaShape& shape);
/// d_q, d_k, d_v from d_out, out and lse. d_q is the product of a stored d_s and k: no atomic sums.
OpGraph sdpa_backward_graph(const SdpaShape& shape);

}  // namespace stoa::cuda
