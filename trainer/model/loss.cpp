#include "trainer/model/loss.h"

#include "kernels/cross_entropy.h"
#include "parallel/collectives.h"

namespace stoa {

void loss_forward_backward(const Activations& a, const LocalDims& dims, double d_loss,
                           const Communicator& tp, const Exec& exec) {
    const ShardRange& vocab = dims.vocab;
    cross_entropy_row_max({.row_max = a.row_max, .logits = a.logits, .vocab_valid = vocab.count},
                          exec);
    all_reduce(a.row_max, ReduceOp::max, tp,
               exec.stream);  // tp: the row's maximum over the whole vocabulary
    cross_entropy_exp_sum({.exp_sum = a.exp_sum,
                           .target_logit = a.target_logit,
                           .logits = a.logits,
                           .row_max = a.row_max,
                           .targets = a.targets,
                           .vocab_begin = vocab.begin,
                           .vocab_valid = vocab.count},
                          exec);
    // one message for both: they lie side by side in the plan, (2, rows)
    const TensorView sums{
        a.exp_sum.data, a.exp_sum.dtype, {2, a.exp_sum.numel()}, a.exp_sum.device};
    all_reduce(sums, ReduceOp::sum, tp, exec.stream);  // tp: normaliser and the target's logit
    cross_entropy_finish({.d_logits = d_loss == 0.0 ? TensorView{} : a.logits,
                          .loss_sum = a.loss_sum,
                          .logits = a.logits,
                          .row_max = a.row_max,
                          .exp_sum = a.exp_sum,
                          .target_logit = a.target_logit,
                          .targets = a.targets,
                          .vocab_begin = vocab.begin,
                          .vocab_valid = vocab.count,
                          .d_loss = d_loss},
                         exec);
}

}  // namespace stoa
