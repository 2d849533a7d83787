#pragma once
#include <vector>

#include "checkpoints/saver.h"
#include "parallel/mesh.h"
#include "trainer/model/transformer.h"
#include "trainer/stop_signal.h"

namespace stoa {

struct StepInputs {
    std::vector<MicroBatch> micro_batches;  // of this dp rank; its tp ranks hold the same
    double lr = 0.0;
    std::int64_t step = 0;                  // steps done before this one
    StopRequest stop = StopRequest::none;   // this rank was signalled
    bool save_due = false;                  // this rank's clock says so
    SaveWords saving;                       // of this rank's save in flight
    const cuda::Event* snapshot = nullptr;  // the end of its copies from the GPU, if there are any
};
struct StepResult {
    double loss = 0.0;        // mean over all ranks' valid tokens
    double grad_norm = 0.0;   // before clipping, without the loss scale
    double loss_scale = 1.0;  // of this step
    std::int64_t valid_tokens = 0;
    bool skipped = false;   // no update, on any rank: non-finite gradients or a spike
    bool overflow = false;  // ... non-finite gradients
    SpikeVerdict spike;
    std::vector<Transition> transitions;  // of the precision policy, from the next step on
    /// Layers that met Inf or NaN while quantising, on any rank, in the order of the pass: the
    /// first is where it began, the others got it from there.
    std::vector<std::int64_t> forward_nonfinite, backward_nonfinite;
    StopRequest stop = StopRequest::none;  // some rank was signalled
    bool save_due = false;
    SaveWords saving;  // of all ranks
};

/// One optimizer step. Whether its gradients are finite is decided by one exchange of a few bytes
/// over the world, before anything of the step is written: no moment ever sees Inf or NaN.
/// comm: dp sum(valid tokens) | tp in model and loss | per dp shard of a rank, beside its backward:
///       dp sums of gradients, unit by unit | tp sum(q/k norm grads by head) | dp sum(loss)
///       | world sum(grad_sq) | world max(skip, stop, save, layer flags) | dp all_gather(updated
///       rows), beside the update; with zero: 3 before each block's use | dp sum(quantization
///       loss), in sampled steps
StepResult train_step(TrainState& s, const StepInputs& in, const Mesh& mesh, const Exec& exec);

}  // namespace stoa
