// Our own attention: plain arithmetic, every dtype, head_dim up to 256, any range of keys.
#include <cmath>

#include "kernels/cuda/attention_tiles.h"

namespace stoa::cuda {
namespace {

using namespace attention;

/// Block (batch entry, head, 16 queries). Of each query: the largest score so far, the sum of
/// exponentials and the output measured from it [online softmax, Milakov & Gimelshein 2018].
template <class T, class W = Wide<T>>
STOA_KERNEL void forward_kernel(T* out, W* lse, const T* q, const T* k, const T* v,
                                const std::int32_t* key_begin, const std::int32_t* key_end, Sizes n,
                                W scale) {
    SharedMemory memory;
    const Shared<W> stage = memory.array<W>(kStages), scores = memory.array<W>(kScores),
                    weights = memory.array<W>(kScores);
    const std::int64_t tiles = (n.q_len + kRows - 1) / kRows;
    const std::int64_t h = block_index() / tiles % n.n_heads, b = block_index() / tiles / n.n_heads;
    const std::int64_t first_row = block_index() % tiles * kRows;
    const int rows = clamp(n.q_len - first_row, 0, kRows);
    const std::int64_t at_q = (b * n.q_len + first_row) * n.q_row() + h * n.dim;
    const std::int64_t at_kv = b * n.k_len * n.kv_row() + h / n.group() * n.dim;
    const std::int32_t* const begin = key_begin + b * n.q_len + first_row;
    const std::int32_t* const end = key_end + b * n.q_len + first_row;
    const Span span = span_of(begin, end, rows, n.k_len);
    const int row = thread_index() / kPerRow, column = thread_index() % kPerRow;
    const bool here = row < rows;
    W max = lowest<W>(), sum = W{0}, result[kMostColumns] = {};
    int turn = 0;
    for (std::int64_t tile = span.first / kTile * kTile; tile < span.last; tile += kTile) {
        const int keys = clamp(n.k_len - tile, 0, kTile);
        W products[kPairs] = {};
        add_products<W, T>(products, {q + at_q, n.q_row(), rows},
                           {k + at_kv + tile * n.kv_row(), n.kv_row(), keys}, n.dim, stage, turn);
        for (int i = 0; i < kPairs; ++i)
            scores.write(row * kLd + column + kPerRow * i, products[i] * scale);
        sync_block();
        const int from = here ? clamp(begin[row] - tile, 0, keys) : 0;
        const int to = here ? clamp(end[row] - tile, from, keys) : 0;
        W top = max;
        for (int j = from; j < to; ++j) {
            const W x = scores.read(row * kLd + j);
            top = x > top ? x : top;
        }
        const W base = top == lowest<W>() ? W{0} : top, factor = fast_exp(max - base);
        for (int i = 0; i < kPairs; ++i) {
            const int j = column + kPerRow * i;
            weights.write(row * kLd + j, fast_exp(scores.read(row * kLd + j) - base));
        }
        sync_block();
        max = top;
        sum *= factor;
        for (W& x : result)
            x *= factor;
        for (int j = from; j < to; ++j) {
            const W p = weights.read(row * kLd + j);
            const T* const value = v + at_kv + (tile + j) * n.kv_row();
            sum += p;
            for (int i = 0; i < kMostColumns; ++i)
                if (column + kPerRow * i < n.dim)
                    result[i] += p * static_cast<W>(widen(value[column + kPerRow * i]));
        }
    }
    if (!here) return;
    const bool empty = sum == W{0};
    const W inverse = empty ? W{0} : W{1} / sum;
    for (int i = 0; i < kMostColumns; ++i)
        if (column + kPerRow * i < n.dim)
            out[at_q + row * n.q_row() + column + kPerRow * i] = narrow_to<T>(result[i] * inverse);
    if (column == 0)
        lse[(b * n.n_heads + h) * n.q_len + first_row + row] =
            empty ? lowest<W>() : max + std::log(sum);
}

}  // namespace

void own_attention_forward(const AttentionArgs& a, Stream stream) {
    require_columns(a.q);
    const Sizes n = sizes_of(a.q, a.k);
    dispatch_dtype(a.q.dtype, [&]<Element T>(T) {
        using W = Wide<T>;
        launch({.name = "attention_forward",
                .blocks = n.batch * n.n_heads * blocks_for(n.q_len, kRows),
                .threads = kBlock,
                .stream = stream,
                .shared_bytes = kSharedBytes<W>},
               forward_kernel<T>, a.out.as<T>().data(), a.lse.as<W>().data(), a.q.as<T>().data(),
               a.k.as<T>().data(), a.v.as<T>().data(), a.key_begin.as<std::int32_t>().data(),
               a.key_end.as<std::int32_t>().data(), n, a.scale);
    });
}

}  // namespace stoa::cuda
