// The gradients of our own attention: three kernels, no sum by more than one thread.
#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/device.h"
#include "kernels/device_scratch.h"

namespace stoa::cuda {
namespace {

using namespace attention;

/// delta[batch entry, head, query] = sum of d_out * out. 16 threads a row.
template <class T, class W = Wide<T>>
STOA_KERNEL void delta_kernel(W* delta, const T* d_out, const T* out, Sizes n) {
    const std::int64_t i = global_group();
    if (i >= n.batch * n.n_heads * n.q_len) return;
    const std::int64_t t = i % n.q_len, h = i / n.q_len % n.n_heads, b = i / n.q_len / n.n_heads;
    const std::int64_t at = (b * n.q_len + t) * n.q_row() + h * n.dim;
    const W sum = lane_sum<W>(n.dim, [&](std::int64_t c) {
        return static_cast<W>(widen(d_out[at + c])) * static_cast<W>(widen(out[at + c]));
    });
    if (thread_index() % kLanes == 0) delta[i] = sum;
}

/// Block (batch entry, head, 16 queries): d_q = scale d_s k, d_s = p (d_out v^T - delta).
template <class T, class W = Wide<T>>
STOA_KERNEL void d_q_kernel(T* d_q, const T* d_out, const W* lse, const W* delta, const T* q,
                            const T* k, const T* v, const std::int32_t* key_begin,
                            const std::int32_t* key_end, Sizes n, W scale) {
    SharedMemory memory;
    const Shared<W> stage = memory.array<W>(kStages), d_scores = memory.array<W>(kScores);
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
    const std::int64_t at_row = (b * n.n_heads + h) * n.q_len + first_row + row;
    const W log_sum = here ? lse[at_row] : W{0}, shift = here ? delta[at_row] : W{0};
    W result[kMostColumns] = {};
    int turn = 0;
    for (std::int64_t tile = span.first / kTile * kTile; tile < span.last; tile += kTile) {
        const int keys = clamp(n.k_len - tile, 0, kTile);
        const std::int64_t at_tile = at_kv + tile * n.kv_row();
        W products[kPairs] = {}, d_p[kPairs] = {};
        add_products<W, T>(products, {q + at_q, n.q_row(), rows}, {k + at_tile, n.kv_row(), keys},
                           n.dim, stage, turn);
        add_products<W, T>(d_p, {d_out + at_q, n.q_row(), rows}, {v + at_tile, n.kv_row(), keys},
                           n.dim, stage, turn);
        for (int i = 0; i < kPairs; ++i) {
            const W p = fast_exp(products[i] * scale - log_sum);
            d_scores.write(row * kLd + column + kPerRow * i, p * (d_p[i] - shift));
        }
        sync_block();
        const int from = here ? clamp(begin[row] - tile, 0, keys) : 0;
        const int to = here ? clamp(end[row] - tile, from, keys) : 0;
        for (int j = from; j < to; ++j) {
            const W d_s = d_scores.read(row * kLd + j);
            const T* const key = k + at_tile + j * n.kv_row();
            for (int i = 0; i < kMostColumns; ++i)
                if (column + kPerRow * i < n.dim)
                    result[i] += d_s * static_cast<W>(widen(key[column + kPerRow * i]));
        }
    }
    if (!here) return;
    for (int i = 0; i < kMostColumns; ++i)
        if (column + kPerRow * i < n.dim)
            d_q[at_q + row * n.q_row() + column + kPerRow * i] = narrow_to<T>(result[i] * scale);
}

/// Block (batch entry, kv head, 16 keys): d_v = p^T d_out and d_k = scale d_s^T q over the heads of
/// the group, one after the other, and of each the queries from the first on.
template <class T, class W = Wide<T>>
STOA_KERNEL void d_kv_kernel(T* d_k, T* d_v, const T* d_out, const W* lse, const W* delta,
                             const T* q, const T* k, const T* v, const std::int32_t* key_begin,
                             const std::int32_t* key_end, Sizes n, W scale) {
    SharedMemory memory;
    const Shared<W> stage = memory.array<W>(kStages), weights = memory.array<W>(kScores),
                    d_scores = memory.array<W>(kScores);
    const std::int64_t tiles = (n.k_len + kRows - 1) / kRows;
    const std::int64_t kv = block_index() / tiles % n.n_kv_heads,
                       b = block_index() / tiles / n.n_kv_heads;
    const std::int64_t first_key = block_index() % tiles * kRows;
    const int keys = clamp(n.k_len - first_key, 0, kRows);
    const std::int64_t at_kv = (b * n.k_len + first_key) * n.kv_row() + kv * n.dim;
    const int row = thread_index() / kPerRow, column = thread_index() % kPerRow;
    const std::int64_t key = first_key + row;
    const bool here = row < keys;
    W k_sum[kMostColumns] = {}, v_sum[kMostColumns] = {};
    int turn = 0;
    for (std::int64_t h = kv * n.group(); h < (kv + 1) * n.group(); ++h)
        for (std::int64_t tile = 0; tile < n.q_len; tile += kTile) {
            const int queries = clamp(n.q_len - tile, 0, kTile);
            const std::int32_t* const begin = key_begin + b * n.q_len + tile;
            const std::int32_t* const end = key_end + b * n.q_len + tile;
            const Span span = span_of(begin, end, queries, n.k_len);
            if (span.last <= first_key || span.first >= first_key + keys) continue;
            const std::int64_t at_q = (b * n.q_len + tile) * n.q_row() + h * n.dim;
            const std::int64_t at_row = (b * n.n_heads + h) * n.q_len + tile;
            W products[kPairs] = {}, d_p[kPairs] = {};
            add_products<W, T>(products, {k + at_kv, n.kv_row(), keys},
                               {q + at_q, n.q_row(), queries}, n.dim, stage, turn);
            add_products<W, T>(d_p, {v + at_kv, n.kv_row(), keys},
                               {d_out + at_q, n.q_row(), queries}, n.dim, stage, turn);
            for (int i = 0; i < kPairs; ++i) {
                const int j = column + kPerRow * i;
                const W log_sum = j < queries ? lse[at_row + j] : W{0};
                const W shift = j < queries ? delta[at_row + j] : W{0};
                const W p = fast_exp(products[i] * scale - log_sum);
                weights.write(row * kLd + j, p);
                d_scores.write(row * kLd + j, p * (d_p[i] - shift));
            }
            sync_block();
            for (int j = 0; j < queries && here; ++j) {
                if (key < begin[j] || key >= end[j]) continue;
                const W p = weights.read(row * kLd + j), d_s = d_scores.read(row * kLd + j);
                const std::int64_t at = at_q + j * n.q_row();
                for (int i = 0; i < kMostColumns; ++i) {
                    const int c = column + kPerRow * i;
                    if (c >= n.dim) continue;
                    v_sum[i] += p * static_cast<W>(widen(d_out[at + c]));
                    k_sum[i] += d_s * static_cast<W>(widen(q[at + c]));
                }
            }
        }
    if (!here) return;
    for (int i = 0; i < kMostColumns; ++i) {
        const int c = column + kPerRow * i;
        if (c >= n.dim) continue;
        d_k[at_kv + row * n.kv_row() + c] = narrow_to<T>(k_sum[i] * scale);
        d_v[at_kv + row * n.kv_row() + c] = narrow_to<T>(v_sum[i]);
    }
}

}  // namespace

void own_attention_backward(const AttentionBackwardArgs& a, Stream stream) {
    require_columns(a.q);
    const Sizes n = sizes_of(a.q, a.k);
    dispatch_dtype(a.q.dtype, [&]<Element T>(T) {
        using W = Wide<T>;
        const std::int64_t rows = n.batch * n.n_heads * n.q_len;
        const Scratch scratch(stream, attention_delta_bytes(a.q));
        W* const delta = scratch.as<W>();
        const T *const d_out = a.d_out.as<T>().data(), *const q = a.q.as<T>().data(),
                       *const k = a.k.as<T>().data(), *const v = a.v.as<T>().data();
        const W* const lse = a.lse.as<W>().data();
        const std::int32_t *const begin = a.key_begin.as<std::int32_t>().data(),
                                  *const end = a.key_end.as<std::int32_t>().data();
        launch({.name = "attention_backward: delta",
                .blocks = blocks_for(rows * kLanes, kThreads),
                .threads = kThreads,
                .stream = stream},
               delta_kernel<T>, delta, d_out, a.out.as<T>().data(), n);
        launch({.name = "attention_backward: d_q",
                .blocks = n.batch * n.n_heads * blocks_for(n.q_len, kRows),
                .threads = kBlock,
                .stream = stream,
                .shared_bytes = kSharedBytes<W>},
               d_q_kernel<T>, a.d_q.as<T>().data(), d_out, lse, delta, q, k, v, begin, end, n,
               a.scale);
        launch({.name = "attention_backward: d_k, d_v",
                .blocks = n.batch * n.n_kv_heads * blocks_for(n.k_len, kRows),
                .threads = kBlock,
                .stream = stream,
                .shared_bytes = kSharedBytes<W>},
               d_kv_kernel<T>, a.d_k.as<T>().data(), a.d_v.as<T>().data(), d_out, lse, delta, q, k,
               v, begin, end, n, a.scale);
    });
}

}  // namespace stoa::cuda
