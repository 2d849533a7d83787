#pragma once
// What the layers that select keys have selected in the last micro-batch, for the records.
#include <vector>

#include "kernels/tree_statistics.h"
#include "trainer/model/transformer.h"

namespace stoa {

struct LayerSelection {
    std::int64_t layer = 0;
    SelectionStatistics statistics;  // of leaves (tree), or of single tokens (importance)
};

/// Of this rank's kv heads. Layers that share one copy with another (full recompute) are left out:
/// it holds the selection of the first of them.     comm: none
std::vector<LayerSelection> layer_selections(const TrainState& s, const Exec& exec);

/// The same of expiry times (kernels/importance_attention.h): tokens that are kept behind the
/// window, each as often as a query sees it. shapes: expiry (batch, n_kv_heads, len), key_begin
/// (batch * len) int32
SelectionStatistics kept_statistics(const ConstTensorView& expiry, const ConstTensorView& key_begin,
                                    std::int64_t window, std::int64_t sinks);

}  // namespace stoa
