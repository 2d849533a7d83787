#pragma once
// The CPU kernels behind kernels/*.h. Arguments are checked there; these only compute.
#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
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

namespace stoa::cpu {

void matmul(const MatmulArgs& args);
void rms_norm_forward(const RmsNormArgs& args);
void rms_norm_backward(const RmsNormBackwardArgs& args);
void rope_table(TensorView cos, TensorView sin, const RopeAngles& angles);
void rope(const RopeArgs& args);
void attention_forward(const AttentionArgs& args);
void attention_backward(const AttentionBackwardArgs& args);
void select_keys(const SelectKeysArgs& args);
void importance_attention_forward(const ImportanceAttentionArgs& args);
void importance_attention_backward(const ImportanceAttentionBackwardArgs& args);
void importance_distil(const ImportanceDistilArgs& args);
void importance_cache_attend(ImportanceCache& cache, const ImportanceCacheArgs& args);
void importance_cache_append(ImportanceCache& cache, const ImportanceCacheKeys& keys);
void tree_attention_forward(const TreeAttentionArgs& args);
void tree_attention_backward(const TreeAttentionBackwardArgs& args);
std::int64_t tree_cache_values(const TreeRule& rule, std::int64_t head_dim, std::int64_t capacity,
                               DType dtype, std::int64_t together);
void tree_cache_append(TreeCache& cache, const ConstTensorView& k, const ConstTensorView& v,
                       const ConstTensorView& gate);
void tree_cache_attend(const TreeCache& cache, const TreeCacheAttendArgs& args);
void swiglu_forward(const SwigluArgs& args);
void swiglu_backward(const SwigluBackwardArgs& args);
void embedding_forward(const EmbeddingArgs& args);
void embedding_backward(const EmbeddingBackwardArgs& args);
void cross_entropy_row_max(const RowMaxArgs& args);
void cross_entropy_exp_sum(const ExpSumArgs& args);
void cross_entropy_finish(const CrossEntropyArgs& args);
void zero(TensorView x);
void add(TensorView y, ConstTensorView a, ConstTensorView b);
void cast(TensorView y, ConstTensorView x);
void add_rows(TensorView sum, ConstTensorView x);
void importance_gate_forward(const ImportanceGateArgs& args);
void importance_gate_backward(const ImportanceGateBackwardArgs& args);
void sum_of_squares(ExactSum& out, ConstTensorView x, std::int64_t piece);
void flag_nonfinite(TensorView flag, ConstTensorView x);
void adamw(const AdamwArgs& args);
void quantize(const QuantizeArgs& args);
void dequantize(const DequantizeArgs& args);
void quantization_loss(const QuantizationLossArgs& args);
void random_normal(const RandomNormalArgs& args);

}  // namespace stoa::cpu
