#pragma once
// Recipes: which format each kind of tensor is stored in. Plain policy, decided once per run.
#include "configs/run_config.h"
#include "kernels/core/numeric.h"

namespace stoa {

//            residual  attention  ffn    gradients  master  m     v
//   fp32     fp32      fp32       fp32   fp32       fp32    fp32  fp32
//   bf16     bf16      bf16       bf16   fp32       fp32    fp32  fp32    18 bytes a parameter
//   r30      bf16      fp16       e4m3   fp32       fp32    e4m3  bf16    12 (ffn) or 13
//   r45      bf16      fp16       e4m3   bf16       fp32    e4m3  bf16    10 or 11
//   r50      bf16      fp16       e4m3   bf16       fp24    e4m3  e4m3     8 or 9
//   fp64     fp64 throughout: the reference mode
struct Formats {
    DType wide = DType::fp32;       // sums, row statistics, norm gains and their gradients
    DType residual = DType::fp32;   // residual stream, embedding and output matrix
    DType attention = DType::fp32;  // q, k, v, attention output and their weights
    DType ffn = DType::fp32;        // gate, up, down and their inputs; e4m3 in blocks of 128
    DType ffn_edge = DType::fp32;   // the same in the first and last blocks
    DType grad = DType::fp32;       // of matrices; also what data parallel sums
    DType master = DType::fp32;
    DType m = DType::fp32, v = DType::fp32;
};
const char* recipe_name(Recipe recipe);
Formats formats_of(const PrecisionConfig& precision);
/// The format of one block's feed-forward layers.
DType ffn_format(const Formats& formats, const RunConfig& config, std::int64_t layer);

/// Whether sums keep one order on every mesh (parallel.determinism).
bool is_elastic(const RunConfig& config);
/// The virtual ranks whose order that is; without given sizes, and where sums may differ, those of
/// the mesh itself. With parallel.zero 2 and 3 each micro-batch is a dp shard of its own: nobody
/// keeps its gradients until the next one.
struct VirtualMesh {
    std::int64_t dp_shards, tp_chunks;
};
VirtualMesh virtual_mesh(const RunConfig& config, std::int64_t dp, std::int64_t tp);

/// What block `layer` computes again in backward. The ranges were checked by check_rules.
Recompute recompute_of(const RunConfig& config, std::int64_t layer);
/// "3" or "0-3" as [first, last]; false when it is neither.
bool parse_layer_range(const std::string& text, std::int64_t& first, std::int64_t& last);

}  // namespace stoa
