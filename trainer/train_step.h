#pragma once
#include <vector>

#include "parallel/mesh.h"
#include "trainer/model/transformer.h"
#include "trainer/stop_signal.h"

namespace stoa {

struct StepInputs {
    std::vector<MicroBatch> micro_batches;  // of this dp rank; its tp ranks hold the same
    double lr = 0.0;
    StopRequest stop = StopRequest::none;  // this rank was signalled
    bool save_due = false;                 // this rank's clock says so
};
struct StepResult {
    double loss = 0.0;       // mean over all ranks' valid tokens
    double grad_norm = 0.0;  // before clipping
    std::int64_t valid_tokens = 0;
    bool skipped = false;                  // non-finite gradients: no update, on any rank
    StopRequest stop = StopRequest::none;  // some rank was signalled
    bool save_due = false;
};

/// One optimizer step.
/// comm: dp sum(valid tokens) | tp in model and loss | tp sum(q/k norm grads) | dp sum(grads), dp
///       sum(loss) | tp sum(grad_sq) | world max(skip, stop, save)
StepResult train_step(TrainState& s, const StepInputs& in, const Mesh& mesh, const Exec& exec);

}  // namespace stoa
