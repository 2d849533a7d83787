// The backward of importance_attention.cpp. Blocks of 64 queries meet the far keys and the blocks
// of keys, aligned to key 0, that their windows touch; those stay packed in a ring while the
// queries pass. Gradients towards keys are summed by chunks of queries of a fixed length, then
// chunk after chunk, so that the threads can divide the chunks.
#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/attention_gradients.h"
#include "kernels/cpu/dense_rows.h"
#include "kernels/cpu/importance_keys.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/ops.h"
#include "kernels/working_memory.h"

namespace stoa::cpu {
namespace {

constexpr std::int64_t kChunkBlocks = 32, kChunkRows = kChunkBlocks * kBlockQueries;
constexpr std::int64_t kWaveChunks = 8;  // whose sums are in memory at a time

using Args = ImportanceAttentionBackwardArgs;
using Sizes = ImportanceSizes;

/// Gradients towards keys of one kv head of one batch entry.
template <class W>
struct KeySums {
    W *d_k = nullptr, *d_v = nullptr, *d_gate = nullptr;  // (rows, width) twice, (rows)
    static std::int64_t values(std::int64_t rows, std::int64_t width) {
        return rows * (2 * width + 1);
    }
    static KeySums in(W* memory, std::int64_t rows, std::int64_t width) {
        return {memory, memory + rows * width, memory + 2 * rows * width};
    }
    KeySums from_row(std::int64_t row, std::int64_t width) const {
        return {d_k + row * width, d_v + row * width, d_gate + row};
    }
    void clear(std::int64_t rows, std::int64_t width) const {
        std::fill_n(d_k, rows * width, W{0});
        std::fill_n(d_v, rows * width, W{0});
        std::fill_n(d_gate, rows, W{0});
    }
    /// row `to` += row `from` of others
    void add_row(std::int64_t to, const KeySums& others, std::int64_t from,
                 std::int64_t width) const {
#pragma GCC ivdep
        for (std::int64_t c = 0; c < width; ++c) {
            d_k[to * width + c] += others.d_k[from * width + c];
            d_v[to * width + c] += others.d_v[from * width + c];
        }
        d_gate[to] += others.d_gate[from];
    }
};

/// What one chunk of queries gives to keys. Those of its own tokens get theirs from no query before
/// it, and have it in place. Apart, to be added chunk after chunk: keys before it, which are the
/// far keys of its first block, and those from that block's first key on. A later block's far keys
/// are among these and its own.
template <class W>
struct ChunkSums {
    std::int64_t begin = 0, end = 0;  // its tokens
    std::vector<std::int32_t> far;
    std::int64_t local_begin = 0, width = 0;
    KeySums<W> apart, own;  // own: of token `begin` on
    std::int64_t apart_rows() const { return std::ssize(far) + begin - local_begin; }
    std::int64_t token(std::int64_t row) const {
        return row < std::ssize(far) ? far[static_cast<std::size_t>(row)]
                                     : local_begin + row - std::ssize(far);
    }
    /// Token s, and those behind it up to a chunk's boundary.
    KeySums<W> of_token(std::int64_t s) const {
        if (s >= begin) return own.from_row(s - begin, width);
        if (s >= local_begin) return apart.from_row(std::ssize(far) + s - local_begin, width);
        return apart.from_row(
            std::ranges::lower_bound(far, static_cast<std::int32_t>(s)) - far.begin(), width);
    }
};

/// Scores to probabilities, their gradients to those of logits, and those to the keys' gates. Some
/// query may not see some key: `hidden`.
template <class W>
bool to_gradients(const BlockScores<W>& s, const QueryBlock<W>& q, const SeenKeys<W>& seen,
                  std::int64_t keys, std::int32_t t, const W* ramps, W* d_gate) {
    bool hidden = false;
    vectorised([&] {
        for (std::int64_t j = 0; j < keys; ++j) {
            W *const p = s.p + j * kBlockQueries, *const d_z = s.d_z + j * kBlockQueries;
            const bool all = gate_scores<kBlockQueries>(p, seen, j, t, q.rows, ramps);
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
            const W* const of_lane = ramps + (seen.far ? 0 : t - seen.token[j]);
            const auto ramped = [&](auto r) { return of_lane[r] * d_z[r]; };
            d_gate[j] += seen.far ? lane_sum<W>(q.rows, [&](auto r) { return d_z[r]; })
                         : q.rows == kBlockQueries ? lane_sum<W>(kBlockQueries, ramped)
                                                   : lane_sum<W>(q.rows, ramped);
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
    if (!a.d_sink.empty()) {
        const W sink = a.sink_logit.as<W>()[static_cast<std::size_t>(h)];
        W* const d_sink = a.d_sink.as<W>().data() + (batch * n.len + row) * n.n_heads + h;
        for (std::int64_t r = 0; r < rows; ++r)
            d_sink[r * n.n_heads] = -fused_exp(sink - q.lse[r]) * q.delta[r];
    }
    // Dense rows have no probabilities here: they come after (dense_rows.h).
    const auto dense = dense_rows_of(a.dense_rows, batch);
    for (auto t = std::ranges::lower_bound(dense, row); t != dense.end() && *t < row + rows; ++t)
        q.lse[*t - row] = std::numeric_limits<W>::infinity();
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
    const W* ramps;
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
        const auto part =
            KeySums<W>::in(scratch<PartTag, W>(KeySums<W>::values(kBlockKeys, width)), keys, width);
        part.clear(keys, width);
        add_block(q, block, far_keys<SeenTag>(tokens, list), row, part, d_q);
        vectorised([&] {
            for (std::int64_t j = 0; j < keys; ++j)
                sums.of_token(list[static_cast<std::size_t>(j)]).add_row(0, part, j, width);
        });
    }
    void add_block(const QueryBlock<W>& q, const KeyBlock<W>& block, const SeenKeys<W>& seen,
                   std::int64_t row, const KeySums<W>& to, W* d_q) const {
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
        const bool hidden =
            to_gradients(s, q, seen, block.keys, t, ramps, a.gate.empty() ? nullptr : to.d_gate);
        add_gradients(s, q, block, to.d_k, to.d_v, d_q, keys, hidden,
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
            add_block(q, block, window_keys<SeenTag>(tokens, first, block.keys), row,
                      sums.of_token(first), d_q);
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

/// How a head's tokens are divided, and the values that it keeps while they are done.
struct HeadMemory {
    std::int64_t width, chunks, ring_blocks, slot, parts, sums, mass;
};
HeadMemory head_memory(const KeyRule& rule, std::int64_t len, std::int64_t dim, bool far_mass) {
    HeadMemory m{.width = pad_width(dim), .chunks = (len + kChunkRows - 1) / kChunkRows};
    // The window of a block's first query, from a whole block on, and the block itself.
    m.ring_blocks = (std::min(rule.window, len) + kBlockKeys - 1) / kBlockKeys + 2;
    // A block's queries see so many far keys, and those that leave a window meanwhile.
    const std::int64_t most_far = std::min(len, rule.keep + rule.sinks + kBlockQueries);
    m.slot = KeySums<float>::values(most_far + m.ring_blocks * kBlockKeys, m.width);
    m.parts = std::min(m.chunks, kWaveChunks) * m.slot;
    m.sums = KeySums<float>::values(len, m.width);
    m.mass = far_mass ? len : 0;
    return m;
}

template <class T, class W>
void store_rows(const TensorView& gradient, const Sizes& n, std::int64_t batch,
                std::int64_t kv_head, W* rows) {
    const std::int64_t width = pad_width(n.dim);
    if (width != n.dim)
        for (std::int64_t s = 1; s < n.len; ++s)
            std::copy_n(rows + s * width, n.dim, rows + s * n.dim);
    store_head<T>(gradient, batch, kv_head, 0, n.len, rows);
}

template <class T, class W = Wide<T>>
void backward_kv_head(const Args& a, const Sizes& n, std::int64_t batch, std::int64_t kv_head) {
    struct SumsTag;
    struct MassTag;
    struct RingTag;
    struct ChunksTag;
    struct RampTag;
    const Tokens<W> tokens = tokens_of<W>(a, n, batch, kv_head);
    const FarKeys far = find_far_keys(tokens.expiry, n.len, a.rule.window, kBlockQueries);
    const HeadMemory m = head_memory(a.rule, n.len, n.dim, !a.far_mass.empty());
    const std::int64_t chunks = m.chunks, width = m.width, ring_blocks = m.ring_blocks;
    W* const memory = working_memory<ChunksTag, W>(m.parts);
    const auto sums = KeySums<W>::in(working_memory<SumsTag, W>(m.sums), n.len, width);
    for (std::int64_t wave = 0; wave < chunks; wave += kWaveChunks) {
        const std::int64_t count = std::min(kWaveChunks, chunks - wave);
        std::vector<ChunkSums<W>> parts(static_cast<std::size_t>(count));
        parallel_for(count, 1, [&](std::int64_t i, std::int64_t last) {
            for (; i < last; ++i) {
                ChunkSums<W>& part = parts[static_cast<std::size_t>(i)];
                part.begin = (wave + i) * kChunkRows;
                part.end = std::min(n.len, part.begin + kChunkRows);
                part.width = width;
                ChunkWork<T, W> work{a,
                                     n,
                                     far,
                                     part,
                                     batch,
                                     kv_head,
                                     head_matrix<T>(a.k, batch, kv_head),
                                     head_matrix<T>(a.v, batch, kv_head),
                                     tokens,
                                     ramp_table<RampTag, W>(a.rule.window, n.len),
                                     ring_blocks,
                                     scratch<RingTag, W>(ring_blocks * KeyBlock<W>::values(n.dim))};
                part.local_begin = work.first_key(part.begin);
                for (const std::int32_t s : far.of_tile(part.begin / kBlockQueries))
                    if (s < part.local_begin) part.far.push_back(s);
                part.apart = KeySums<W>::in(memory + i * m.slot, part.apart_rows(), width);
                part.apart.clear(part.apart_rows(), width);
                part.own = sums.from_row(part.begin, width);
                part.own.clear(part.end - part.begin, width);
                work.run(part.begin, part.end);
            }
        });
        vectorised([&] {
            for (const ChunkSums<W>& part : parts)
                for (std::int64_t row = 0; row < part.apart_rows(); ++row)
                    sums.add_row(part.token(row), part.apart, row, width);
        });
    }
    if (!a.dense_rows.empty())
        dense_rows_backward<T>(a, batch, kv_head, sums.d_k, sums.d_v, sums.d_gate,
                               m.mass > 0 ? working_memory<MassTag, W>(m.mass) : nullptr);
    store_rows<T>(a.d_k, n, batch, kv_head, sums.d_k);
    store_rows<T>(a.d_v, n, batch, kv_head, sums.d_v);
    if (a.d_gate.empty()) return;
    W* const d_gate = a.d_gate.as<W>().data() + batch * n.len * n.n_kv_heads + kv_head;
    for (std::int64_t s = 0; s < n.len; ++s)
        d_gate[s * n.n_kv_heads] = tokens.gated(s) ? sums.d_gate[s] : W{0};
}

}  // namespace

void importance_attention_backward(const Args& a) {
    dispatch_dtype(a.q.dtype, [&]<Element T>(T) {
        const Sizes n = sizes_of(a);
        const std::int64_t heads = n.batch * n.n_kv_heads;
        const bool together = heads_together(heads, cpu_threads());  // in one head's chunks
        parallel_for(heads, together ? heads : 1, [&](std::int64_t i, std::int64_t last) {
            for (; i < last; ++i)
                backward_kv_head<T>(a, n, i / n.n_kv_heads, i % n.n_kv_heads);
        });
    });
}

}  // namespace stoa::cpu

namespace stoa {

std::int64_t importance_working_bytes(const AttentionSizes& n, const KeyRule& rule, bool far_mass) {
    const cpu::HeadMemory m = cpu::head_memory(rule, n.len, n.dim, far_mass);
    return cpu::heads_at_once(n.batch * n.n_kv_heads, n.threads) * (m.parts + m.sums + m.mass) *
           size_of(wide_dtype(n.dtype));
}

}  // namespace stoa
