#pragma once
// Sequence parallel [Korthikanti et al. 2022]: where every feature of a row is needed and no other
// row (residual stream, norms), each tp rank keeps only its rows, rank after rank. An all-reduce
// becomes its two halves: sums go to the rank that keeps the row, and rows are gathered where a
// product begins. Without it (one row rank) rows are everywhere.
#include "kernels/core/exec.h"
#include "parallel/communicator.h"
#include "trainer/model/activations.h"

namespace stoa {

/// The rows of `all` that this rank keeps.
TensorView own_rows(const TensorView& all, const LocalDims& d, const Communicator& tp);

/// Own rows are in place; the other ranks' come.     comm: all_gather(tp), or none
void share_rows(const TensorView& all, const LocalDims& d, const Communicator& tp,
                const Exec& exec);

/// `own` with the rows of the others: in `whole`, or itself.     comm: as share_rows
TensorView all_rows(const TensorView& own, const TensorView& whole, const LocalDims& d,
                    const Communicator& tp, const Exec& exec);

/// The ranks' sum of `partial`, in place; returns the rows that are valid, which are own_rows.
/// comm: reduce_scatter(tp), or all_reduce(tp)
TensorView sum_rows(const TensorView& partial, const LocalDims& d, const Communicator& tp,
                    const Exec& exec);

/// Where backward adds up the gain of norm `norm` (2 l: input norm of block l, 2 l + 1: its
/// post-attention norm, 2 n_layers: final norm), by segment of this rank's rows: (segments,
/// d_model).
TensorView norm_segments_of(const Activations& a, const LocalDims& d, const Communicator& tp,
                            std::int64_t norm);
/// Gradients of the norm gains: sums over segments of tokens, of this micro-batch, added one after
/// the other to s.norm_grads. `segments`: (tp ranks of rows, norms, segments of a rank, d_model).
/// comm: all_gather(tp) of the segments, or none
void add_norm_segments(ModelState& s, const TensorView& segments, const LocalDims& d,
                       const Communicator& tp, const Exec& exec);

}  // namespace stoa
