#pragma once
#include "kernels/core/exec.h"

namespace stoa {

// Cross-entropy over a vocabulary that is split by columns over tp. Three local steps; the caller
// reduces over tp between them: row_max --all_reduce(max)--> exp_sum --all_reduce(sum)--> finish.
// Column c of `logits` is token vocab_begin + c; columns >= vocab_valid are padding and take no
// part. A target < 0 marks a row without loss. shapes: logits (rows, vocab_local); the others
// (rows). dtype: logits fp32 | bf16 | fp64; row_max, exp_sum, target_logit Wide; targets int32;
// loss_sum fp64 (1)

/// row_max[r] = max over valid columns of logits[r]; the lowest finite value when there are none.
struct RowMaxArgs {
    TensorView row_max;
    ConstTensorView logits;
    std::int64_t vocab_valid = 0;
};
void cross_entropy_row_max(const RowMaxArgs& args, const Exec& exec);

/// exp_sum[r] = sum over valid columns of exp(logits - row_max), in chunks of `chunk` columns (0:
/// all) that are added as the tree of parallel/rank_sum.h, so that ranks with a part of the chunks
/// each get the same bits; target_logit[r] = logits[target], or 0 where the target lies on another
/// rank.
struct ExpSumArgs {
    TensorView exp_sum, target_logit;
    ConstTensorView logits, row_max, targets;
    std::int64_t vocab_begin = 0, vocab_valid = 0, chunk = 0;
};
void cross_entropy_exp_sum(const ExpSumArgs& args, const Exec& exec);

/// loss_sum += sum over rows with a target of log(exp_sum) + row_max - target_logit, each row (but
/// in fp64) rounded to a multiple of 2^-22: such sums are exact up to 2^31, in whatever order;
/// d_logits = d_loss * (softmax - one_hot), 0 for rows without target and padding. d_logits may be
/// logits; an empty view skips it (evaluation).
struct CrossEntropyArgs {
    TensorView d_logits, loss_sum;
    ConstTensorView logits, row_max, exp_sum, target_logit, targets;
    std::int64_t vocab_begin = 0, vocab_valid = 0;
    double d_loss = 1.0;
};
void cross_entropy_finish(const CrossEntropyArgs& args, const Exec& exec);

}  // namespace stoa
