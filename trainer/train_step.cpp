#include "trainer/train_step.h"

#include <algorithm>
#include <cmath>

#include "kernels/elementwise.h"
#include "parallel/collectives.h"
#include "trainer/model/loss.h"
#include "trainer/optimizer.h"

namespace stoa {
namespace {

std::int64_t count_valid(const std::vector<MicroBatch>& micro_batches) {
    std::int64_t n = 0;
    for (const MicroBatch& mb : micro_batches)
        n += mb.valid_tokens();
    return n;
}

// One message for all that every rank must decide alike.
struct Decisions {
    bool skip;
    StopRequest stop;
    bool save_due;
};
Decisions agree_decisions(Decisions mine, const Communicator& world) {
    std::int32_t flags[3] = {mine.skip, static_cast<std::int32_t>(mine.stop), mine.save_due};
    const TensorView view{reinterpret_cast<std::byte*>(flags), DType::int32, {3}, {}};
    all_reduce(view, ReduceOp::max, world, {});
    return {flags[0] != 0, static_cast<StopRequest>(flags[1]), flags[2] != 0};
}

}  // namespace

StepResult train_step(TrainState& s, const StepInputs& in, const Mesh& mesh, const Exec& exec) {
    ModelState& model = s.model;
    zero(model.grad_flat, exec);
    const std::int64_t tokens =
        all_reduce_scalar(count_valid(in.micro_batches), ReduceOp::sum, mesh.dp);
    const double d_loss = 1.0 / static_cast<double>(std::max<std::int64_t>(tokens, 1));
    double loss_sum = 0.0;
    for (const MicroBatch& mb : in.micro_batches) {
        load_micro_batch(s, mb);
        zero(s.acts.loss_sum, exec);
        model_forward(s, mesh.tp, exec);
        loss_forward_backward(s.acts, s.dims, d_loss, mesh.tp, exec);
        model_backward(s, mesh.tp, exec);  // grads +=
        loss_sum += s.acts.loss_sum.as<double>()[0];
    }
    all_reduce(model.tp_partial_grads, ReduceOp::sum, mesh.tp,
               exec.stream);  // tp: q/k norms, heads of each rank
    all_reduce(model.grad_flat, ReduceOp::sum, mesh.dp, exec.stream);  // dp: all gradients
    loss_sum = all_reduce_scalar(loss_sum, ReduceOp::sum, mesh.dp);
    const double norm = std::sqrt(grad_sum_of_squares(model, mesh.tp, exec));
    const bool finite = std::isfinite(norm) && std::isfinite(loss_sum);
    const auto [skip, stop, save_due] =
        agree_decisions({.skip = !finite, .stop = in.stop, .save_due = in.save_due}, mesh.world);
    if (!skip)
        adamw_step(model, s.config.optimizer, in.lr,
                   clip_coefficient(norm, s.config.optimizer.max_norm), ++s.optimizer_step, exec);
    s.skipped_in_a_row = skip ? s.skipped_in_a_row + 1 : 0;
    return {.loss = loss_sum * d_loss,
            .grad_norm = norm,
            .valid_tokens = tokens,
            .skipped = skip,
            .stop = stop,
            .save_due = save_due};
}

}  // namespace stoa
