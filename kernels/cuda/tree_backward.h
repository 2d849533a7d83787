#pragma once
// What the kernels of the tree attention's backward read and what they hand on.
#include "kernels/cuda/ops.h"
#include "kernels/cuda/tree_lists.h"

namespace stoa::cuda {

template <class T, class W = Wide<T>>
struct TreeBackward {
    TreeInputs<T> in;
    const T* d_out;
    const W *lse, *delta;  // (batch, n_heads, len)
    const std::int32_t* selection;
    const std::int32_t* ends;  // (batch, len): at a document's first token, where it ends
    QueryLists lists;
    W *d_mean_k, *d_mean_v, *d_log_mass;  // as TreeNodes; then the A, E, C of tree_attention.h

    STOA_DEVICE std::int64_t stat_at(std::int64_t batch, std::int64_t h, std::int64_t t) const {
        return (batch * in.n.n_heads + h) * in.n.len + t;
    }
};

/// d_k, d_v and d_gate of `a`, by way of the gradients of the summaries.
template <class T>
void tree_key_gradients(const TreeBackward<T>& b, const TreeAttentionBackwardArgs& a,
                        Stream stream);

/// Null where the tensor is absent.
template <class T>
T* values_of(const TensorView& t) {
    return t.empty() ? nullptr : t.as<T>().data();
}

}  // namespace stoa::cuda
