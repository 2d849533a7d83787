#pragma once
#include "trainer/model/block.h"

namespace stoa {

// The feed-forward half of a block, kFfnChunk rows at a time:
//   h2 = rms_norm(x_mid);  act = silu(h2 gate^T) * (h2 up^T);  out = act down^T
// In e4m3 every matmul operand is quantised from its fp32 value: by rows (1 x 128 along the
// contraction) where features are summed, by columns (128 x 1) where tokens are. gate and up are
// saved as codes, and the forward goes on from the saved codes too: what recompute reads is what
// the forward used, so act comes out the same, and the gradient is that of the function computed.

/// What s.x_mid is the sum of, when its norm is to add it up on the way: (own, d_model) each. delta
/// may lie in acts.scratch.stream.
struct MidSum {
    ConstTensorView x_in, delta;
};

/// Fills s.rstd2, h2, gate, up, act from s.x_mid, or with `mid` first that, and, with `sums`
/// (stream_sums), acts.scratch.stream (rows, d_model) with this tp rank's part of the output, chunk
/// by chunk: sums.finish() has the output.     comm: share_rows(tp), sums
void ffn_forward(const BlockContext& c, const BlockWeights& w, const BlockSaved& s, RowSums* sums,
                 const MidSum& mid = {});

/// h2 and act again from x_mid, gate and up.
void ffn_recompute(const BlockContext& c, const BlockWeights& w, const BlockSaved& s);

/// d_y (rows, d_model) is the gradient of the output; acts.scratch.stream becomes that of h2, this
/// tp rank's part, chunk by chunk: sums.finish() has the whole. Weight gradients are added to g.
/// comm: sums
void ffn_backward(const BlockContext& c, const BlockWeights& w, const BlockWeights& g,
                  const BlockSaved& s, TensorView d_y, RowSums& sums);

}  // namespace stoa
