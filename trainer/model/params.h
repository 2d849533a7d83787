#pragma once
// The parameters of the model: one table of logical tensors with Hugging Face names, each cut over
// tp, and the views that forward, backward and optimizer work on.
#include <cstdint>
#include <string>
#include <vector>

#include "checkpoints/checkpoint.h"
#include "configs/attention_config.h"
#include "configs/recipe.h"
#include "configs/run_config.h"
#include "kernels/core/arena.h"
#include "kernels/core/exec.h"
#include "kernels/core/rounding.h"
#include "parallel/comm_queue.h"
#include "parallel/shard.h"

namespace stoa {

/// What one rank computes with: logical sizes divided by tp, and the formats of the recipe.
struct LocalDims {
    std::int64_t d_model, n_heads, n_kv_heads, head_dim, d_ff;  // heads and d_ff: this rank's
    ShardRange vocab;                                           // this rank's rows of the embedding
    Formats formats;
    std::vector<DType> ffn;            // per layer: formats.ffn or formats.ffn_edge
    std::vector<Recompute> recompute;  // per layer
    // Of the stage at hand: which keys the queries of each layer see.
    AttentionConfig attention_rule;
    std::vector<LayerAttention> attention;  // per layer
    // Of the order of sums (parallel.determinism): chunks of heads, d_ff and vocabulary that this
    // rank holds and adds as a tree; micro-batches of one dp shard; whether gradients add up token
    // by token.
    std::int64_t chunks = 1, shard_micro_batches = 1;
    bool elastic = false;
    // tp ranks that share out the rows between attention and feed-forward (sequence.h), and how
    // many segments of a sequence sum the gradients of norm gains apart.
    std::int64_t row_ranks = 1, segments = 1;
    std::int64_t q_cols() const { return n_heads * head_dim; }
    std::int64_t kv_cols() const { return n_kv_heads * head_dim; }
};
LocalDims local_dims(const RunConfig& config, int tp_rank, int tp_size);
/// The attention of a stage (local_dims: of the first).
void set_attention(LocalDims& dims, const AttentionConfig& rule);

/// A tensor that may be 8-bit: then `scale` holds the exponents of its blocks (kernels/quantize.h).
struct Scaled {
    TensorView data, scale;
};

/// The weights of one block; the same struct holds their gradients.
struct BlockWeights {
    TensorView input_norm;      // (d_model)
    TensorView q, k, v;         // (q_cols, d_model), (kv_cols, d_model) x 2: cut by rows (heads)
    TensorView q_norm, k_norm;  // (head_dim)
    TensorView out;             // (d_model, q_cols): cut by columns
    // Of layers that select keys in some stage, else absent: the logit of seeing nothing, and the
    // importance of a token, its bias fp32.
    TensorView sinks;            // (n_heads): this rank's
    TensorView importance;       // (n_kv_heads, d_model): cut by rows
    TensorView importance_bias;  // (n_kv_heads): this rank's
    TensorView post_norm;        // (d_model)
    Scaled gate, up;             // (d_ff, d_model): cut by rows
    Scaled down;                 // (d_model, d_ff): cut by columns
};
struct Weights {
    TensorView embed;  // (vocab.local, d_model): cut by rows, padded
    std::vector<BlockWeights> blocks;
    TensorView final_norm;  // (d_model)
    TensorView lm_head;     // (vocab.local, d_model); the embedding itself when tied
};

enum class TpCut { replicated, rows, cols };

/// Rows of a tensor on a tp rank, whole blocks of 128, whose masters and moments one dp rank keeps.
struct OwnedRows {
    int dp_rank = 0;
    std::int64_t begin = 0, count = 0;
};

/// One row of the table. The views are this rank's shard.
struct Param {
    std::string name;  // "model.layers.0.self_attn.q_proj.weight"
    Shape global_shape;
    TpCut cut = TpCut::replicated;
    bool decay = false;     // weight decay: matrices, not norms
    double init_std = 0.0;  // 0: filled with `fill`
    double fill = 1.0;
    // Of a vector whose gradient each tp rank has for its own heads only: all heads, and whether it
    // holds one value for each (else all heads share it).
    std::int64_t heads = 0;
    bool per_head = false;
    DType format = DType::fp32;  // of the working copy
    ShardRange range;            // of the cut axis
    std::int64_t local_rows = 0;
    /// Who updates which rows, in order; nobody where each dp rank updates all (norms, zero: 0).
    std::vector<OwnedRows> owners;
    OwnedRows mine;
    TensorView master;      // the rows that are mine, as grad, m and v
    TensorView shard_grad;  // what backward writes: of the dp shard at hand, on this rank
    TensorView grad;        // what the optimizer reads: summed over shards and ranks
    /// work (all rows) holds the master where the formats agree; where it is `gathered` (zero: 3),
    /// in a buffer that blocks share, only between await_block and the use of another block.
    Scaled work, m, v;
    bool gathered = false;
    bool is_norm() const { return init_std == 0.0; }  // and other vectors
    std::int64_t head_elements() const { return per_head ? heads : heads * global_shape.numel(); }
    std::int64_t row_begin() const { return cut == TpCut::rows ? range.begin : 0; }
    std::int64_t col_begin() const { return cut == TpCut::cols ? range.begin : 0; }
    std::uint64_t key(std::uint64_t seed) const;  // of its random streams
};

/// What data parallel sums and gathers at once: the matrices of a block, the embedding, the output
/// matrix. Buffers are shared between blocks; -1: the unit has its own place.
struct Unit {
    std::size_t first = 0, count = 0;  // params
    std::int64_t grad_buffer = -1, work_buffer = -1;
    CommQueue::Ticket grad_ticket = 0, work_ticket = 0;  // of its last job (dp_traffic.h)
};

/// Everything that lives as long as the run, in one arena: masters, working copies, gradients,
/// moments.
struct ModelState {
    std::vector<Param> params;
    std::vector<Unit> units;  // unit l < n_layers is block l
    Weights work, grads;
    std::vector<std::int64_t> gathered;  // the block in each work buffer; -1: none
    /// What backward writes, flat: gradients of the norms (wide), and of the matrices (zero: 0, 1).
    TensorView norm_grads, matrix_grads;
    TensorView norm_sums;  // over the dp shards; the same memory where a rank has one shard
    /// The head of norm_sums: gradients of the first params by head: of q/k norm weights (heads,
    /// head_dim), of sinks and importance biases (heads). They are replicated, but each tp rank
    /// sees only its own heads; the rest is zero.
    TensorView head_sums;
    TensorView rope_cos, rope_sin;  // (max_positions, head_dim / 2)
};

/// Lists or places the state of dp rank `dp_rank` of config.parallel.dp. `max_positions`: longest
/// sequence of the run.
ModelState layout_model_state(Placer& placer, const RunConfig& config, const LocalDims& dims,
                              std::int64_t max_positions, int tp_rank, int tp_size,
                              int dp_rank = 0);

/// Which pass over which rows adds to the gradients: what their rounding draws from, where they are
/// bf16. The first micro-batch's first rows overwrite, to nearest.
struct GradPass {
    std::uint64_t seed = 0;
    std::int64_t step = 0, micro_batch = 0, dp_rank = 0;
    /// On a device: its word of step and micro-batch (call_of), which kernels read there.
    const std::uint64_t* device_call = nullptr;
};
/// Step and micro-batch, as StochasticRounding::call has them.
std::uint64_t call_of(const GradPass& pass);
/// For the sums of `grad`, a gradient of `state`, over the rows from `row` on. Off for other
/// formats.
StochasticRounding grad_rounding(const ModelState& state, const TensorView& grad,
                                 const GradPass& pass, std::int64_t row);

/// Fills masters from the seed (Philox keyed by parameter and logical element: the same on every
/// mesh), zeroes moments, fills the rope table and the working copies.
void init_model_state(ModelState& state, const RunConfig& config, const Exec& exec);

/// The rotary angles of a stage.
void fill_rope(const ModelState& state, const RunConfig& config, double stretch, const Exec& exec);

/// work = masters, rounded to nearest; 8-bit in blocks of 128 x 128: rows [begin, begin + count) of
/// those that are this rank's; begin is a multiple of 128. Nothing to do where both are one tensor,
/// or work is gathered.
void refresh_work_rows(const Param& p, std::int64_t begin, std::int64_t count, const Exec& exec);
/// Rows [begin, ...) of all rows of work, from masters of these rows.
void store_work(const Param& p, std::int64_t begin, ConstTensorView master, const Exec& exec);
void zero_grads(ModelState& state, const Exec& exec);
/// The gradients of the first params from those by head, in the order of the heads.
void fold_head_grads(ModelState& state, const Exec& exec);
/// Only what a first micro-batch adds to instead of overwriting: norm gains, and the embedding
/// where it is not the output matrix, too.
void zero_added_grads(ModelState& state, const Exec& exec);

/// Masters and moments as named shards, for the checkpoint rooms.
std::vector<TensorShard> checkpoint_shards(const ModelState& state);

/// Number of logical parameters.
std::int64_t count_parameters(const RunConfig& config);

}  // namespace stoa
