#pragma once
#include "kernels/core/exec.h"
#include "parallel/communicator.h"
#include "trainer/model/transformer.h"

namespace stoa {

/// logits = h_final lm_head^T, kLossChunk rows at a time, so that they never exist whole;
/// loss_sum += the summed cross-entropy of the rows with a target. With `d_loss` != 0 the logits
/// become d_logits = d_loss * (softmax - one_hot) in place, the gradient of lm_head is added, and
/// acts.scratch.stream becomes that of h_final, this tp rank's part. The vocabulary is split over
/// tp; padding columns of an odd vocabulary take no part.
/// comm, per chunk: all_reduce(tp, max, (rows)), all_reduce(tp, sum, (2, rows))
void loss_forward_backward(TrainState& s, double d_loss, const Communicator& tp, const Exec& exec);

}  // namespace stoa
