#pragma once
#include "kernels/core/exec.h"
#include "kernels/importance_attention.h"

namespace stoa {

/// What importance learns from the rows that saw all keys (dense_rows of the importance attention),
/// of every document and kv head by itself:
///   loss = weight KL(pbar || softmax(importance)),  pbar = far_mass / sum far_mass, a constant
///   d_importance_s = weight (softmax(importance)_s - pbar_s)
/// (of the importance that the selection reads: behind its clamp and bias) over the tokens that a
/// selection can keep: those behind the sinks that some query of the
/// document has behind its window. The others, and documents without far mass or without targets,
/// get 0. weight = d_loss x the document's targets: a target costs its own loss and the divergence
/// of its document, so that the sum over a step has the scale of the loss, however its rows are
/// spread.
/// O(batch len n_kv_heads). Sums go over ascending tokens, in fp64.
/// shapes: d_importance, importance (batch, len, n_kv_heads); key_begin, targets (batch * len)
///         int32, targets below 0: none
/// dtype:  d_importance, importance Wide     comm: none     errors: ShapeError
struct ImportanceDistilArgs {
    TensorView d_importance;  // holds far_mass on entry
    ConstTensorView importance, key_begin, targets;
    KeyRule rule;
    double d_loss = 1.0;
};
void importance_distil(const ImportanceDistilArgs& args, const Exec& exec);

}  // namespace stoa
