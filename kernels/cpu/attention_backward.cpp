// The backward of attention.cpp by columns of keys: a column's gradients stay in cache while all
// blocks of queries pass by. d_q of a block is added to by one column after the other, d_k and d_v
// of a column by one block after the other: the columns run beside each other, each a little behind
// the one before it, and the order of every sum is the same for any number of threads.
#include <algorithm>
#include <atomic>
#include <limits>
#include <thread>
#include <vector>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/attention_gradients.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/ops.h"
#include "kernels/working_memory.h"

namespace stoa::cpu {
namespace {

constexpr std::int64_t kColumnBlocks = 4, kColumnKeys = kColumnBlocks * kBlockKeys;

/// One kv head of one batch entry, and what its columns share.
template <class W>
struct Head {
    std::int64_t batch, kv_head, group, q_len, k_len, n_heads, dim;
    std::int64_t blocks() const { return (q_len + kBlockQueries - 1) / kBlockQueries; }
    std::int64_t columns() const { return (k_len + kColumnKeys - 1) / kColumnKeys; }
    std::int64_t rows(std::int64_t block) const {
        return std::min(kBlockQueries, q_len - block * kBlockQueries);
    }
    const std::int32_t *key_begin, *key_end;      // (q_len)
    W *d_q, *delta;                               // (group, blocks, dim, 64), (group, q_len)
    std::vector<std::int64_t> first, last;        // by block: the keys that any of its queries sees
    std::vector<std::atomic<std::int64_t>> done;  // by column: blocks of all heads of the group
};

/// A column says how far it is; also when it is left by an exception, so that nobody waits for it.
template <class W>
struct Progress {
    Head<W>& head;
    std::int64_t column;
    void await_before(std::int64_t step) const {
        if (column == 0) return;
        const auto& before = head.done[static_cast<std::size_t>(column - 1)];
        for (int i = 0; before.load(std::memory_order_acquire) <= step; ++i)
            if (i >= 1000) std::this_thread::yield();
    }
    void set(std::int64_t steps) const {
        head.done[static_cast<std::size_t>(column)].store(steps, std::memory_order_release);
    }
    ~Progress() { set(std::numeric_limits<std::int64_t>::max()); }
};

/// Scores to probabilities, and their gradients to those of scores.
template <class W>
void to_gradients(const BlockScores<W>& s, const QueryBlock<W>& q, std::int64_t keys) {
    vectorised([&] {
        for (std::int64_t i = 0; i < keys; ++i) {
            W *const p = s.p + i * kBlockQueries, *const d_z = s.d_z + i * kBlockQueries;
#pragma GCC ivdep
            for (std::int64_t r = 0; r < kBlockQueries; ++r) {
                p[r] = fused_exp(p[r] - q.lse[r]);
                d_z[r] = p[r] * (d_z[r] - q.delta[r]);
            }
        }
    });
}
/// 0 where a query does not see a key; the first row is key `first`.
template <class W>
void hide(const BlockScores<W>& s, const LaneKeys* lanes, std::int64_t first, std::int64_t keys) {
    vectorised([&] {
        for (std::int64_t i = 0; i < keys; ++i)
            for (std::int64_t part = 0; part < kParts; ++part) {
                const auto key = static_cast<std::int32_t>(first + i);
                W* const p = s.p + i * kBlockQueries + part * kQueryLanes;
                W* const d_z = s.d_z + i * kBlockQueries + part * kQueryLanes;
                for (std::int64_t r = 0; r < kQueryLanes; ++r) {
                    const bool seen = (lanes[part].begin[r] <= key) & (key < lanes[part].end[r]);
                    p[r] = seen ? p[r] : W{0};
                    d_z[r] = seen ? d_z[r] : W{0};
                }
            }
    });
}

template <class W>
struct Column {
    std::int64_t first = 0, keys = 0;
    KeyBlock<W> blocks[kColumnBlocks];
    W *d_k, *d_v;  // (keys, padded dim)
};

/// One block of queries of head h of the group against a column.
template <class T, class W = Wide<T>>
void backward_block(const AttentionBackwardArgs& a, const Head<W>& head, const Column<W>& column,
                    const Progress<W>& progress, std::int64_t h, std::int64_t block) {
    struct QueriesTag;
    const std::int64_t dim = head.dim, rows = head.rows(block), row = block * kBlockQueries;
    const std::int64_t query_head = head.kv_head * head.group + h;
    QueryBlock<W> q;
    pack_queries(q, scratch<QueriesTag, W>(QueryBlock<W>::values(dim)),
                 head_matrix<T>(a.q, head.batch, query_head),
                 head_matrix<T>(a.d_out, head.batch, query_head), row, rows, dim,
                 static_cast<W>(a.scale));
    const W* const lse =
        a.lse.as<W>().data() + (head.batch * head.n_heads + query_head) * head.q_len + row;
    for (std::int64_t r = 0; r < kBlockQueries; ++r) {
        const bool sees = r < rows && head.key_begin[row + r] < head.key_end[row + r];
        q.lse[r] = sees ? lse[r] : W{0};
        q.delta[r] = sees ? head.delta[h * head.q_len + row + r] : W{0};
    }
    LaneKeys lanes[kParts];
    for (std::int64_t part = 0; part < kParts; ++part)
        lanes[part] = lane_keys(
            head.key_begin + row + part * kQueryLanes, head.key_end + row + part * kQueryLanes,
            std::clamp<std::int64_t>(rows - part * kQueryLanes, 0, kQueryLanes));
    W* const d_q = head.d_q + (h * head.blocks() + block) * dim * kBlockQueries;
    progress.await_before(h * head.blocks() + block);
    for (std::int64_t b = 0; b * kBlockKeys < column.keys; ++b) {
        const std::int64_t first = column.first + b * kBlockKeys, at = b * kBlockKeys;
        const KeyBlock<W>& k = column.blocks[b];
        if (head.last[static_cast<std::size_t>(block)] <= first ||
            first + k.keys <= head.first[static_cast<std::size_t>(block)])
            continue;
        bool hidden = false;
        PartKeys keys;
        for (std::int64_t part = 0; part < kParts; ++part) {
            const LaneKeys& l = lanes[part];
            hidden = hidden || !l.all_see(first, first + k.keys);
            keys.from[part] = std::clamp<std::int64_t>(l.first - first, 0, k.keys);
            keys.to[part] = std::clamp<std::int64_t>(l.last - first, keys.from[part], k.keys);
        }
        const BlockScores<W> s = block_scores(q, k, keys);
        to_gradients(s, q, k.keys);
        if (hidden) hide(s, lanes, first, k.keys);
        add_gradients(s, q, k, column.d_k + at * pad_width(dim), column.d_v + at * pad_width(dim),
                      d_q, keys, hidden, [&](std::int64_t r, std::int64_t j) {
                          return lanes[r / kQueryLanes].sees(r % kQueryLanes, first + j);
                      });
    }
}

template <class T, class W>
void store_column(const TensorView& gradient, const Head<W>& head, const Column<W>& column,
                  W* rows) {
    const std::int64_t width = pad_width(head.dim);
    if (width != head.dim)
        for (std::int64_t j = 1; j < column.keys; ++j)
            std::copy_n(rows + j * width, head.dim, rows + j * head.dim);
    store_head<T>(gradient, head.batch, head.kv_head, column.first, column.keys, rows);
}

template <class T, class W = Wide<T>>
void backward_column(const AttentionBackwardArgs& a, Head<W>& head, std::int64_t index) {
    struct KeysTag;
    struct SumsTag;
    const Progress<W> progress{head, index};
    const auto k = head_matrix<T>(a.k, head.batch, head.kv_head),
               v = head_matrix<T>(a.v, head.batch, head.kv_head);
    const std::int64_t values = KeyBlock<W>::values(head.dim), width = pad_width(head.dim);
    W* const memory = scratch<KeysTag, W>(kColumnBlocks * values);
    W* const sums = scratch<SumsTag, W>(2 * kColumnKeys * width);
    Column<W> column{.first = index * kColumnKeys,
                     .keys = std::min(kColumnKeys, head.k_len - index * kColumnKeys),
                     .d_k = sums,
                     .d_v = sums + kColumnKeys * width};
    for (W* const gradient : {column.d_k, column.d_v})
        std::fill_n(gradient, column.keys * width, W{0});
    bool packed = false;
    for (std::int64_t h = 0; h < head.group; ++h)
        for (std::int64_t block = 0; block < head.blocks(); ++block) {
            if (head.last[static_cast<std::size_t>(block)] <= column.first ||
                column.first + column.keys <= head.first[static_cast<std::size_t>(block)])
                continue;
            for (std::int64_t b = 0; b * kBlockKeys < column.keys && !packed; ++b)
                pack_keys(column.blocks[b], memory + b * values, k, v,
                          column.first + b * kBlockKeys,
                          std::min(kBlockKeys, column.keys - b * kBlockKeys), head.dim);
            packed = true;
            backward_block<T>(a, head, column, progress, h, block);
            progress.set(h * head.blocks() + block + 1);
        }
    store_column<T>(a.d_k, head, column, column.d_k);
    store_column<T>(a.d_v, head, column, column.d_v);
}

/// delta = sum over the head's columns of d_out * out, for one block of queries.
template <class T, class W>
void block_delta(const AttentionBackwardArgs& a, const Head<W>& head, std::int64_t h,
                 std::int64_t block) {
    const auto out = head_matrix<T>(a.out, head.batch, head.kv_head * head.group + h),
               d_out = head_matrix<T>(a.d_out, head.batch, head.kv_head * head.group + h);
    const std::int64_t row = block * kBlockQueries;
    vectorised([&] {
        for (std::int64_t r = row; r < row + head.rows(block); ++r) {
            const T *const x = d_out.row(r), *const y = out.row(r);
            head.delta[h * head.q_len + r] = lane_sum<W>(
                head.dim, [&](std::int64_t c) { return W{widen(x[c])} * W{widen(y[c])}; });
        }
    });
}

template <class T, class W>
void store_queries(const AttentionBackwardArgs& a, const Head<W>& head, std::int64_t h,
                   std::int64_t block) {
    struct RowsTag;
    W* const rows = scratch<RowsTag, W>(kBlockQueries * head.dim);
    const W* const d_q = head.d_q + (h * head.blocks() + block) * head.dim * kBlockQueries;
    transpose(rows, d_q, kBlockQueries, head.dim, kBlockQueries);
    scale_all(rows, kBlockQueries * head.dim, static_cast<W>(a.scale));
    store_head<T>(a.d_q, head.batch, head.kv_head * head.group + h, block * kBlockQueries,
                  head.rows(block), rows);
}

/// Values that a head keeps while its columns are done.
struct HeadMemory {
    std::int64_t d_q, delta;
};
HeadMemory head_memory(std::int64_t group, std::int64_t q_len, std::int64_t dim) {
    const std::int64_t blocks = (q_len + kBlockQueries - 1) / kBlockQueries;
    return {group * blocks * dim * kBlockQueries, group * q_len};
}

template <class T, class W = Wide<T>>
void backward_head(const AttentionBackwardArgs& a, std::int64_t batch, std::int64_t kv_head) {
    struct DQTag;
    struct DeltaTag;
    Head<W> head{.batch = batch,
                 .kv_head = kv_head,
                 .group = a.q.shape[2] / a.k.shape[2],
                 .q_len = a.q.shape[1],
                 .k_len = a.k.shape[1],
                 .n_heads = a.q.shape[2],
                 .dim = a.q.shape[3],
                 .key_begin = a.key_begin.as<std::int32_t>().data() + batch * a.q.shape[1],
                 .key_end = a.key_end.as<std::int32_t>().data() + batch * a.q.shape[1]};
    const HeadMemory memory = head_memory(head.group, head.q_len, head.dim);
    head.d_q = working_memory<DQTag, W>(memory.d_q);
    head.delta = working_memory<DeltaTag, W>(memory.delta);
    head.done = std::vector<std::atomic<std::int64_t>>(static_cast<std::size_t>(head.columns()));
    for (std::int64_t block = 0; block < head.blocks(); ++block) {
        std::int64_t first = head.k_len, last = 0;
        for (std::int64_t r = block * kBlockQueries; r < block * kBlockQueries + head.rows(block);
             ++r) {
            if (head.key_end[r] <= head.key_begin[r]) continue;
            first = std::min<std::int64_t>(first, head.key_begin[r]);
            last = std::max<std::int64_t>(last, head.key_end[r]);
        }
        head.first.push_back(first);
        head.last.push_back(last);
    }
    const auto over_blocks = [&](const auto& fn) {
        parallel_for(head.group * head.blocks(), 16, [&](std::int64_t i, std::int64_t end) {
            for (; i < end; ++i)
                fn(i / head.blocks(), i % head.blocks());
        });
    };
    over_blocks([&](std::int64_t h, std::int64_t block) {
        block_delta<T>(a, head, h, block);
        std::fill_n(head.d_q + (h * head.blocks() + block) * head.dim * kBlockQueries,
                    head.dim * kBlockQueries, W{0});
    });
    parallel_for(head.columns(), 1, [&](std::int64_t column, std::int64_t end) {
        for (; column < end; ++column)
            backward_column<T>(a, head, column);
    });
    over_blocks([&](std::int64_t h, std::int64_t block) { store_queries<T>(a, head, h, block); });
}

}  // namespace

void attention_backward(const AttentionBackwardArgs& a) {
    dispatch_dtype(a.q.dtype, [&]<Element T>(T) {
        const std::int64_t n_kv_heads = a.k.shape[2], heads = a.q.shape[0] * n_kv_heads;
        const bool together = heads_together(heads, cpu_threads());
        parallel_for(heads, together ? heads : grain_for(a.q.shape[1] * a.k.shape[1]),
                     [&](std::int64_t i, std::int64_t end) {
                         for (; i < end; ++i)
                             backward_head<T>(a, i / n_kv_heads, i % n_kv_heads);
                     });
    });
}

}  // namespace stoa::cpu

namespace stoa {

std::int64_t dense_working_bytes(const AttentionSizes& n) {
    const cpu::HeadMemory memory = cpu::head_memory(n.n_heads / n.n_kv_heads, n.len, n.dim);
    return cpu::heads_at_once(n.batch * n.n_kv_heads, n.threads) * (memory.d_q + memory.delta) *
           size_of(wide_dtype(n.dtype));
}

}  // namespace stoa
