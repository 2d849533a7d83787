#pragma once
// What the attention kernels take beside their arguments: memory that grows with the sequence. The
// threads keep it from call to call, so that a steady step allocates nothing; each kind of
// attention has its own. Tiles that stay in cache, and lists of kept keys, are not counted.
#include "kernels/importance_attention.h"
#include "kernels/tree_attention.h"

namespace stoa {

/// A forward and its backward over (batch, len) rows, on so many threads.
struct AttentionSizes {
    std::int64_t batch, len, n_heads, n_kv_heads, dim;
    DType dtype;  // of q, k, v
    int threads = 1;
};
/// Bytes that all threads take together, each one its part: those that come by no work take none.
std::int64_t dense_working_bytes(const AttentionSizes& sizes);
/// far_mass: as in ImportanceAttentionBackwardArgs.
std::int64_t importance_working_bytes(const AttentionSizes& sizes, const KeyRule& rule,
                                      bool far_mass);
/// Of rows that are one document each; shorter documents take about as much by token.
std::int64_t tree_working_bytes(const AttentionSizes& sizes, const TreeRule& rule);

/// Bytes that the threads of this process hold of it now.
std::int64_t held_working_bytes();

}  // namespace stoa
