// Attention over a window and gathered keys. A tile of queries sees a contiguous local range (its
// windows) and a short list of far keys, which are gathered; its scores are two products, the
// softmax works on the tile in cache, and p v is two products again. The mask is the keys' expiry.
#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/far_keys.h"
#include "kernels/cpu/fast_exp.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/head_matrix.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/scratch.h"

namespace stoa::cpu {
namespace {

/// Queries whose gradients towards keys are summed apart, in one order: the unit of work of the
/// backward, whatever the number of threads.
constexpr std::int64_t kChunkTiles = 32, kChunkRows = kChunkTiles * kTileRows;
constexpr std::int64_t kWaveChunks = 8;  // whose sums are in memory at a time

struct Sizes {
    std::int64_t batch, len, n_heads, n_kv_heads, dim;
    std::int64_t group() const { return n_heads / n_kv_heads; }
    std::int64_t tiles() const { return (len + kTileRows - 1) / kTileRows; }
};
template <class Args>
Sizes sizes_of(const Args& a) {
    return {a.q.shape[0], a.q.shape[1], a.q.shape[2], a.k.shape[2], a.q.shape[3]};
}

/// A tile's queries and keys: far ones first, then the local range.
struct Tile {
    std::int64_t row_begin, rows, local_begin, local_keys;
    std::span<const std::int32_t> far;
    std::int64_t far_keys() const { return std::ssize(far); }
    std::int64_t keys() const { return far_keys() + local_keys; }
    std::int64_t token(std::int64_t key) const {
        return key < far_keys() ? far[static_cast<std::size_t>(key)]
                                : local_begin + key - far_keys();
    }
};
Tile make_tile(std::int64_t i, std::int64_t len, std::int64_t window, const FarKeys& far) {
    const std::int64_t begin = i * kTileRows, rows = std::min(kTileRows, len - begin);
    const std::int64_t local = std::max<std::int64_t>(0, begin - window + 1);
    return {begin, rows, local, begin + rows - local, far.of_tile(i)};
}

/// What the mask and the gate need of each key of a tile.
template <class W>
struct KeyTable {
    std::int32_t *token, *expiry;
    W* gate;   // 0 for sinks and without gates
    W* gated;  // 1 where the key has a gate
};
struct TokenTag;
struct ExpiryTag;
struct GateTag;
struct GatedTag;
template <class W, class Args>
KeyTable<W> key_table(const Args& a, const Sizes& n, const Tile& tile, std::int64_t batch,
                      std::int64_t kv_head) {
    const std::int64_t keys = tile.keys();
    KeyTable<W> table{scratch<TokenTag, std::int32_t>(keys), scratch<ExpiryTag, std::int32_t>(keys),
                      scratch<GateTag, W>(keys), scratch<GatedTag, W>(keys)};
    const std::int32_t* const expiry =
        a.expiry.template as<std::int32_t>().data() + (batch * n.n_kv_heads + kv_head) * n.len;
    const std::int32_t* const begins =
        a.key_begin.template as<std::int32_t>().data() + batch * n.len;
    const W* const gate = a.gate.empty() ? nullptr : a.gate.template as<W>().data();
    for (std::int64_t j = 0; j < keys; ++j) {
        const std::int64_t s = tile.token(j);
        const bool gated = gate != nullptr && s - begins[s] >= a.rule.sinks;
        table.token[j] = static_cast<std::int32_t>(s);
        table.expiry[j] = expiry[s];
        table.gate[j] = gated ? gate[(batch * n.len + s) * n.n_kv_heads + kv_head] : W{0};
        table.gated[j] = gated ? W{1} : W{0};
    }
    return table;
}

/// min(1, distance / window)
template <class W>
W ramp(std::int32_t t, std::int32_t s, W inverse_window) {
    const W x = static_cast<W>(t - s) * inverse_window;
    return x < W{1} ? x : W{1};
}

/// Scores of row t to logits; -infinity where the query does not see the key.
template <class W>
void row_logits(W* s, const KeyTable<W>& table, std::int64_t keys, std::int32_t t, W scale,
                W inverse_window) {
    for (std::int64_t j = 0; j < keys; ++j) {
        const bool seen = table.token[j] <= t && t < table.expiry[j];
        const W z = s[j] * scale + ramp(t, table.token[j], inverse_window) * table.gate[j];
        s[j] = seen ? z : -std::numeric_limits<W>::infinity();
    }
}

/// The far keys' rows of one head, one after the other.
template <class Tag, class T>
T* gather_far(const HeadMatrix<T>& m, const Tile& tile, std::int64_t dim) {
    T* const rows = scratch<Tag, T>(std::max<std::int64_t>(1, tile.far_keys()) * dim);
    for (std::int64_t j = 0; j < tile.far_keys(); ++j)
        std::copy_n(m.row(tile.far[static_cast<std::size_t>(j)]), dim, rows + j * dim);
    return rows;
}

/// out (rows, keys) = a (rows, dim) b^T over the tile's keys.
template <class T, class W>
void against_keys(W* out, const Tile& tile, const HeadMatrix<T>& a, const T* far,
                  const HeadMatrix<T>& b, std::int64_t dim) {
    const std::int64_t keys = tile.keys(), split = tile.far_keys();
    Gemm g{.m = tile.rows, .n = split, .k = dim, .a = a.from_row(tile.row_begin)};
    if (split > 0) {
        g.b = operand(far, dim, true);
        g.c = result(out, keys);
        gemm(g);
    }
    g.n = tile.local_keys;
    g.b = b.from_row(tile.local_begin, true);
    g.c = result(out + split, keys);
    gemm(g);
}

/// out (rows, dim) = p (rows, keys) b over the tile's keys.
template <class T, class W>
void over_keys(W* out, const Tile& tile, const W* p, const T* far, const HeadMatrix<T>& b,
               std::int64_t dim) {
    const std::int64_t keys = tile.keys(), split = tile.far_keys();
    Gemm g{.m = tile.rows, .n = dim, .k = split, .a = operand(p, keys), .c = result(out, dim)};
    if (split > 0) {
        g.b = operand(far, dim);
        gemm(g);
    }
    g.k = tile.local_keys;
    g.a = operand(p + split, keys);
    g.b = b.from_row(tile.local_begin);
    g.accumulate = split > 0;
    gemm(g);
}

/// One head, one tile.
template <class T, class W = Wide<T>>
void forward_tile(const ImportanceAttentionArgs& a, const Sizes& n, const Tile& tile,
                  std::int64_t batch, std::int64_t h) {
    struct ScoresTag;
    struct OutTag;
    struct FarKTag;
    struct FarVTag;
    const std::int64_t kv_head = h / n.group(), keys = tile.keys();
    const auto q = head_matrix<T>(a.q, batch, h), k = head_matrix<T>(a.k, batch, kv_head),
               v = head_matrix<T>(a.v, batch, kv_head);
    W* const scores = scratch<ScoresTag, W>(tile.rows * keys);
    W* const out = scratch<OutTag, W>(tile.rows * n.dim);
    W* const lse = a.lse.as<W>().data() + (batch * n.n_heads + h) * n.len + tile.row_begin;
    const KeyTable<W> table = key_table<W>(a, n, tile, batch, kv_head);
    const W scale = static_cast<W>(a.scale), inverse_window = W{1} / static_cast<W>(a.rule.window);
    const W sink = a.sink_logit.empty() ? -std::numeric_limits<W>::infinity()
                                        : a.sink_logit.as<W>()[static_cast<std::size_t>(h)];
    against_keys(scores, tile, q, gather_far<FarKTag>(k, tile, n.dim), k, n.dim);
    W inverse_sum[kTileRows];
    vectorised([&] {
        for (std::int64_t r = 0; r < tile.rows; ++r) {
            W* const s = scores + r * keys;
            row_logits(s, table, keys, static_cast<std::int32_t>(tile.row_begin + r), scale,
                       inverse_window);
            // A query always sees itself, so the maximum is finite.
            const W max = lane_max<W>(keys, sink, [&](std::int64_t j) { return s[j]; });
            for (std::int64_t j = 0; j < keys; ++j)
                s[j] = fast_exp(s[j] - max);
            const W sum =
                lane_sum<W>(keys, [&](std::int64_t j) { return s[j]; }) + std::exp(sink - max);
            lse[r] = max + std::log(sum);
            inverse_sum[r] = W{1} / sum;
        }
    });
    over_keys(out, tile, scores, gather_far<FarVTag>(v, tile, n.dim), v, n.dim);
    for (std::int64_t r = 0; r < tile.rows; ++r)
        for (std::int64_t c = 0; c < n.dim; ++c)
            out[r * n.dim + c] *= inverse_sum[r];
    store_head<T>(a.out, batch, h, tile.row_begin, tile.rows, out);
}

/// Gradients towards keys from one chunk of queries: of the far keys of its first tile, then of the
/// contiguous range from that tile's window to the chunk's end. A later tile's far keys are among
/// these.
template <class W>
struct ChunkSums {
    std::span<const std::int32_t> far;
    std::int64_t local_begin = 0, rows = 0, dim = 0;
    W *d_k, *d_v, *d_gate, *d_sink;  // (rows, dim), (rows, dim), (rows), (group)
    std::int64_t row_of(std::int64_t s) const {
        if (s >= local_begin) return std::ssize(far) + s - local_begin;
        return std::ranges::lower_bound(far, static_cast<std::int32_t>(s)) - far.begin();
    }
    std::int64_t token(std::int64_t row) const {
        return row < std::ssize(far) ? far[static_cast<std::size_t>(row)]
                                     : local_begin + row - std::ssize(far);
    }
};

/// rows of the far keys += their part of p^T b
template <class W, class T>
void add_far(W* sums, const ChunkSums<W>& chunk, const Tile& tile, const W* p,
             const HeadMatrix<T>& b, std::int64_t dim) {
    struct PartTag;
    const std::int64_t split = tile.far_keys();
    if (split == 0) return;
    W* const part = scratch<PartTag, W>(split * dim);
    gemm({.m = split,
          .n = dim,
          .k = tile.rows,
          .a = operand(p, tile.keys(), true),
          .b = b.from_row(tile.row_begin),
          .c = result(part, dim)});
    for (std::int64_t j = 0; j < split; ++j) {
        W* const row = sums + chunk.row_of(tile.token(j)) * dim;
        for (std::int64_t c = 0; c < dim; ++c)
            row[c] += part[j * dim + c];
    }
}

/// rows of the tile's keys += p^T b
template <class W, class T>
void add_to_keys(W* sums, const ChunkSums<W>& chunk, const Tile& tile, const W* p,
                 const HeadMatrix<T>& b, std::int64_t dim) {
    add_far(sums, chunk, tile, p, b, dim);
    gemm({.m = tile.local_keys,
          .n = dim,
          .k = tile.rows,
          .a = operand(p + tile.far_keys(), tile.keys(), true),
          .b = b.from_row(tile.row_begin),
          .c = result(sums + chunk.row_of(tile.local_begin) * dim, dim),
          .accumulate = true});
}

/// One head, one tile: writes d_q, adds to the chunk's sums.
template <class T, class W = Wide<T>>
void backward_tile(const ImportanceAttentionBackwardArgs& a, const Sizes& n, const Tile& tile,
                   const ChunkSums<W>& chunk, std::int64_t batch, std::int64_t h) {
    struct PTag;
    struct DZTag;
    struct DQTag;
    struct DGateTag;
    struct FarKTag;
    struct FarVTag;
    const std::int64_t kv_head = h / n.group(), keys = tile.keys();
    const auto q = head_matrix<T>(a.q, batch, h), k = head_matrix<T>(a.k, batch, kv_head),
               v = head_matrix<T>(a.v, batch, kv_head), out = head_matrix<T>(a.out, batch, h),
               d_out = head_matrix<T>(a.d_out, batch, h);
    W* const p = scratch<PTag, W>(tile.rows * keys);
    W* const d_z = scratch<DZTag, W>(tile.rows * keys);
    W* const d_q = scratch<DQTag, W>(tile.rows * n.dim);
    W* const d_gate = scratch<DGateTag, W>(keys);
    const W* const lse = a.lse.as<W>().data() + (batch * n.n_heads + h) * n.len + tile.row_begin;
    const KeyTable<W> table = key_table<W>(a, n, tile, batch, kv_head);
    const W scale = static_cast<W>(a.scale), inverse_window = W{1} / static_cast<W>(a.rule.window);
    T* const far_k = gather_far<FarKTag>(k, tile, n.dim);
    against_keys(p, tile, q, far_k, k, n.dim);
    against_keys(d_z, tile, d_out, gather_far<FarVTag>(v, tile, n.dim), v, n.dim);
    std::fill_n(d_gate, keys, W{0});
    W d_sink = 0;
    const W sink = a.sink_logit.empty() ? -std::numeric_limits<W>::infinity()
                                        : a.sink_logit.as<W>()[static_cast<std::size_t>(h)];
    vectorised([&] {
        for (std::int64_t r = 0; r < tile.rows; ++r) {
            const auto t = static_cast<std::int32_t>(tile.row_begin + r);
            W *const p_row = p + r * keys, *const z_row = d_z + r * keys;
            const T *const x = d_out.row(t), *const y = out.row(t);
            const W delta =
                lane_sum<W>(n.dim, [&](std::int64_t c) { return W{widen(x[c])} * W{widen(y[c])}; });
            row_logits(p_row, table, keys, t, scale, inverse_window);
            for (std::int64_t j = 0; j < keys; ++j) {
                p_row[j] = fast_exp(p_row[j] - lse[r]);
                const W z = p_row[j] * (z_row[j] - delta);
                d_gate[j] += ramp(t, table.token[j], inverse_window) * z;
                z_row[j] = scale * z;
            }
            d_sink -= std::exp(sink - lse[r]) * delta;
        }
    });
    over_keys(d_q, tile, d_z, far_k, k, n.dim);
    store_head<T>(a.d_q, batch, h, tile.row_begin, tile.rows, d_q);
    add_to_keys(chunk.d_v, chunk, tile, p, d_out, n.dim);
    add_to_keys(chunk.d_k, chunk, tile, d_z, q, n.dim);
    for (std::int64_t j = 0; j < keys; ++j)
        chunk.d_gate[chunk.row_of(tile.token(j))] += table.gated[j] * d_gate[j];
    chunk.d_sink[h % n.group()] += d_sink;
}

/// The chunks of a wave have their sums one after the other in `memory`.
template <class W>
ChunkSums<W> place_chunk(std::vector<W>& memory, std::int64_t slot, std::int64_t slot_values,
                         const Tile& first, std::int64_t last_row, const Sizes& n) {
    ChunkSums<W> c{.far = first.far,
                   .local_begin = first.local_begin,
                   .rows = first.far_keys() + last_row - first.local_begin,
                   .dim = n.dim,
                   .d_k = memory.data() + slot * slot_values,
                   .d_v = nullptr,
                   .d_gate = nullptr,
                   .d_sink = nullptr};
    c.d_v = c.d_k + c.rows * n.dim;
    c.d_gate = c.d_v + c.rows * n.dim;
    c.d_sink = c.d_gate + c.rows;
    std::fill_n(c.d_k, c.rows * (2 * n.dim + 1) + n.group(), W{0});
    return c;
}

/// Sums of one kv head of one batch entry.
template <class W>
struct HeadSums {
    std::vector<W> d_k, d_v, d_gate, d_sink;
    HeadSums(const Sizes& n)
        : d_k(static_cast<std::size_t>(n.len * n.dim)),
          d_v(d_k.size()),
          d_gate(static_cast<std::size_t>(n.len)),
          d_sink(static_cast<std::size_t>(n.group())) {}
    void add(const ChunkSums<W>& c) {
        for (std::int64_t row = 0; row < c.rows; ++row) {
            const std::int64_t s = c.token(row);
            for (std::int64_t i = 0; i < c.dim; ++i) {
                d_k[static_cast<std::size_t>(s * c.dim + i)] += c.d_k[row * c.dim + i];
                d_v[static_cast<std::size_t>(s * c.dim + i)] += c.d_v[row * c.dim + i];
            }
            d_gate[static_cast<std::size_t>(s)] += c.d_gate[row];
        }
        for (std::size_t i = 0; i < d_sink.size(); ++i)
            d_sink[i] += c.d_sink[i];
    }
};

template <class T, class W = Wide<T>>
void backward_kv_head(const ImportanceAttentionBackwardArgs& a, const Sizes& n, std::int64_t batch,
                      std::int64_t kv_head, W* d_sink) {
    const FarKeys far =
        find_far_keys(a.expiry.as<std::int32_t>().data() + (batch * n.n_kv_heads + kv_head) * n.len,
                      n.len, a.rule.window);
    const std::int64_t chunks = (n.tiles() + kChunkTiles - 1) / kChunkTiles;
    std::size_t most_far = 0;
    for (std::int64_t c = 0; c < chunks; ++c)
        most_far = std::max(most_far, far.of_tile(c * kChunkTiles).size());
    const std::int64_t slot_values =
        (static_cast<std::int64_t>(most_far) + std::min(n.len, kChunkRows + a.rule.window)) *
            (2 * n.dim + 1) +
        n.group();
    std::vector<W> memory(static_cast<std::size_t>(std::min(chunks, kWaveChunks) * slot_values));
    HeadSums<W> sums(n);
    for (std::int64_t wave = 0; wave < chunks; wave += kWaveChunks) {
        const std::int64_t count = std::min(kWaveChunks, chunks - wave);
        std::vector<ChunkSums<W>> parts(static_cast<std::size_t>(count));
        parallel_for(count, 1, [&](std::int64_t i, std::int64_t last) {
            for (; i < last; ++i) {
                const std::int64_t begin = (wave + i) * kChunkTiles;
                const std::int64_t end = std::min(n.tiles(), begin + kChunkTiles);
                auto& part = parts[static_cast<std::size_t>(i)];
                part =
                    place_chunk(memory, i, slot_values, make_tile(begin, n.len, a.rule.window, far),
                                std::min(n.len, end * kTileRows), n);
                for (std::int64_t tile = begin; tile < end; ++tile)
                    for (std::int64_t h = kv_head * n.group(); h < (kv_head + 1) * n.group(); ++h)
                        backward_tile<T>(a, n, make_tile(tile, n.len, a.rule.window, far), part,
                                         batch, h);
            }
        });
        for (const ChunkSums<W>& part : parts)
            sums.add(part);
    }
    store_head<T>(a.d_k, batch, kv_head, 0, n.len, sums.d_k.data());
    store_head<T>(a.d_v, batch, kv_head, 0, n.len, sums.d_v.data());
    if (!a.d_gate.empty())
        for (std::int64_t s = 0; s < n.len; ++s)
            a.d_gate
                .as<W>()[static_cast<std::size_t>((batch * n.len + s) * n.n_kv_heads + kv_head)] =
                sums.d_gate[static_cast<std::size_t>(s)];
    std::ranges::copy(sums.d_sink, d_sink);
}

}  // namespace

void importance_attention_forward(const ImportanceAttentionArgs& a) {
    dispatch_dtype(a.q.dtype, [&]<Element T>(T) {
        const Sizes n = sizes_of(a);
        std::vector<FarKeys> far;  // by batch entry and kv head
        for (std::int64_t i = 0; i < n.batch * n.n_kv_heads; ++i)
            far.push_back(find_far_keys(a.expiry.as<std::int32_t>().data() + i * n.len, n.len,
                                        a.rule.window));
        parallel_for(n.batch * n.n_heads * n.tiles(), 1, [&](std::int64_t i, std::int64_t last) {
            for (; i < last; ++i) {
                const std::int64_t tile = i % n.tiles(), h = i / n.tiles() % n.n_heads,
                                   batch = i / n.tiles() / n.n_heads;
                const auto list = static_cast<std::size_t>(batch * n.n_kv_heads + h / n.group());
                forward_tile<T>(a, n, make_tile(tile, n.len, a.rule.window, far[list]), batch, h);
            }
        });
    });
}

void importance_attention_backward(const ImportanceAttentionBackwardArgs& a) {
    dispatch_dtype(a.q.dtype, [&]<Element T>(T) {
        using W = Wide<T>;
        const Sizes n = sizes_of(a);
        std::vector<W> d_sink(static_cast<std::size_t>(n.batch * n.n_heads));
        parallel_for(n.batch * n.n_kv_heads, 1, [&](std::int64_t i, std::int64_t last) {
            for (; i < last; ++i)
                backward_kv_head<T>(a, n, i / n.n_kv_heads, i % n.n_kv_heads,
                                    d_sink.data() + i * n.group());
        });
        if (a.d_sink_logit.empty()) return;
        const auto sums = a.d_sink_logit.as<W>();
        std::ranges::fill(sums, W{0});
        for (std::size_t i = 0; i < d_sink.size(); ++i)
            sums[i % static_cast<std::size_t>(n.n_heads)] += d_sink[i];
    });
}

}  // namespace stoa::cpu
