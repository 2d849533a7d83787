#pragma once
// The CUDA kernels behind kernels/*.h. Arguments are checked there; these only start the work, in
// the order of the stream. Views hold device memory.
//   Bits: as the CPU op, but for NaN payloads, all of fp64 that takes exp or a sum over rows in
//   parallel, and matmul and attention, whose sums have the order of the library or of our own
//   attention kernels (the same in every run of a shape).
#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/fused_quantize.h"
#include "kernels/importance_attention.h"
#include "kernels/importance_cache.h"
#include "kernels/importance_distil.h"
#include "kernels/importance_gate.h"
#include "kernels/matmul.h"
#include "kernels/quantize.h"
#include "kernels/random_normal.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "kernels/tree_attention.h"
#include "kernels/tree_cache.h"

namespace stoa::cuda {

void matmul(const MatmulArgs& args, Stream stream);
void attention_forward(const AttentionArgs& args, Stream stream);
void attention_backward(const AttentionBackwardArgs& args, Stream stream);
void rms_norm_forward(const RmsNormArgs& args, Stream stream);
void rms_norm_backward(const RmsNormBackwardArgs& args, Stream stream);
/// Computed on the host; waits for the stream.
void rope_table(TensorView cos, TensorView sin, const RopeAngles& angles, Stream stream);
void rope(const RopeArgs& args, Stream stream);
void swiglu_forward(const SwigluArgs& args, Stream stream);
void swiglu_backward(const SwigluBackwardArgs& args, Stream stream);
void embedding_forward(const EmbeddingArgs& args, Stream stream);
void embedding_backward(const EmbeddingBackwardArgs& args, Stream stream);
void cross_entropy_row_max(const RowMaxArgs& args, Stream stream);
void cross_entropy_exp_sum(const ExpSumArgs& args, Stream stream);
void cross_entropy_finish(const CrossEntropyArgs& args, Stream stream);
void zero(TensorView x, Stream stream);
void add(TensorView y, ConstTensorView a, ConstTensorView b, Stream stream);
void cast(TensorView y, ConstTensorView x, Stream stream);
void add_rows(TensorView sum, ConstTensorView x, Stream stream);
void sum_of_squares(TensorView out, ConstTensorView x, std::int64_t piece, Stream stream);
void flag_nonfinite(TensorView flag, ConstTensorView x, Stream stream);
void adamw(const AdamwArgs& args, Stream stream);
void quantize(const QuantizeArgs& args, Stream stream);
void dequantize(const DequantizeArgs& args, Stream stream);
/// Its sums of squares go in another order than the CPU's, the same in every run of a shape.
void quantization_loss(const QuantizationLossArgs& args, Stream stream);
void select_keys(const SelectKeysArgs& args, Stream stream);
void importance_attention_forward(const ImportanceAttentionArgs& args, Stream stream);
void importance_attention_backward(const ImportanceAttentionBackwardArgs& args, Stream stream);
void importance_distil(const ImportanceDistilArgs& args, Stream stream);
void importance_gate_forward(const ImportanceGateArgs& args, Stream stream);
void importance_gate_backward(const ImportanceGateBackwardArgs& args, Stream stream);
void tree_attention_forward(const TreeAttentionArgs& args, Stream stream);
void tree_attention_backward(const TreeAttentionBackwardArgs& args, Stream stream);
void quantize_two_way(const QuantizeTwoWayArgs& args, Stream stream);
void swiglu_quantize(const SwigluQuantizeArgs& args, Stream stream);
void swiglu_quantize_backward(const SwigluQuantizeBackwardArgs& args, Stream stream);
void rms_norm_quantize(const RmsNormQuantizeArgs& args, Stream stream);
void random_normal(const RandomNormalArgs& args, Stream stream);
// The caches of decoding. What they count is on the host: none waits for the stream.
void importance_cache_attend(ImportanceCache& cache, const ImportanceCacheArgs& args,
                             Stream stream);
void importance_cache_append(ImportanceCache& cache, const ImportanceCacheKeys& keys,
                             Stream stream);
std::int64_t tree_cache_bytes(const TreeRule& rule, std::int64_t n_kv_heads, std::int64_t head_dim,
                              std::int64_t capacity, DType dtype);
void tree_cache_append(TreeCache& cache, const ConstTensorView& k, const ConstTensorView& v,
                       const ConstTensorView& gate, Stream stream);
void tree_cache_attend(const TreeCache& cache, const TreeCacheAttendArgs& args, Stream stream);

}  // namespace stoa::cuda
