#pragma once
#include <optional>

#include "configs/run_config.h"
#include "data/token_loader.h"
#include "kernels/core/exec.h"
#include "parallel/mesh.h"
#include "trainer/loss_scale.h"
#include "trainer/model/activations.h"
#include "trainer/model/block_graphs.h"
#include "trainer/model/params.h"
#include "trainer/precision_policy.h"
#include "trainer/spike_guard.h"

namespace stoa {

/// A value that fault tests put into the gradient of one layer's output: layer -1 is none.
struct Injection {
    std::int64_t layer = -1;
    float value = 0.0f;
};

/// Everything a rank trains with: one arena, placed by the plan.
struct TrainState {
    RunConfig config;
    LocalDims dims;
    Device device;
    Buffer arena;  // of the device: state, then activations
    Buffer host;   // of a GPU's run: the snapshot's memory
    ModelState model;
    TensorView snapshot;  // for saves beside the training, host memory; empty: they block
    Activations acts;     // placed for the current stage's seq_len
    std::int64_t state_bytes = 0;
    std::int64_t optimizer_step = 0;  // updates done: Adam's bias correction
    std::int64_t skipped_in_a_row = 0;
    LossScale loss_scale;
    PolicyState policy;
    SpikeGuard guard;
    bool sampling = false;               // this step measures what 8 bits lose, for the policy
    std::int64_t shard = 0;              // of this rank's dp shards: the first overwrites sums
    std::int64_t shard_micro_batch = 0;  // of its dp shard: the first overwrites gradients
    GradPass grad_pass;                  // what bf16 gradients draw their rounding from
    std::optional<TrainingRows>
        training_rows;    // of the micro-batch that is trained on, else absent
    Injection injection;  // fault tests only
    BlockGraphs graphs;   // on a GPU
};

/// Allocates the arena of plan_memory and places the state; parameters are initialised from the
/// seed.
TrainState make_train_state(const RunConfig& config, int tp_rank, int tp_size, const Exec& exec,
                            int dp_rank = 0);
/// The same without room for activations, which decoding brings itself (inference/pass.h).
TrainState make_inference_state(const RunConfig& config, int tp_rank, int tp_size,
                                const Exec& exec);
/// Places the activations of a stage behind the state.
void place_activations(TrainState& s, std::int64_t micro_batch, std::int64_t seq_len);
/// The attention and positions of a stage, for all that follows. Nothing to do within a stage.
void enter_stage(TrainState& s, const StageConfig& stage, const Exec& exec);
/// Copies a micro-batch into the arena: tokens, targets, positions, key ranges.
void load_micro_batch(TrainState& s, const MicroBatch& mb, const Exec& exec);

/// What the rounding of bf16 gradients draws from, for the micro-batch that is loaded.
void set_grad_pass(TrainState& s, GradPass pass, const Exec& exec);

/// Tokens to h_final.
/// comm: sum_rows(tp) of the embedding, then per block as block_forward; dp as await_block
void model_forward(TrainState& s, const Mesh& mesh, const Exec& exec);

/// Gradient of h_final (loss_forward_backward left it in the scratch) to gradients, which are added
/// to s.model.grads, or in a shard's first micro-batch written there (norm gains and embedding:
/// added). In a shard's last micro-batch the sums over dp start, block by block.
/// comm: sum_rows(tp) of d_h_final, per block as block_backward (+ recompute); dp as await_block
///       and start_grad_sum
void model_backward(TrainState& s, const Mesh& mesh, const Exec& exec);

}  // namespace stoa
