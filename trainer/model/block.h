#pragma once
#include "kernels/core/exec.h"
#include "parallel/communicator.h"
#include "trainer/model/activations.h"
#include "trainer/model/params.h"
#include "trainer/model/sequence.h"

namespace stoa {

/// What every block of a forward pass shares.
struct BlockContext {
    const LocalDims& dims;
    const ModelState& state;  // rope tables
    double norm_eps;
    const Activations& acts;  // scratch, positions, key ranges
    const Communicator& tp;
    const Exec& exec;
    const Communicator* tp_beside = nullptr;  // with tp_queue: for sums beside products
    CommQueue* tp_queue = nullptr;
    bool add_grads = true;  // to the matrices' gradients; else they are overwritten
    GradPass grad_pass{};
    const TrainingRows* training_rows = nullptr;  // absent: evaluation, without dense rows
    std::int64_t layer = 0;
    TensorView nonfinite{};  // (1) int32: this layer's FFN met Inf or NaN in this pass
    TensorView loss{};       // (4) fp64: what e4m3 loses here in this pass; absent: no sample
};

/// d_w (+)= d_y^T x
void weight_gradient(const BlockContext& c, TensorView d_w, ConstTensorView d_y, ConstTensorView x);

/// Sums over tp of the stream's scratch, into which `product` writes rows [begin, begin + count):
/// all at once, or chunk by chunk where a thread sums one beside the next.
RowSums stream_sums(const BlockContext& c);

/// One pre-norm decoder block [Qwen3]:
///   x_mid = x_in + out_proj(attention(rope(norm(q)), rope(norm(k)), v)),  of h1 = rms_norm(x_in)
///   x_out = x_mid + down(silu(gate(h2)) * up(h2)),                        of h2 = rms_norm(x_mid)
/// shapes: x_in, x_out (own rows, d_model)
/// comm: 2 x sum_rows(tp) and share_rows(tp) of (rows, d_model) (trainer/model/sequence.h)
/// An empty x_out stops before the down projection: all that full recompute needs (1 x sum_rows).
void block_forward(const BlockContext& c, const BlockWeights& w, const BlockSaved& s,
                   ConstTensorView x_in, TensorView x_out);

// What comes before and after attention (attend.h), where decoding has a cache of its own.
/// Fills s.q, s.k, s.v (and what their backward needs), and what keys are selected by, from x_in.
/// comm: share_rows(tp)
void block_qkv(const BlockContext& c, const BlockWeights& w, const BlockSaved& s,
               ConstTensorView x_in);
/// The rest, from s.attn. x_out may be x_in.
void block_finish(const BlockContext& c, const BlockWeights& w, const BlockSaved& s,
                  ConstTensorView x_in, TensorView x_out);

/// h1, q, k, h2 and act again, from what selective recompute keeps.     comm: 2 x share_rows(tp)
void block_recompute(const BlockContext& c, const BlockWeights& w, const BlockSaved& s,
                     ConstTensorView x_in);

/// d_x holds the gradient of x_out on entry and of x_in on return; weight gradients are added to g.
/// comm: 2 x all_rows(tp) and sum_rows(tp) of (rows, d_model)
void block_backward(const BlockContext& c, const BlockWeights& w, const BlockWeights& g,
                    const BlockSaved& s, ConstTensorView x_in, TensorView d_x);

}  // namespace stoa
