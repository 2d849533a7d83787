#include "trainer/model/sequence.h"

#include <algorithm>

#include "kernels/elementwise.h"
#include "parallel/collectives.h"

namespace stoa {
namespace {

// Rank r's rows of `all`.
TensorView rows_of(const TensorView& all, const LocalDims& d, std::int64_t r) {
    const std::int64_t rows = all.rows() / d.row_ranks;
    return all.reshaped({all.rows(), all.cols()}).slice_rows(r * rows, rows);
}

}  // namespace

TensorView own_rows(const TensorView& all, const LocalDims& d, const Communicator& tp) {
    return d.row_ranks == 1 ? all : rows_of(all, d, tp.rank());
}

void share_rows(const TensorView& all, const LocalDims& d, const Communicator& tp,
                const Exec& exec) {
    if (d.row_ranks == 1) return;
    std::vector<PartCopy> parts;
    for (int r = 0; r < tp.size(); ++r)
        parts.push_back({r, rows_of(all, d, r)});
    all_gather(parts, tp, exec.stream);
}

TensorView all_rows(const TensorView& own, const TensorView& whole, const LocalDims& d,
                    const Communicator& tp, const Exec& exec) {
    if (d.row_ranks == 1) return own;
    cast(own_rows(whole, d, tp), own, exec);
    share_rows(whole, d, tp, exec);
    return whole;
}

TensorView sum_rows(const TensorView& partial, const LocalDims& d, const Communicator& tp,
                    const Exec& exec) {
    if (d.row_ranks == 1) {
        all_reduce(partial, ReduceOp::sum, tp, exec.stream);
        return partial;
    }
    std::vector<PartSum> parts;
    for (int r = 0; r < tp.size(); ++r) {
        const TensorView rows = rows_of(partial, d, r);
        parts.push_back({r, rows, rows});
    }
    reduce_scatter(parts, SumOrder::tree, /*add=*/false, tp, exec.stream);
    return own_rows(partial, d, tp);
}

void RowSums::ready(std::int64_t begin, std::int64_t count) {
    if (!wire_.has_thread()) return;
    const TensorView chunk =
        partial_.reshaped({partial_.rows(), partial_.cols()}).slice_rows(begin, count);
    if (d_.row_ranks == 1) {
        last_ = wire_.queue->submit(
            [chunk, beside = wire_.beside](Stream stream) {
                all_reduce(chunk, ReduceOp::sum, *beside, stream);
            },
            exec_.stream);
        return;
    }
    const std::int64_t rows = partial_.rows() / d_.row_ranks;  // of a rank
    std::vector<PartSum> parts;
    for (std::int64_t at = begin; at < begin + count;) {
        const std::int64_t owner = at / rows, end = std::min(begin + count, (owner + 1) * rows);
        const TensorView part = chunk.slice_rows(at - begin, end - at);
        parts.push_back({static_cast<int>(owner), part, part});
        at = end;
    }
    last_ = wire_.queue->submit(
        [parts, beside = wire_.beside](Stream stream) {
            reduce_scatter(parts, SumOrder::tree, /*add=*/false, *beside, stream);
        },
        exec_.stream);
}

TensorView RowSums::finish() {
    if (!wire_.has_thread()) return sum_rows(partial_, d_, wire_.tp, exec_);
    wire_.queue->wait(last_, exec_.stream);
    return own_rows(partial_, d_, wire_.tp);
}

TensorView norm_segments_of(const Activations& a, const LocalDims& d, const Communicator& tp,
                            std::int64_t norm) {
    const TensorView& all = a.norm_segments;
    const std::int64_t rank = d.row_ranks == 1 ? 0 : tp.rank(), count = all.shape[2];
    return all.reshaped({all.numel() / d.d_model, d.d_model})
        .slice_rows((rank * all.shape[1] + norm) * count, count);
}

void add_norm_segments(ModelState& s, const TensorView& segments, const LocalDims& d,
                       const Communicator& tp, const Exec& exec) {
    const std::int64_t norms = segments.shape[1], count = segments.shape[2];
    share_rows(segments.reshaped({segments.numel() / d.d_model, d.d_model}), d, tp, exec);
    const auto gain = [&](std::int64_t n) {
        if (n == norms - 1) return s.grads.final_norm;
        const BlockWeights& g = s.grads.blocks[static_cast<std::size_t>(n / 2)];
        return n % 2 == 0 ? g.input_norm : g.post_norm;
    };
    const TensorView all = segments.reshaped({segments.numel() / d.d_model, d.d_model});
    for (std::int64_t n = 0; n < norms; ++n)
        for (std::int64_t r = 0; r < d.row_ranks; ++r)
            add_rows(gain(n), all.slice_rows((r * norms + n) * count, count), exec);
}

}  // namespace stoa
