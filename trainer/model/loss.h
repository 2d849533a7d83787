#pragma once
#include "kernels/core/exec.h"
#include "parallel/communicator.h"
#include "trainer/model/activations.h"

namespace stoa {

/// loss_sum += the summed cross-entropy of the rows with a target; with `d_loss` != 0 the logits
/// become d_logits = d_loss * (softmax - one_hot) in place. The vocabulary is split over tp;
/// padding columns of an odd vocabulary take no part. comm: all_reduce(tp, max, (rows)),
/// all_reduce(tp, sum, (2, rows))
void loss_forward_backward(const Activations& acts, const LocalDims& dims, double d_loss,
                           const Communicator& tp, const Exec& exec);

}  // namespace stoa
