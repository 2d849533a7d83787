// Attention without a matrix of scores [Dao et al. 2022; online softmax, Milakov & Gimelshein
// 2018]: a tile of queries passes the keys in tiles of kKeyTile, aligned to key 0, and keeps of
// each query its largest score so far, the sum of exponentials and the output measured from that.
// So a query's bits are those of its own keys, whatever else is in the call. All of it stays in L2.
// The threads divide heads and tiles of queries. Few queries (decoding) go another way with the
// same bits: keys lie in the vector lanes.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/ops.h"

namespace stoa::cpu {
namespace {

constexpr std::int64_t kTileRows = 256;  // queries that share packed keys: enters no bit
constexpr std::int64_t kFewRows = 16;    // so many do not fill the lanes

struct Sizes {
    std::int64_t batch, q_len, k_len, n_heads, n_kv_heads, dim;
    std::int64_t group() const { return n_heads / n_kv_heads; }
};
Sizes sizes_of(const AttentionArgs& a) {
    return {a.q.shape[0], a.q.shape[1], a.k.shape[1], a.q.shape[2], a.k.shape[2], a.q.shape[3]};
}

/// out / sum, lane by lane, and the logarithm.
template <class T, class W>
void finish(const AttentionArgs& a, LaneState<W>& s, std::int64_t batch, std::int64_t h,
            std::int64_t row, std::int64_t rows) {
    struct RowsTag;
    const std::int64_t dim = a.q.shape[3];
    W* const out = scratch<RowsTag, W>(kQueryLanes * dim);
    W* const lse = a.lse.as<W>().data() + (batch * a.q.shape[2] + h) * a.q.shape[1] + row;
    transpose(out, s.out, kQueryLanes, dim, kQueryLanes);
    for (std::int64_t r = 0; r < rows; ++r) {
        const bool empty = s.sum[r] == W{0};
        const W inverse = empty ? W{0} : W{1} / s.sum[r];
        lse[r] = empty ? -std::numeric_limits<W>::infinity() : s.max[r] + std::log(s.sum[r]);
        scale_all(out + r * dim, dim, inverse);
    }
    store_head<T>(a.out, batch, h, row, rows, out);
}

/// Queries [row, row + rows) of one head.
template <class T, class W = Wide<T>>
void forward_tile(const AttentionArgs& a, std::int64_t batch, std::int64_t h, std::int64_t row,
                  std::int64_t rows) {
    struct QueriesTag;
    struct OutTag;
    const Sizes n = sizes_of(a);
    const std::int64_t dim = n.dim, width = pad_width(rows), panels = width / kQueryLanes;
    const auto q = head_matrix<T>(a.q, batch, h), k = head_matrix<T>(a.k, batch, h / n.group()),
               v = head_matrix<T>(a.v, batch, h / n.group());
    W* const queries = scratch<QueriesTag, W>(width * dim);
    W* const out = scratch<OutTag, W>(width * dim);
    pack_right(queries, q.from_row(row), true, rows, dim);
    scale_all(queries, width * dim, static_cast<W>(a.scale));
    std::fill_n(out, width * dim, W{0});

    const std::int32_t* const begin = a.key_begin.as<std::int32_t>().data() + batch * n.q_len + row;
    const std::int32_t* const end = a.key_end.as<std::int32_t>().data() + batch * n.q_len + row;
    LaneState<W> states[kTileRows / kQueryLanes];
    std::int64_t first = n.k_len, last = 0;
    for (std::int64_t p = 0; p < panels; ++p) {
        LaneState<W>& s = states[p];
        const std::int64_t r = p * kQueryLanes;
        s.keys = lane_keys(begin + r, end + r, std::min(kQueryLanes, rows - r));
        std::fill_n(s.max, kQueryLanes, -std::numeric_limits<W>::infinity());
        std::fill_n(s.sum, kQueryLanes, W{0});
        s.q = queries + r * dim;
        s.out = out + r * dim;
        first = std::min(first, s.keys.first);
        last = std::max(last, s.keys.last);
    }
    for (std::int64_t t = first / kKeyTile * kKeyTile; t < last; t += kKeyTile) {
        const KeyTile<W> tile = pack_tile<T>(k, v, t, last, dim);
        for (std::int64_t p = 0; p < panels; ++p)
            attend_tile(states[p], tile, dim, [](W*, std::int64_t, std::int64_t) {});
    }
    for (std::int64_t p = 0; p < panels; ++p)
        finish<T>(a, states[p], batch, h, row + p * kQueryLanes,
                  std::min(kQueryLanes, rows - p * kQueryLanes));
}

/// Rows of scores, kKeyTile apart, row r against keys [from[r], to[r]) of a tile; the rest becomes
/// 0. What exponentials() and move_maximum() do, keys in the lanes.
template <class W>
void softmax_rows(W* scores, std::int64_t rows, const std::int64_t* from, const std::int64_t* to,
                  std::int64_t keys, W* max, W* sum, W* out, std::int64_t width) {
    vectorised([&] {
        for (std::int64_t r = 0; r < rows; ++r) {
            W *const s = scores + r * kKeyTile, *const o = out + r * width;
            const W top = lane_max<W>(to[r] - from[r], max[r],
                                      [&](std::int64_t j) { return s[from[r] + j]; });
            const W base = base_of(top), factor = fused_exp(max[r] - base);
            for (std::int64_t j = 0; j < keys; ++j)
                s[j] = fused_exp(s[j] - base);
            std::fill(s, s + from[r], W{0});
            std::fill(s + to[r], s + keys, W{0});
            max[r] = top;
            sum[r] *= factor;
            for (std::int64_t c = 0; c < width; ++c)
                o[c] *= factor;
        }
        // Each row's sum is one chain; beside each other they need not wait.
        W total[kFewRows] = {};
        for (std::int64_t j = 0; j < keys; ++j)
            for (std::int64_t r = 0; r < rows; ++r)
                total[r] += scores[r * kKeyTile + j];
        for (std::int64_t r = 0; r < rows; ++r)
            sum[r] += total[r];
    });
}

/// The query heads of one kv head, where queries are few. Rows (t, head of the group).
template <class T, class W = Wide<T>>
void forward_few(const AttentionArgs& a, std::int64_t batch, std::int64_t kv_head) {
    struct QueriesTag;
    struct ScoresTag;
    struct OutTag;
    struct ResultTag;
    const Sizes n = sizes_of(a);
    const std::int64_t dim = n.dim, group = n.group(), rows = n.q_len * group;
    const std::int64_t width = pad_width(dim);
    const auto k = head_matrix<T>(a.k, batch, kv_head), v = head_matrix<T>(a.v, batch, kv_head);
    W* const queries = scratch<QueriesTag, W>(kFewRows * dim);
    W* const scores = scratch<ScoresTag, W>(kFewRows * kKeyTile);
    W* const out = scratch<OutTag, W>(kFewRows * width);
    W* const k_packed = scratch<TileKTag, W>((kKeyTile + kMaxMr) * dim);
    W* const v_packed = scratch<TileVTag, W>(kKeyTile * width);
    W max[kFewRows], sum[kFewRows] = {};
    std::int64_t begin[kFewRows], end[kFewRows], from[kFewRows], to[kFewRows], first = n.k_len,
                                                                               last = 0;
    for (std::int64_t r = 0; r < rows; ++r) {
        const std::int64_t t = r / group;
        const T* const q = head_matrix<T>(a.q, batch, kv_head * group + r % group).row(t);
        for (std::int64_t c = 0; c < dim; ++c)
            queries[r * dim + c] = W{widen(q[c])} * static_cast<W>(a.scale);
        const auto i = static_cast<std::size_t>(batch * n.q_len + t);
        begin[r] = a.key_begin.as<std::int32_t>()[i];
        end[r] = a.key_end.as<std::int32_t>()[i];
        max[r] = -std::numeric_limits<W>::infinity();
        if (end[r] <= begin[r]) continue;
        first = std::min(first, begin[r]);
        last = std::max(last, end[r]);
    }
    std::fill_n(out, rows * width, W{0});
    for (std::int64_t t = first / kKeyTile * kKeyTile; t < last; t += kKeyTile) {
        const std::int64_t keys = std::min(kKeyTile, last - t);
        pack_right(k_packed, k.from_row(t), true, keys, dim);
        multiply(rows, pad_width(keys), dim, stored_left(queries, dim), packed_right(k_packed, dim),
                 scores, kKeyTile, Into::write);
        bool all_seen = true;
        for (std::int64_t r = 0; r < rows; ++r) {
            from[r] = std::clamp<std::int64_t>(begin[r] - t, 0, keys);
            to[r] = std::clamp<std::int64_t>(end[r] - t, from[r], keys);
            all_seen = all_seen && to[r] - from[r] == keys;
        }
        softmax_rows(scores, rows, from, to, keys, max, sum, out, width);
        if constexpr (std::is_same_v<T, W>)
            if (all_seen && dim == width) {
                multiply(rows, width, keys, stored_left(scores, kKeyTile),
                         stored_right(v.row(t), v.ld), out, width, Into::add);
                continue;
            }
        pack_right(v_packed, v.from_row(t), false, dim, keys);
        if (all_seen || all_finite(v_packed, width * keys)) {
            multiply(rows, width, keys, stored_left(scores, kKeyTile), packed_right(v_packed, keys),
                     out, width, Into::add);
            continue;
        }
        const std::int64_t nr = panel_shape<W>().columns;
        for (std::int64_t r = 0; r < rows; ++r)  // see add_visible
            multiply(1, width, to[r] - from[r],
                     stored_left(scores + r * kKeyTile + from[r], kKeyTile),
                     {v_packed + from[r] * nr, keys * nr, nr}, out + r * width, width, Into::add);
    }
    W* const result = scratch<ResultTag, W>(dim);
    for (std::int64_t r = 0; r < rows; ++r) {
        const std::int64_t h = kv_head * group + r % group, t = r / group;
        const bool empty = sum[r] == W{0};
        const W inverse = empty ? W{0} : W{1} / sum[r];
        for (std::int64_t c = 0; c < dim; ++c)
            result[c] = out[r * width + c] * inverse;
        store_head<T>(a.out, batch, h, t, 1, result);
        a.lse.as<W>()[static_cast<std::size_t>((batch * n.n_heads + h) * n.q_len + t)] =
            empty ? -std::numeric_limits<W>::infinity() : max[r] + std::log(sum[r]);
    }
}

/// As many queries to a tile as leave every thread enough tiles.
std::int64_t rows_of_tile(const Sizes& n) {
    std::int64_t rows = kTileRows;
    const auto tiles = [&] { return n.batch * n.n_heads * ((n.q_len + rows - 1) / rows); };
    while (cpu_threads() > 1 && rows > kQueryLanes && tiles() < 4 * cpu_threads())
        rows /= 2;
    return rows;
}

}  // namespace

void attention_forward(const AttentionArgs& args) {
    dispatch_dtype(args.q.dtype, [&]<Element T>(T) {
        const Sizes n = sizes_of(args);
        if (n.q_len * n.group() <= kFewRows)
            return parallel_for(n.batch * n.n_kv_heads, grain_for(n.q_len * n.k_len),
                                [&](std::int64_t i, std::int64_t last) {
                                    for (; i < last; ++i)
                                        forward_few<T>(args, i / n.n_kv_heads, i % n.n_kv_heads);
                                });
        const std::int64_t rows = rows_of_tile(n), tiles = (n.q_len + rows - 1) / rows;
        parallel_for(n.batch * n.n_heads * tiles, grain_for(rows * n.k_len),
                     [&](std::int64_t i, std::int64_t last) {
                         for (; i < last; ++i) {
                             // The last tiles have the most keys: they begin first.
                             const std::int64_t row = (tiles - 1 - i % tiles) * rows;
                             const std::int64_t head = i / tiles;
                             forward_tile<T>(args, head / n.n_heads, head % n.n_heads, row,
                                             std::min(rows, n.q_len - row));
                         }
                     });
    });
}

}  // namespace stoa::cpu
