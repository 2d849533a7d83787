#pragma once
#include "kernels/core/buffer.h"
#include "kernels/core/exec.h"
#include "kernels/importance_attention.h"

namespace stoa {

/// What importance attention keeps of one sequence (one document) while it is decoded: the keys
/// that a coming query may see. Of constant size, however long the sequence is. Per kv head
/// `far_keys` rows of keys that have left the window, sinks and then the kept ones, oldest first,
/// and behind room for sinks + keep of them the window, `window_keys` rows from `window_begin` on.
/// The numbers are functions of the length, on the host; the tensors lie where the ops run.
struct ImportanceCache {
    KeyRule rule;
    std::int64_t length = 0;  // tokens so far
    std::int64_t far_keys = 0, window_begin = 0, window_keys = 0;
    Tensor k, v;        // (n_kv_heads, rows, head_dim)
    Tensor gate;        // (n_kv_heads, rows) Wide
    Tensor importance;  // (n_kv_heads, rows) fp64: holds fp32 exactly
};
/// dtype: of k and v, fp32 | bf16 | fp16 | fp64     errors: ShapeError, MemoryError, DeviceError
ImportanceCache make_importance_cache(const KeyRule& rule, std::int64_t n_kv_heads,
                                      std::int64_t head_dim, DType dtype, Device device = {});
std::int64_t importance_cache_bytes(const ImportanceCache& cache);

/// Appends q_len tokens to the cache, and attends from each as importance_attention_forward does
/// from the same tokens of the whole sequence on the same device: the same bits, token by token or
/// in parts of any length. A part of more than one token takes working memory of its own length.
/// shapes: q, out (q_len, n_heads, head_dim); k, v (q_len, n_kv_heads, head_dim); gate, importance
///         (q_len, n_kv_heads), importance absent where keep = 0; sink_logit (n_heads); gate and
///         sink_logit absent or given, the same in every call
/// dtype:  q, k, v, out as the cache; gate, sink_logit Wide; importance fp32 | fp64
/// comm:   none     errors: ShapeError
struct ImportanceCacheArgs {
    TensorView out;
    ConstTensorView q, k, v, gate, importance, sink_logit;
    double scale = 1.0;
};
void importance_cache_attend(ImportanceCache& cache, const ImportanceCacheArgs& args,
                             const Exec& exec);

/// Appends tokens whose queries are answered elsewhere: leaves what importance_cache_attend leaves.
/// O(log keep) per token; what goes over the whole cache is done once a call.
/// shapes, dtype: as ImportanceCacheArgs     comm: none     errors: ShapeError
struct ImportanceCacheKeys {
    ConstTensorView k, v, gate, importance;
};
void importance_cache_append(ImportanceCache& cache, const ImportanceCacheKeys& keys,
                             const Exec& exec);

}  // namespace stoa
