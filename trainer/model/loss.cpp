#include "trainer/model/loss.h"

#include <algorithm>

#include "kernels/cross_entropy.h"
#include "kernels/matmul.h"
#include "parallel/collectives.h"
#include "trainer/model/chunk_sum.h"

namespace stoa {
namespace {

// Cross-entropy of the rows whose logits are in `logits`; they become d_logits.
void chunk_loss(const Activations& a, const LocalDims& dims, TensorView logits,
                ConstTensorView targets, double d_loss, const Communicator& tp, const Exec& exec) {
    const std::int64_t rows = logits.rows();
    const ShardRange& vocab = dims.vocab;
    const TensorView row_max = a.row_max.slice_rows(0, rows);
    // one message for both sums: they lie side by side in the plan
    const TensorView sums{a.exp_sum.data, a.exp_sum.dtype, {2, rows}, a.exp_sum.device};
    const TensorView exp_sum = sums.slice_rows(0, 1).reshaped({rows});
    const TensorView target_logit = sums.slice_rows(1, 1).reshaped({rows});
    cross_entropy_row_max({.row_max = row_max, .logits = logits, .vocab_valid = vocab.count}, exec);
    all_reduce(row_max, ReduceOp::max, tp,
               exec.stream);  // tp: the row's maximum over the whole vocabulary
    cross_entropy_exp_sum({.exp_sum = exp_sum,
                           .target_logit = target_logit,
                           .logits = logits,
                           .row_max = row_max,
                           .targets = targets,
                           .vocab_begin = vocab.begin,
                           .vocab_valid = vocab.count,
                           .chunk = vocab.local / dims.chunks},
                          exec);
    all_reduce(sums, ReduceOp::sum, tp, exec.stream);  // tp: normaliser and the target's logit
    cross_entropy_finish({.d_logits = d_loss == 0.0 ? TensorView{} : logits,
                          .loss_sum = a.loss_sum,
                          .logits = logits,
                          .row_max = row_max,
                          .exp_sum = exp_sum,
                          .target_logit = target_logit,
                          .targets = targets,
                          .vocab_begin = vocab.begin,
                          .vocab_valid = vocab.count,
                          .d_loss = d_loss},
                         exec);
}

}  // namespace

void loss_forward_backward(TrainState& s, double d_loss, const Communicator& tp, const Exec& exec) {
    const Activations& a = s.acts;
    const TensorView w = s.model.work.lm_head, d_w = s.model.grads.lm_head;
    for (std::int64_t begin = 0; begin < a.h_final.rows(); begin += kLossChunk) {
        const std::int64_t rows = std::min(kLossChunk, a.h_final.rows() - begin);
        const TensorView h = a.h_final.slice_rows(begin, rows);
        const TensorView logits = a.logits.slice_rows(0, rows);  // (rows, vocab_local)
        matmul({.c = logits, .a = h, .b = w, .transpose_b = true}, exec);
        chunk_loss(a, s.dims, logits, a.targets.slice_rows(begin, rows), d_loss, tp, exec);
        if (d_loss == 0.0) continue;
        const bool add = s.shard_micro_batch > 0 || begin > 0;
        matmul({.c = d_w,
                .a = logits,
                .b = h,
                .transpose_a = true,
                .accumulate = add,
                .chain = s.dims.elastic,
                .rounding = grad_rounding(s.model, d_w, s.grad_pass, begin)},
               exec);
        const auto input_gradient = [&](std::int64_t chunk, TensorView out) {
            const auto [first, count] = chunk_span(s.dims.vocab.local, s.dims.chunks, chunk);
            matmul({.c = out, .a = logits, .b = w, .k_begin = first, .k_count = count}, exec);
        };
        sum_chunks(a.scratch.stream.slice_rows(begin, rows), 0, s.dims.chunks, a.scratch,
                   input_gradient, exec);
    }
}

}  // namespace stoa
