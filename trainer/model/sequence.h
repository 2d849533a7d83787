#pragma once
// Sequence parallel [Korthikanti et al. 2022]: where every feature of a row is needed and no other
// row (residual stream, norms), each tp rank keeps only its rows, rank after rank. An all-reduce
// becomes its two halves: sums go to the rank that keeps the row, and rows are gathered where a
// product begins. Without it (one row rank) rows are everywhere.
#include "kernels/core/exec.h"
#include "parallel/comm_queue.h"
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

/// The same sum, begun as the rows are finished, chunk by chunk: a queue with a thread sums one
/// chunk beside the products of the next. Without one (no queue, or no thread) it is sum_rows.
class RowSums {
public:
    /// Wire of tensor parallel: `beside` is used by `queue` alone.
    struct Wire {
        const Communicator& tp;
        const Communicator* beside = nullptr;
        CommQueue* queue = nullptr;
        bool has_thread() const { return queue != nullptr && queue->own_thread(); }
    };
    RowSums(const TensorView& partial, const LocalDims& d, const Wire& wire, const Exec& exec)
        : partial_(partial), d_(d), wire_(wire), exec_(exec) {}
    /// Rows [begin, begin + count) are this rank's last word. Each row is named once, on all ranks
    /// in the same chunks.     comm: as sum_rows, of these rows
    void ready(std::int64_t begin, std::int64_t count);
    /// The sum, when all rows are ready; returns own_rows.
    TensorView finish();

private:
    TensorView partial_;
    const LocalDims& d_;
    Wire wire_;
    const Exec& exec_;
    CommQueue::Ticket last_ = 0;
};

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
