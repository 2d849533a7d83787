// The backward of importance_attention.cpp. Blocks of 64 queries meet the far keys and the blocks
// of keys, aligned to key 0, that their windows touch; those stay packed in a ring while the
// queries pass. Gradients towards keys are summed by chunks of queries of a fixed length, then
// chunk after chunk, so that the threads can divide the chunks.
#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/attention_gradients.h"
#include "kernels/cpu/importance_keys.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/ops.h"

namespace stoa::cpu {
namespace {

constexpr std::int64_t kChunkBlocks = 32, kChunkRows = kChunkBlocks * kBlockQueries;
constexpr std::int64_t kWaveChunks = 8;  // whose sums are in memory at a time

using Args = ImportanceAttentionBackwardArgs;
using Sizes = ImportanceSizes;

/// Gradients towards keys from one chunk of queries: of the far keys of its first block, then of
/// the contiguous range from that block's first key to the chunk's end. A later block's far keys
/// are among these.
template <class W>
struct ChunkSums {
    std::vector<std::int32_t> far;
    std::int64_t local_begin = 0, rows = 0, width = 0;
    W *d_k = nullptr, *d_v = nullptr, *d_gate = nullptr;  // (rows, width) twice, (rows)
    std::int64_t row_of(std::int64_t s) const {
        if (s >= local_begin) return std::ssize(far) + s - local_begin;
        return std::ranges::lower_bound(far, static_cast<std::int32_t>(s)) - far.begin();
    }
    std::int64_t token(std::int64_t row) const {
        return row < std::ssize(far) ? far[static_cast<std::size_t>(row)]
                                     : local_begin + row - std::ssize(far);
    }
};

/// Scores to probabilities, their gradients to those of logits, and those to the keys' gates. Some
/// query may not see some key: `hidden`.
template <class W>
bool to_gradients(const BlockScores<W>& s, const QueryBlock<W>& q, const SeenKeys<W>& seen,
                  std::int64_t keys, std::int32_t t, W inverse_window, W* d_gate) {
    bool hidden = false;
    vectorised([&] {
        for (std::int64_t j = 0; j < keys; ++j) {
            W *const p = s.p + j * kBlockQueries, *const d_z = s.d_z + j * kBlockQueries;
            const bool all = gate_scores<kBlockQueries>(p, seen, j, t, q.rows, inverse_window);
#pragma GCC ivdep
            for (std::int64_t r = 0; r < kBlockQueries; ++r) {
                p[r] = fused_exp(p[r] - q.lse[r]);
                d_z[r] = p[r] * (d_z[r] - q.delta[r]);
            }
            if (!all) {
                hidden = true;
#pragma GCC ivdep
                for (std::int32_t r = 0; r < kBlockQueries; ++r) {
                    const bool see = sees(seen, j, t + r);
                    p[r] = see ? p[r] : W{0};
                    d_z[r] = see ? d_z[r] : W{0};
                }
            }
            if (d_gate == nullptr) continue;
            d_gate[j] += seen.far ? lane_sum<W>(q.rows, [&](auto r) { return d_z[r]; })
                                  : lane_sum<W>(q.rows, [&](auto r) {
                                        const auto distance =
                                            t + static_cast<std::int32_t>(r) - seen.token[j];
                                        return ramp(distance, inverse_window) * d_z[r];
                                    });
        }
    });
    return hidden;
}

/// What one head's block of queries needs from its rows.
template <class T, class W>
QueryBlock<W> load_queries(const Args& a, const Sizes& n, std::int64_t batch, std::int64_t h,
                           std::int64_t row, std::int64_t rows) {
    struct QueriesTag;
    const auto out = head_matrix<T>(a.out, batch, h), d_out = head_matrix<T>(a.d_out, batch, h);
    QueryBlock<W> q;
    pack_queries(q, scratch<QueriesTag, W>(QueryBlock<W>::values(n.dim)),
                 head_matrix<T>(a.q, batch, h), d_out, row, rows, n.dim, static_cast<W>(a.scale));
    const W* const lse = a.lse.as<W>().data() + (batch * n.n_heads + h) * n.len + row;
    std::fill_n(q.lse, kBlockQueries, W{0});
    std::fill_n(q.delta, kBlockQueries, W{0});
    std::copy_n(lse, rows, q.lse);
    vectorised([&] {
        for (std::int64_t r = 0; r < rows; ++r) {
            const T *const x = d_out.row(row + r), *const y = out.row(row + r);
            q.delta[r] =
                lane_sum<W>(n.dim, [&](std::int64_t c) { return W{widen(x[c])} * W{widen(y[c])}; });
        }
    });
    if (a.d_sink.empty()) return q;
    const W sink = a.sink_logit.as<W>()[static_cast<std::size_t>(h)];
    W* const d_sink = a.d_sink.as<W>().data() + (batch * n.len + row) * n.n_heads + h;
    for (std::int64_t r = 0; r < rows; ++r)
        d_sink[r * n.n_heads] = -fused_exp(sink - q.lse[r]) * q.delta[r];
    return q;
}

/// The queries of one chunk, of all heads of a group.
template <class T, class W = Wide<T>>
struct ChunkWork {
    const Args& a;
    const Sizes& n;
    const FarKeys& lists;
    ChunkSums<W>& sums;
    std::int64_t batch, kv_head;
    HeadMatrix<T> k, v;
    Tokens<W> tokens;
    W inverse_window;
    std::int64_t ring_blocks;
    W* ring;

    std::int64_t first_key(std::int64_t t) const {  // a whole block
        const std::int64_t first = std::max<std::int64_t>(t - a.rule.window + 1, tokens.begin[t]);
        return first / kBlockKeys * kBlockKeys;
    }
    W* ring_slot(std::int64_t first) const {
        return ring + first / kBlockKeys % ring_blocks * KeyBlock<W>::values(n.dim);
    }

    /// A block of far keys: its sums go by way of a part of their own.
    void far_block(const QueryBlock<W>& q, std::span<const std::int32_t> list, std::int64_t row,
                   W* d_q) const {
        struct FarTag;
        struct FarKTag;
        struct FarVTag;
        struct PartTag;
        struct SeenTag;
        KeyBlock<W> block;
        const std::int64_t keys = std::ssize(list), width = sums.width;
        pack_keys(block, scratch<FarTag, W>(KeyBlock<W>::values(n.dim)),
                  gather<FarKTag>(k, list, n.dim), gather<FarVTag>(v, list, n.dim), 0, keys, n.dim);
        W* const part = scratch<PartTag, W>(keys * (2 * width + 1));
        std::fill_n(part, keys * (2 * width + 1), W{0});
        W *const d_k = part, *const d_v = part + keys * width, *const d_gate = d_v + keys * width;
        add_block(q, block, far_keys<SeenTag>(tokens, list), row, d_k, d_v, d_gate, d_q);
        for (std::int64_t j = 0; j < keys; ++j) {
            const std::int64_t to = sums.row_of(list[static_cast<std::size_t>(j)]);
            for (std::int64_t c = 0; c < width; ++c) {
                sums.d_k[to * width + c] += d_k[j * width + c];
                sums.d_v[to * width + c] += d_v[j * width + c];
            }
            sums.d_gate[to] += d_gate[j];
        }
    }
    void add_block(const QueryBlock<W>& q, const KeyBlock<W>& block, const SeenKeys<W>& seen,
                   std::int64_t row, W* d_k, W* d_v, W* d_gate, W* d_q) const {
        PartKeys keys{.from = {}, .to = {}};
        for (std::int64_t part = 0; part < kParts; ++part) {
            const std::int64_t first = row + part * kQueryLanes;  // the oldest key of its window
            const std::int64_t last = std::min(row + q.rows, first + kQueryLanes);
            const std::int64_t begin = seen.token[0];
            if (first >= last) continue;
            keys.from[part] = seen.far ? 0
                                       : std::clamp<std::int64_t>(first - a.rule.window + 1 - begin,
                                                                  0, block.keys);
            keys.to[part] =
                seen.far ? block.keys
                         : std::clamp<std::int64_t>(last - begin, keys.from[part], block.keys);
        }
        const BlockScores<W> s = block_scores(q, block, keys);
        const auto t = static_cast<std::int32_t>(row);
        const bool hidden = to_gradients(s, q, seen, block.keys, t, inverse_window,
                                         a.gate.empty() ? nullptr : d_gate);
        add_gradients(s, q, block, d_k, d_v, d_q, keys, hidden,
                      [&](std::int64_t r, std::int64_t j) {
                          return sees(seen, j, t + static_cast<std::int32_t>(r));
                      });
    }
    /// One head's queries [row, row + rows).
    void head_block(std::int64_t h, std::int64_t row, std::int64_t rows) const {
        struct DQTag;
        struct RowsTag;
        struct SeenTag;
        W* const d_q = scratch<DQTag, W>(n.dim * kBlockQueries);
        std::fill_n(d_q, n.dim * kBlockQueries, W{0});
        const QueryBlock<W> q = load_queries<T, W>(a, n, batch, h, row, rows);
        const auto list = lists.of_tile(row / kBlockQueries);
        for (std::size_t i = 0; i < list.size(); i += kBlockKeys)
            far_block(q, list.subspan(i, std::min<std::size_t>(kBlockKeys, list.size() - i)), row,
                      d_q);
        for (std::int64_t first = first_key(row); first < row + rows; first += kBlockKeys) {
            KeyBlock<W> block;
            place_keys(block, ring_slot(first), std::min(kBlockKeys, n.len - first), n.dim);
            const std::int64_t to = sums.row_of(first);
            add_block(q, block, window_keys<SeenTag>(tokens, first, block.keys), row,
                      sums.d_k + to * sums.width, sums.d_v + to * sums.width, sums.d_gate + to,
                      d_q);
        }
        W* const to = scratch<RowsTag, W>(kBlockQueries * n.dim);
        transpose(to, d_q, kBlockQueries, n.dim, kBlockQueries);
        scale_all(to, kBlockQueries * n.dim, static_cast<W>(a.scale));
        store_head<T>(a.d_q, batch, h, row, rows, to);
    }
    void run(std::int64_t begin, std::int64_t end) const {
        std::int64_t packed = first_key(begin);
        for (std::int64_t row = begin; row < end; row += kBlockQueries) {
            const std::int64_t rows = std::min(kBlockQueries, end - row);
            for (; packed < row + rows; packed += kBlockKeys) {
                KeyBlock<W> block;
                pack_keys(block, ring_slot(packed), k, v, packed,
                          std::min(kBlockKeys, n.len - packed), n.dim);
            }
            for (std::int64_t h = kv_head * n.group(); h < (kv_head + 1) * n.group(); ++h)
                head_block(h, row, rows);
        }
    }
};

/// Sums of one kv head of one batch entry: (len, dim) twice, (len).
template <class W>
struct HeadSums {
    W *d_k, *d_v, *d_gate;
    explicit HeadSums(const Sizes& n) {
        struct SumsTag;
        const std::int64_t values = n.len * (2 * n.dim + 1);
        d_k = scratch<SumsTag, W>(values);
        d_v = d_k + n.len * n.dim;
        d_gate = d_v + n.len * n.dim;
        std::fill_n(d_k, values, W{0});
    }
    void add(const ChunkSums<W>& c, std::int64_t dim) const {
        vectorised([&] {
            for (std::int64_t row = 0; row < c.rows; ++row) {
                const std::int64_t s = c.token(row);
                W *const k = d_k + s * dim, *const v = d_v + s * dim;
#pragma GCC ivdep
                for (std::int64_t i = 0; i < dim; ++i) {
                    k[i] += c.d_k[row * c.width + i];
                    v[i] += c.d_v[row * c.width + i];
                }
                d_gate[s] += c.d_gate[row];
            }
        });
    }
};

template <class T, class W = Wide<T>>
void backward_kv_head(const Args& a, const Sizes& n, std::int64_t batch, std::int64_t kv_head) {
    struct RingTag;
    struct ChunksTag;
    const Tokens<W> tokens = tokens_of<W>(a, n, batch, kv_head);
    const FarKeys far = find_far_keys(tokens.expiry, n.len, a.rule.window, kBlockQueries);
    const std::int64_t chunks = (n.len + kChunkRows - 1) / kChunkRows, width = pad_width(n.dim);
    // The window of a block's first query, from a whole block on, and the block itself.
    const std::int64_t ring_blocks =
        (std::min(a.rule.window, n.len) + kBlockKeys - 1) / kBlockKeys + 2;
    std::size_t most_far = 0;
    for (std::int64_t c = 0; c < chunks; ++c)
        most_far = std::max(most_far, far.of_tile(c * kChunkBlocks).size());
    const std::int64_t slot =
        (static_cast<std::int64_t>(most_far) + kChunkRows + ring_blocks * kBlockKeys) *
        (2 * width + 1);
    W* const memory = scratch<ChunksTag, W>(std::min(chunks, kWaveChunks) * slot);
    const HeadSums<W> sums(n);
    for (std::int64_t wave = 0; wave < chunks; wave += kWaveChunks) {
        const std::int64_t count = std::min(kWaveChunks, chunks - wave);
        std::vector<ChunkSums<W>> parts(static_cast<std::size_t>(count));
        parallel_for(count, 1, [&](std::int64_t i, std::int64_t last) {
            for (; i < last; ++i) {
                const std::int64_t begin = (wave + i) * kChunkRows;
                const std::int64_t end = std::min(n.len, begin + kChunkRows);
                ChunkSums<W>& part = parts[static_cast<std::size_t>(i)];
                ChunkWork<T, W> work{a,
                                     n,
                                     far,
                                     part,
                                     batch,
                                     kv_head,
                                     head_matrix<T>(a.k, batch, kv_head),
                                     head_matrix<T>(a.v, batch, kv_head),
                                     tokens,
                                     W{1} / static_cast<W>(a.rule.window),
                                     ring_blocks,
                                     scratch<RingTag, W>(ring_blocks * KeyBlock<W>::values(n.dim))};
                part.local_begin = work.first_key(begin);
                part.width = width;
                for (const std::int32_t s : far.of_tile(begin / kBlockQueries))
                    if (s < part.local_begin) part.far.push_back(s);
                part.rows = std::ssize(part.far) + end - part.local_begin;
                part.d_k = memory + i * slot;
                part.d_v = part.d_k + part.rows * width;
                part.d_gate = part.d_v + part.rows * width;
                std::fill_n(part.d_k, part.rows * (2 * width + 1), W{0});
                work.run(begin, end);
            }
        });
        for (const ChunkSums<W>& part : parts)
            sums.add(part, n.dim);
    }
    store_head<T>(a.d_k, batch, kv_head, 0, n.len, sums.d_k);
    store_head<T>(a.d_v, batch, kv_head, 0, n.len, sums.d_v);
    if (a.d_gate.empty()) return;
    W* const d_gate = a.d_gate.as<W>().data() + batch * n.len * n.n_kv_heads + kv_head;
    for (std::int64_t s = 0; s < n.len; ++s)
        d_gate[s * n.n_kv_heads] = tokens.gated(s) ? sums.d_gate[s] : W{0};
}

}  // namespace

void importance_attention_backward(const Args& a) {
    dispatch_dtype(a.q.dtype, [&]<Element T>(T) {
        const Sizes n = sizes_of(a);
        const std::int64_t heads = n.batch * n.n_kv_heads, threads = cpu_threads();
        const bool together = heads % threads != 0 && heads < 4 * threads;  // in one head's chunks
        parallel_for(heads, together ? heads : 1, [&](std::int64_t i, std::int64_t last) {
            for (; i < last; ++i)
                backward_kv_head<T>(a, n, i / n.n_kv_heads, i % n.n_kv_heads);
        });
    });
}

}  // namespace stoa::cpu
