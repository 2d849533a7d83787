#pragma once
// What our own attention kernels share. A block takes 16 rows (queries, or keys in the gradients of
// k and v) against tiles of 32 of the other side, aligned to its row 0; slices of 32 columns pass
// through shared memory. A row's chain of sums skips what it does not see: its bits are those of
// its own keys, whatever else is in the call, and nothing that is not finite leaks from others.
#include <limits>

#include "kernels/core/fast_exp.h"
#include "kernels/cuda/lane_groups.h"
#include "kernels/cuda/sdpa.h"

namespace stoa::cuda::attention {

constexpr int kRows = 16, kTile = 32, kSlice = 32, kBlock = 128;
constexpr int kPerRow = kBlock / kRows;        // threads of a row
constexpr int kPairs = kTile / kPerRow;        // of a thread in one tile
constexpr int kMostColumns = 256 / kPerRow;    // of an output, of a thread
constexpr int kLd = kSlice + 1;                // rows of shared memory lie in different banks
constexpr int kStage = (kRows + kTile) * kLd;  // one slice of both sides
// Two of them, and the products of a tile; the last row ends without its gap.
constexpr int kStages = 2 * kStage - 1, kScores = kRows * kLd - 1;

template <class W>
constexpr int kSharedBytes = (2 * kStage + 2 * kRows * kLd) * static_cast<int>(sizeof(W)) + 64;

/// Sizes and strides, as the kernels take them.
struct Sizes {
    std::int64_t batch, q_len, k_len, n_heads, n_kv_heads, dim;
    STOA_HD std::int64_t group() const { return n_heads / n_kv_heads; }
    STOA_HD std::int64_t q_row() const { return n_heads * dim; }
    STOA_HD std::int64_t kv_row() const { return n_kv_heads * dim; }
};
inline Sizes sizes_of(const ConstTensorView& q, const ConstTensorView& k) {
    return {q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3]};
}

/// `count` rows of one head, `ld` apart.
template <class T>
struct HeadRows {
    const T* data;
    std::int64_t ld;
    int count;
};

/// sums[i] += row . tile row (column + 8 i), over dim, for the caller's row of 16. `turn` counts
/// slices: they alternate between two halves of `stage`, so that one barrier a slice is enough.
template <class W, class T>
STOA_DEVICE void add_products(W (&sums)[kPairs], const HeadRows<T>& rows, const HeadRows<T>& tile,
                              std::int64_t dim, const Shared<W>& stage, int& turn) {
    const int t = thread_index(), row = t / kPerRow, column = t % kPerRow;
    for (std::int64_t begin = 0; begin < dim; begin += kSlice) {
        const int at = turn++ % 2 * kStage;
        for (int i = t; i < (kRows + kTile) * kSlice; i += kBlock) {
            const int r = i / kSlice, c = i % kSlice;
            const HeadRows<T>& from = r < kRows ? rows : tile;
            const int from_row = r < kRows ? r : r - kRows;
            const bool there = from_row < from.count && begin + c < dim;
            stage.write(
                at + r * kLd + c,
                there ? static_cast<W>(widen(from.data[from_row * from.ld + begin + c])) : W{0});
        }
        sync_block();
        for (int c = 0; c < kSlice; ++c) {
            const W x = stage.read(at + row * kLd + c);
            for (int i = 0; i < kPairs; ++i)
                sums[i] += x * stage.read(at + (kRows + column + kPerRow * i) * kLd + c);
        }
    }
}

/// The keys that any of a block's rows sees.
struct Span {
    std::int64_t first, last;
};
STOA_DEVICE inline Span span_of(const std::int32_t* begin, const std::int32_t* end, int rows,
                                std::int64_t k_len) {
    Span s{k_len, 0};
    for (int r = 0; r < rows; ++r) {
        if (end[r] <= begin[r]) continue;
        s.first = begin[r] < s.first ? begin[r] : s.first;
        s.last = end[r] > s.last ? end[r] : s.last;
    }
    return s;
}
STOA_DEVICE inline int clamp(std::int64_t x, int low, int high) {
    return x < low ? low : x > high ? high : static_cast<int>(x);
}

template <class W>
STOA_DEVICE W lowest() {
    return -std::numeric_limits<W>::infinity();
}

inline void require_columns(const ConstTensorView& q) {
    require(q.shape[3] <= 256, "attention on CUDA: head_dim", "at most 256", q.shape.str());
}

}  // namespace stoa::cuda::attention
