#pragma once
// What decoding keeps of the tokens so far, layer by layer, as the layer attends: all keys and
// values, those with the tree over them, or the window and the kept ones. A query gets the bits
// that the training forward would give it, however the tokens came.
#include <cstdint>
#include <vector>

#include "kernels/importance_cache.h"
#include "kernels/tree_cache.h"
#include "trainer/model/attend.h"
#include "trainer/model/transformer.h"

namespace stoa {

/// Of this tp rank's heads. One of the three, by the layer's kind.
struct LayerCache {
    Tensor k, v;                           // dense: (batch, capacity, n_kv_heads, head_dim)
    std::vector<TreeCache> trees;          // tree: by batch entry
    std::vector<ImportanceCache> windows;  // importance and window: by batch entry
};
struct KvCache {
    std::vector<LayerCache> layers;
    std::int64_t batch = 0, capacity = 0;
};
KvCache make_kv_cache(const TrainState& s, std::int64_t batch, std::int64_t capacity);
std::int64_t kv_cache_bytes(const KvCache& cache);

/// The first rows[b] of the c.acts.seq_len rows of each batch entry b go on where the cache ends:
/// appends their s.k and s.v, and fills s.attn from s.q. The other rows are padding.
/// Dense layers store and read rows where c.acts.positions, key_begin and key_end say.
/// comm: none     errors: ShapeError past the capacity
void cache_attend(LayerCache& cache, const BlockContext& c, const BlockWeights& w,
                  const BlockSaved& s, const std::vector<std::int64_t>& rows);

}  // namespace stoa
