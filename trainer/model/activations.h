#pragma once
// What a forward pass leaves for the backward, and the scratch both share.
#include <vector>

#include "kernels/core/arena.h"
#include "kernels/device_scratch.h"
#include "trainer/model/params.h"

namespace stoa {

// rows = micro_batch * seq_len throughout, own = rows / dims.row_ranks: those that this tp rank
// keeps (trainer/model/sequence.h). Formats: "attn" is formats.attention, "ffn" the layer's
// feed-forward format (8-bit in blocks), "res" formats.residual, "wide" formats.wide.

/// What block_backward reads. `none` keeps all of it until the block's backward; `selective` keeps
/// what matmuls and attention made, and makes h1, q, k, h2, act again from it; `full` keeps
/// nothing, but runs the block again. What is made again lies in one copy that the layers share.
struct BlockSaved {
    TensorView h1, rstd1;       // (rows, d_model) attn, (own): input norm
    TensorView q_pre, k_pre;    // (rows, q_cols), (rows, kv_cols) attn: before q/k norm
    TensorView rstd_q, rstd_k;  // (rows * n_heads), (rows * n_kv_heads)
    TensorView q, k, v;         // attn: q, k after norm and rope
    TensorView attn, lse;       // (rows, q_cols) attn, (micro_batch, n_heads, seq_len)
    // Of layers that select keys (kernels/importance_gate.h): (rows, n_kv_heads) wide.
    TensorView importance, key_gate;
    // What they selected, int32: of a tree (kernels/tree_attention.h), or expiry times, which local
    // windows have, too (kernels/importance_attention.h).
    TensorView selection;
    TensorView x_mid;  // (own, d_model) res: residual stream between attention and FFN
    TensorView rstd2;  // (own): post-attention norm
    Scaled h2;         // (rows, d_model) ffn, scaled along tokens: for the weights' gradient
    Scaled gate, up;   // (rows, d_ff) ffn, scaled along features
    Scaled act;        // (rows, d_ff) ffn, scaled along tokens
};

/// Rows that the feed-forward layers work on at a time: whole blocks of the quantiser and of the
/// GEMM's k, so that the chunks show in no bit.
constexpr std::int64_t kFfnChunk = 256;
/// Rows whose logits exist at a time; a multiple of the GEMM's k block, for the same reason.
constexpr std::int64_t kLossChunk = 512;

/// One copy, shared by all layers. chunk = min(rows, kFfnChunk).
struct BlockScratch {
    TensorView stream;          // (rows, d_model) wide: this tp rank's part of an output, or d_h
    TensorView d_attn, d_q;     // (rows, q_cols) attn
    TensorView d_k, d_v;        // (rows, kv_cols) attn
    TensorView d_gate, d_sink;  // (rows, n_kv_heads), (rows, n_heads) wide: where keys are selected
    TensorView d_importance;    // (rows, n_kv_heads) attn
    // Where importance has dense rows, of the layer at hand: their tokens, (micro_batch, dense
    // rows) int32; what they see of each token, then what importance learns from it, (rows,
    // n_kv_heads) wide.
    TensorView dense_rows, far_mass;
    TensorView h;                 // (chunk, d_model) wide: post-attention norm before rounding
    TensorView gate, up, act;     // (chunk, d_ff) wide: before rounding; gradients in backward
    Scaled h_row, act_row;        // (chunk, ...) e4m3 by rows: matmul operands of the forward
    Scaled d_gate_row, d_up_row;  // (chunk, d_ff) e4m3 by rows and by columns
    Scaled d_gate_col, d_up_col;
    Scaled d_y_row, d_y_col;       // (chunk, d_model) e4m3: gradient of the FFN's output
    std::vector<TensorView> tree;  // (rows, d_model) wide: right branches of sums over chunks
    TensorView whole;              // (rows, d_model) res: all ranks' rows of the stream or d_x
};

/// Where the rows of a micro-batch lie in the run, which is the same on every mesh, and what the
/// loss of a token counts: row b is slot first_slot + b of the step.
struct TrainingRows {
    std::uint64_t seed = 0;
    std::int64_t step = 0, first_slot = 0;
    double d_loss = 1.0;
};

struct Activations {
    std::int64_t micro_batch = 0, seq_len = 0;
    std::vector<TensorView> x;      // n_layers + 1 residual streams (own, d_model)
    std::vector<BlockSaved> saved;  // per layer; what is made again is the same view in all
    BlockScratch scratch;
    TensorView h_final, rstd_final;             // (rows, d_model) res, (own)
    TensorView logits;                          // (min(rows, kLossChunk), vocab_local) wide
    TensorView row_max, exp_sum, target_logit;  // (rows of a chunk)
    TensorView d_x;                             // (own, d_model) res: gradient of the stream
    // What the host reads of a step, side by side so that it is one copy: (n) int32.
    TensorView step_words;
    TensorView loss_sum, loss_total;  // (1) fp64 each: of a micro-batch, of the step's so far
    TensorView grad_squares;          // (kExactSumWords) int32
    // Gradients of the norm gains (input, post, input, ... final) by segment of tokens.
    TensorView norm_segments;  // (row_ranks, 2 n_layers + 1, segments of a rank, d_model) wide
    // Of all micro-batches of a dp shard, kept for its end where the embedding is the output
    // matrix, too: then its gradient has one order, whatever the micro-batch (absent: one
    // micro-batch).
    TensorView shard_d_x, shard_tokens;  // (shard rows, d_model) res, (shard rows) int32
    TensorView nonfinite;                // (2, n_layers) int32: Inf or NaN met by the FFN, by pass
    TensorView quantization_loss;        // (2, n_layers, 4) fp64: acts and grads, in sampled steps
    TensorView tokens, targets, positions, key_begin, key_end;  // (rows) int32
    // Of bf16 gradients: the word of this pass that their rounding on a device reads (GradPass).
    TensorView grad_call;  // (2) int32
};

Activations layout_activations(Placer& placer, const RunConfig& config, const LocalDims& dims,
                               std::int64_t micro_batch, std::int64_t seq_len);

/// Where a save keeps what this rank writes while training goes on; nothing with `blocking`, but
/// for a GPU, whose memory is written from the snapshot in any case.
TensorView layout_snapshot(Placer& placer, const RunConfig& config, const ModelState& state,
                           int tp_rank, int dp_rank, Device device = {});

/// The most that an op of a GPU holds beside its arguments while it runs.
struct PlannedScratch {
    std::string op;
    std::int64_t bytes = 0;
};
/// What decides a GPU's part of the plan beside its shapes.
struct GpuSetup {
    GpuLibraries has;
    bool nccl = false;  // the ranks' collectives can go from GPU to GPU
};

/// The whole plan of one rank: state, then the activations of the stage that needs most. Beside
/// this arena, what the attention kernels keep (kernels/working_memory.h): of each kind of
/// attention what the stage that needs most of it does. Of a GPU: the scratch of the op that needs
/// most in any stage (gpu_plan.h), for the ops of a stream follow one another.
struct MemoryPlan {
    std::vector<PlannedTensor> tensors;
    std::int64_t state_bytes = 0, activation_bytes = 0, kernel_bytes = 0;
    // Of a GPU: by op, largest first; and pinned host memory for the snapshot and for collectives
    // that go through the host.
    std::vector<PlannedScratch> scratch;
    std::int64_t host_bytes = 0, staging_bytes = 0;
    // Of a GPU, not in rank_bytes: at most this much scratch again, in the pool that the driver has
    // for graphs (block_graphs.h). An estimate.
    std::int64_t graph_bytes = 0;
    std::int64_t total_bytes() const { return state_bytes + activation_bytes; }
    std::int64_t rank_bytes() const { return total_bytes() + kernel_bytes; }
};
MemoryPlan plan_memory(const RunConfig& config, int tp_rank, int tp_size, int dp_rank = 0,
                       Device device = {}, const GpuSetup& gpu = {});
/// What lies beside the arena, a line each.
std::string describe_beside(const MemoryPlan& plan);
/// A table of the plan, largest first, per lifetime.
std::string describe_plan(const MemoryPlan& plan);
std::int64_t longest_sequence(const RunConfig& config);

}  // namespace stoa
