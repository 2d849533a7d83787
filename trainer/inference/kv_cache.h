#pragma once
// What decoding keeps of the tokens so far, layer by layer, as the layer attends: all keys and
// values, those with the tree over them, or the window and the kept ones. It lies on the state's
// device. A query gets the bits that the training forward would give it there, however the tokens
// came (dense layers on a GPU: cuda.md).
#include <cstdint>
#include <vector>

#include "kernels/importance_cache.h"
#include "kernels/tree_cache.h"
#include "trainer/model/attend.h"
#include "trainer/model/transformer.h"

namespace stoa {

/// Of tree layers: all tokens as they came, or those that a query reaches by selection only in 8
/// bits (kernels/tree_cache.h). Other layers have one form.
enum class CacheForm { wide, fp8 };

/// Of this tp rank's heads. One of the three, by the layer's kind.
struct LayerCache {
    Tensor k, v;                           // dense: (batch, capacity, n_kv_heads, head_dim)
    std::vector<std::int64_t> length;      // dense: tokens by batch entry
    std::vector<TreeCache> trees;          // tree: by batch entry
    std::vector<ImportanceCache> windows;  // importance and window: by batch entry
};
LayerCache make_layer_cache(const TrainState& s, std::size_t layer, std::int64_t batch,
                            std::int64_t capacity, CacheForm form = CacheForm::wide);
std::int64_t layer_cache_bytes(const LayerCache& cache);
/// Of one that is not made yet.
std::int64_t layer_cache_bytes(const TrainState& s, std::size_t layer, std::int64_t batch,
                               std::int64_t capacity);

/// Of all layers; or, where the dp ranks share one cache, of those that are this rank's turn. The
/// others are empty here.
struct KvCache {
    std::vector<LayerCache> layers;
    std::int64_t batch = 0, capacity = 0;
    int ranks = 1, rank = 0;
    int owner(std::int64_t layer) const { return static_cast<int>(layer % ranks); }
    bool holds(std::int64_t layer) const { return owner(layer) == rank; }
};
KvCache make_kv_cache(const TrainState& s, std::int64_t batch, std::int64_t capacity, int ranks = 1,
                      int rank = 0, CacheForm form = CacheForm::wide);
std::int64_t kv_cache_bytes(const KvCache& cache);

/// The first rows[b] of the c.acts.seq_len rows of each batch entry b go on where the cache ends:
/// appends their s.k and s.v, and fills s.attn from s.q. The other rows are padding.
/// Dense layers read where c.acts.key_begin and key_end say.
/// comm: none     errors: ShapeError past the capacity
void cache_attend(LayerCache& cache, const BlockContext& c, const BlockWeights& w,
                  const BlockSaved& s, const std::vector<std::int64_t>& rows);

// The same in two steps, where keys and queries lie on different ranks.
/// Of the tokens of some rows (batch * seq_len, n_kv_heads * head_dim); where the layer selects
/// keys also (batch * seq_len, n_kv_heads). BlockSaved has the same names.
struct KeyRows {
    TensorView k, v, importance, key_gate;
};
/// The first rows[b] of the rows of each batch entry b go behind what the cache holds.
/// comm: none     errors: ShapeError past the capacity
void cache_append(LayerCache& cache, const KeyRows& keys, const std::vector<std::int64_t>& rows,
                  const Exec& exec);
/// s.attn from s.q of tokens that have been appended, and others perhaps since: of entry b from
/// first[b] on, which c.acts.key_end says on the device. Not for windows, which have moved on.
/// comm: none     errors: ShapeError
void cache_query(const LayerCache& cache, const BlockContext& c, const BlockWeights& w,
                 const BlockSaved& s, const std::vector<std::int64_t>& rows,
                 const std::vector<std::int64_t>& first);

}  // namespace stoa
