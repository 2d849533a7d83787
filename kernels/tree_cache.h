#pragma once
#include "kernels/core/buffer.h"
#include "kernels/core/exec.h"
#include "kernels/tree_attention.h"

namespace stoa {

/// The keys, values and gates of one sequence, for all kv heads of a layer, and the tree over them:
/// what decoding and chunked prefill keep. It gives a query the bits that tree_attention_forward
/// gives it on the same device, however the tokens came. A token costs O(head_dim) to append, a
/// query O(head_dim (window + leaf beam + fanout beam log len)) to answer.
/// Coded: a selected leaf is read in e4m3, each token's key and value with a power of two of its
/// own; local ranges and summaries are as ever. Whether a token is read so depends on the query
/// alone, so that again the bits do not depend on how the tokens came.
struct TreeCache {
    TreeRule rule;
    std::int64_t n_kv_heads = 0, head_dim = 0, capacity = 0, len = 0;
    DType dtype = DType::fp32;  // of q, k, v and out
    Device device{};            // of the memory; ops take it where their Exec is
    Buffer memory;
    std::int64_t together = 0;  // coded: how many tokens can be appended at once; else 0
    std::int64_t first = 0;     // coded: of the tokens before there are codes only
};

/// Some 2.4 Wide values per token, kv head and channel with leaves of 16; coded 0.4 and two bytes.
/// On a GPU keys and values stay in `dtype`: 2 of these and some 0.3 Wide ones.
std::int64_t tree_cache_bytes(const TreeRule& rule, std::int64_t n_kv_heads, std::int64_t head_dim,
                              std::int64_t capacity, DType dtype, Device device = {},
                              std::int64_t together = 0);
/// `together` > 0: coded.
/// errors: ShapeError (coded: also for fp64, or on a GPU), MemoryError, DeviceError
TreeCache make_tree_cache(const TreeRule& rule, std::int64_t n_kv_heads, std::int64_t head_dim,
                          std::int64_t capacity, DType dtype, Device device = {},
                          std::int64_t together = 0);

/// Adds tokens behind those that are there.
/// shapes: k, v (tokens, n_kv_heads, head_dim); gate (tokens, n_kv_heads) or absent
/// dtype:  k, v the cache's; gate Wide
/// errors: ShapeError, also when the capacity or `together` is exceeded
void tree_cache_append(TreeCache& cache, const ConstTensorView& k, const ConstTensorView& v,
                       const ConstTensorView& gate, const Exec& exec);

/// Queries of tokens [begin, begin + tokens), which have been appended; coded: at the last append.
/// shapes: q, out (tokens, n_heads, head_dim); sink_logit (n_heads) or absent
/// dtype:  q, out the cache's; sink_logit Wide     comm: none     errors: ShapeError
struct TreeCacheAttendArgs {
    TensorView out;
    ConstTensorView q, sink_logit;
    std::int64_t begin = 0;
    double scale = 1.0;
};
void tree_cache_attend(const TreeCache& cache, const TreeCacheAttendArgs& args, const Exec& exec);

}  // namespace stoa
