#include "kernels/cross_entropy.h"

#include "kernels/cpu/ops.h"
#include "kernels/cuda/ops.h"

namespace stoa {
namespace {

void require_row_values(const ConstTensorView& t, const ConstTensorView& logits, const char* name) {
    require_numel(t, logits.rows(), name);
    require_dtype(t, wide_dtype(logits.dtype), name);
}
void require_valid(std::int64_t vocab_valid, const ConstTensorView& logits) {
    require(vocab_valid >= 0 && vocab_valid <= logits.cols(), "cross_entropy: vocab_valid",
            "within the columns of logits", std::to_string(vocab_valid));
}
void require_targets(const ConstTensorView& targets, const ConstTensorView& logits) {
    require_numel(targets, logits.rows(), "cross_entropy: targets");
    require_dtype(targets, DType::int32, "cross_entropy: targets");
}

}  // namespace

void cross_entropy_row_max(const RowMaxArgs& args, const Exec& exec) {
    require_row_values(args.row_max, args.logits, "cross_entropy: row_max");
    require_valid(args.vocab_valid, args.logits);
    exec.device.is_cuda() ? cuda::cross_entropy_row_max(args, exec.stream)
                          : cpu::cross_entropy_row_max(args);
}

void cross_entropy_exp_sum(const ExpSumArgs& args, const Exec& exec) {
    require_row_values(args.exp_sum, args.logits, "cross_entropy: exp_sum");
    require_row_values(args.target_logit, args.logits, "cross_entropy: target_logit");
    require_row_values(args.row_max, args.logits, "cross_entropy: row_max");
    require_targets(args.targets, args.logits);
    require_valid(args.vocab_valid, args.logits);
    require(args.chunk >= 0 && (args.chunk == 0 || args.logits.cols() % args.chunk == 0),
            "cross_entropy: chunk", "a divisor of the columns of logits",
            std::to_string(args.chunk));
    exec.device.is_cuda() ? cuda::cross_entropy_exp_sum(args, exec.stream)
                          : cpu::cross_entropy_exp_sum(args);
}

void cross_entropy_finish(const CrossEntropyArgs& args, const Exec& exec) {
    if (!args.d_logits.empty()) {
        require_shape(args.d_logits, args.logits.shape, "cross_entropy: d_logits");
        require_dtype(args.d_logits, args.logits.dtype, "cross_entropy: d_logits");
    }
    require_row_values(args.row_max, args.logits, "cross_entropy: row_max");
    require_row_values(args.exp_sum, args.logits, "cross_entropy: exp_sum");
    require_row_values(args.target_logit, args.logits, "cross_entropy: target_logit");
    require_targets(args.targets, args.logits);
    require_valid(args.vocab_valid, args.logits);
    require_numel(args.loss_sum, 1, "cross_entropy: loss_sum");
    require_dtype(args.loss_sum, DType::fp64, "cross_entropy: loss_sum");
    exec.device.is_cuda() ? cuda::cross_entropy_finish(args, exec.stream)
                          : cpu::cross_entropy_finish(args);
}

}  // namespace stoa
