#pragma once
// What a forward pass leaves for the backward, and the scratch both share.
#include <vector>

#include "kernels/core/arena.h"
#include "trainer/model/params.h"

namespace stoa {

// rows = micro_batch * seq_len throughout.

/// Lives until the block's backward. With recompute: full there is one copy, refilled layer by
/// layer.
struct BlockSaved {
    TensorView h1, rstd1;       // (rows, d_model), (rows): input norm
    TensorView q_pre, k_pre;    // (rows, q_cols), (rows, kv_cols): before q/k norm
    TensorView rstd_q, rstd_k;  // (rows * n_heads), (rows * n_kv_heads)
    TensorView q, k, v;         // after norm and rope
    TensorView attn, lse;       // (rows, q_cols), (micro_batch, n_heads, seq_len)
    TensorView x_mid;           // (rows, d_model): residual stream between attention and FFN
    TensorView h2, rstd2;       // (rows, d_model), (rows): post-attention norm
    TensorView gate, up, act;   // (rows, d_ff)
};

/// One copy, shared by all layers.
struct BlockScratch {
    TensorView partial;  // (rows, d_model): this tp rank's part of an output, then the sum
    TensorView d_h;      // (rows, d_model)
    TensorView d_attn, d_q, d_k, d_v;  // (rows, q_cols) x 2, (rows, kv_cols) x 2
    TensorView d_gate, d_up, d_act;    // (rows, d_ff)
};

struct Activations {
    std::int64_t micro_batch = 0, seq_len = 0;
    std::vector<TensorView> x;      // n_layers + 1 residual streams: x[l] enters block l
    std::vector<BlockSaved> saved;  // per layer; all the same views with recompute: full
    BlockScratch scratch;
    TensorView h_final, rstd_final;             // (rows, d_model), (rows)
    TensorView logits;                          // (rows, vocab_local); becomes d_logits in place
    TensorView row_max, exp_sum, target_logit;  // (rows)
    TensorView d_x;                             // (rows, d_model): gradient of the residual stream
    TensorView loss_sum;                        // (1) fp64
    TensorView tokens, targets, positions, key_begin, key_end;  // (rows) int32
};

Activations layout_activations(Placer& placer, const RunConfig& config, const LocalDims& dims,
                               std::int64_t micro_batch, std::int64_t seq_len);

/// The whole plan of one rank: state, then the largest activations of any stage.
struct MemoryPlan {
    std::vector<PlannedTensor> tensors;
    std::int64_t state_bytes = 0, activation_bytes = 0;
    std::int64_t total_bytes() const { return state_bytes + activation_bytes; }
};
MemoryPlan plan_memory(const RunConfig& config, int tp_rank, int tp_size);
/// A table of the plan, largest first, per lifetime.
std::string describe_plan(const MemoryPlan& plan);
std::int64_t longest_sequence(const RunConfig& config);

}  // namespace stoa
