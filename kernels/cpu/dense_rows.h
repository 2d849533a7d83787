#pragma once
// The rows of the importance attention that see all keys before them. Both passes come after the
// sparse ones: forward writes over these rows' results, backward adds to the sums.
#include <span>

#include "kernels/importance_attention.h"

namespace stoa::cpu {

/// Ascending tokens; none where the tensor is absent.
inline std::span<const std::int32_t> dense_rows_of(const ConstTensorView& rows,
                                                   std::int64_t batch) {
    if (rows.empty()) return {};
    return rows.row<std::int32_t>(batch);
}

/// Writes the rows of out and lse.
template <class T>
void dense_rows_forward(const ImportanceAttentionArgs& a);

/// Of one kv head: adds to d_k and d_v (len, padded dim) and d_gate (len), which hold the sparse
/// rows' sums, key by key over heads and rows in order; writes the rows of a.d_q, and a.far_mass,
/// by way of mass (len), null without it.
template <class T, class W = Wide<T>>
void dense_rows_backward(const ImportanceAttentionBackwardArgs& a, std::int64_t batch,
                         std::int64_t kv_head, W* d_k, W* d_v, W* d_gate, W* mass);

}  // namespace stoa::cpu
