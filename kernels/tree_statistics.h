#pragma once
#include "kernels/core/tensor_view.h"
#include "kernels/tree_attention.h"

namespace stoa {

/// What the queries of a batch have read token by token beyond their local range, per document and
/// kv head, of the leaves that its last query could select. A first leaf that the sinks force is
/// no choice and does not count.
struct SelectionStatistics {
    std::int64_t selected = 0;  // leaves, each as often as a query has read it
    double entropy = 0.0;       // nats: -sum p log p, p a leaf's share of its document's selected
                                // leaves; mean over documents and kv heads that select any
    double mean_age_tokens = 0.0;  // from a query to the newest token of a leaf that it reads
    double dead_share = 0.0;       // of the leaves that could be selected, those that never are
};

/// A pure function of the selection; O(its size).
/// shapes: selection and key_begin as in TreeAttentionArgs     errors: ShapeError
SelectionStatistics tree_selection_statistics(const ConstTensorView& selection,
                                              const ConstTensorView& key_begin,
                                              const TreeRule& rule);

}  // namespace stoa
