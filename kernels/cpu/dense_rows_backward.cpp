// Backward of the dense rows, in two passes that both make the scores anew: by columns of keys,
// whose gradients sum over all rows, and by blocks of rows, whose gradients sum over all keys. So
// the threads share nothing, and every sum is one chain.
#include "kernels/core/thread_pool.h"
#include "kernels/cpu/attention_gradients.h"
#include "kernels/cpu/dense_gates.h"
#include "kernels/cpu/dense_rows.h"
#include "kernels/cpu/lanes.h"

namespace stoa::cpu {
namespace {

using Args = ImportanceAttentionBackwardArgs;
using Sizes = ImportanceSizes;
constexpr std::int64_t kColumnBlocks = 4, kColumnKeys = kColumnBlocks * kBlockKeys;

/// One kv head of one batch entry.
template <class T, class W>
struct Head {
    const Args& a;
    Sizes n;
    std::int64_t batch, kv_head;
    std::span<const std::int32_t> rows;
    Tokens<W> tokens;
    HeadMatrix<T> k, v;
    W *d_k, *d_v, *d_gate, *mass;  // by token; mass may be null
    std::int64_t blocks() const { return (std::ssize(rows) + kBlockQueries - 1) / kBlockQueries; }
    std::span<const std::int32_t> block(std::int64_t i) const {
        const auto at = static_cast<std::size_t>(i * kBlockQueries);
        return rows.subspan(at, std::min<std::size_t>(kBlockQueries, rows.size() - at));
    }
};

/// A block of rows of query head h.
template <class W>
struct RowBlock {
    QueryBlock<W> q;
    RowKeys<kBlockQueries> seen;
    LaneKeys lanes[kParts];
};
template <class T, class W>
RowBlock<W> load_rows(const Head<T, W>& head, std::int64_t h,
                      std::span<const std::int32_t> tokens) {
    struct QueriesTag;
    struct RowsTag;
    struct GradientsTag;
    const Sizes& n = head.n;
    const std::int64_t rows = std::ssize(tokens);
    const auto out = head_matrix<T>(head.a.out, head.batch, h),
               d_out = head_matrix<T>(head.a.d_out, head.batch, h);
    RowBlock<W> b{.q = {}, .seen{tokens, head.tokens.begin}, .lanes = {}};
    pack_queries(b.q, scratch<QueriesTag, W>(QueryBlock<W>::values(n.dim)),
                 gather<RowsTag>(head_matrix<T>(head.a.q, head.batch, h), tokens, n.dim),
                 gather<GradientsTag>(d_out, tokens, n.dim), 0, rows, n.dim,
                 static_cast<W>(head.a.scale));
    const W* const lse = head.a.lse.template as<W>().data() + (head.batch * n.n_heads + h) * n.len;
    std::fill_n(b.q.lse, kBlockQueries, W{0});
    std::fill_n(b.q.delta, kBlockQueries, W{0});
    vectorised([&] {
        for (std::int64_t r = 0; r < rows; ++r) {
            const std::int32_t t = tokens[static_cast<std::size_t>(r)];
            const T *const x = d_out.row(t), *const y = out.row(t);
            b.q.lse[r] = lse[t];
            b.q.delta[r] =
                lane_sum<W>(n.dim, [&](std::int64_t c) { return W{widen(x[c])} * W{widen(y[c])}; });
        }
    });
    for (std::int64_t part = 0; part < kParts; ++part)
        b.lanes[part] =
            lane_keys(b.seen.begin + part * kQueryLanes, b.seen.end + part * kQueryLanes,
                      std::clamp<std::int64_t>(rows - part * kQueryLanes, 0, kQueryLanes));
    return b;
}

/// Scores of keys from `first` on to probabilities, and their gradients to those of logits; 0 where
/// a row does not see a key. With `sums`, keys' gates and far mass get theirs.
template <class T, class W>
void to_gradients(const Head<T, W>& head, const BlockScores<W>& s, const RowBlock<W>& b,
                  std::int64_t first, std::int64_t keys, bool hidden, bool sums) {
    const std::int64_t rows = b.q.rows;
    const std::int32_t *const begin = b.seen.begin, *const end = b.seen.end;
    const auto window = static_cast<std::int32_t>(head.tokens.window);
    const W inverse_window = W{1} / static_cast<W>(head.tokens.window);
    vectorised([&] {
        for (std::int64_t j = 0; j < keys; ++j) {
            const auto key = static_cast<std::int32_t>(first + j);
            W *const p = s.p + j * kBlockQueries, *const d_z = s.d_z + j * kBlockQueries;
            add_gate<kBlockQueries>(p, head.tokens, key, end);
#pragma GCC ivdep
            for (std::int64_t r = 0; r < kBlockQueries; ++r) {
                p[r] = fused_exp(p[r] - b.q.lse[r]);
                d_z[r] = p[r] * (d_z[r] - b.q.delta[r]);
            }
            if (hidden) {
#pragma GCC ivdep
                for (std::int64_t r = 0; r < kBlockQueries; ++r) {
                    const bool seen = (begin[r] <= key) & (key < end[r]);
                    p[r] = seen ? p[r] : W{0};
                    d_z[r] = seen ? d_z[r] : W{0};
                }
            }
            if (!sums) continue;
            if (head.tokens.gated(key))
                head.d_gate[key] += lane_sum<W>(rows, [&](std::int64_t r) {
                    return ramp_before(end[r], key, inverse_window) * d_z[r];
                });
            if (head.mass != nullptr)
                head.mass[key] += lane_sum<W>(
                    rows, [&](std::int64_t r) { return end[r] - 1 - key >= window ? p[r] : W{0}; });
        }
    });
}

/// A block of rows against a block of keys; d_q null: towards keys, else only towards rows.
template <class T, class W>
void add_block(const Head<T, W>& head, const RowBlock<W>& b, const KeyBlock<W>& k,
               std::int64_t first, W* d_q) {
    if (b.seen.last() <= first || first + k.keys <= b.seen.first()) return;
    bool hidden = b.q.rows < kBlockQueries;
    PartKeys keys{.from = {}, .to = {}};
    for (std::int64_t part = 0; part < kParts; ++part) {
        const LaneKeys& l = b.lanes[part];
        hidden = hidden || !l.all_see(first, first + k.keys);
        keys.from[part] = std::clamp<std::int64_t>(l.first - first, 0, k.keys);
        keys.to[part] = std::clamp<std::int64_t>(l.last - first, keys.from[part], k.keys);
    }
    const BlockScores<W> s = block_scores(b.q, k, keys);
    to_gradients(head, s, b, first, k.keys, hidden, d_q == nullptr);
    const std::int64_t at = first * pad_width(head.n.dim);
    add_gradients(s, b.q, k, d_q == nullptr ? head.d_k + at : nullptr,
                  d_q == nullptr ? head.d_v + at : nullptr, d_q, keys, hidden,
                  [&](std::int64_t r, std::int64_t j) {
                      return b.lanes[r / kQueryLanes].sees(r % kQueryLanes, first + j);
                  });
}

/// All rows against the keys of a column.
template <class T, class W>
void to_keys(const Head<T, W>& head, std::int64_t column) {
    struct KeysTag;
    const std::int64_t begin = column * kColumnKeys,
                       end = std::min(head.n.len, begin + kColumnKeys),
                       values = KeyBlock<W>::values(head.n.dim);
    W* const memory = scratch<KeysTag, W>(kColumnBlocks * values);
    KeyBlock<W> blocks[kColumnBlocks];
    for (std::int64_t first = begin, b = 0; first < end; first += kBlockKeys, ++b)
        pack_keys(blocks[b], memory + b * values, head.k, head.v, first,
                  std::min(kBlockKeys, end - first), head.n.dim);
    for (std::int64_t h = head.kv_head * head.n.group(); h < (head.kv_head + 1) * head.n.group();
         ++h)
        for (std::int64_t i = 0; i < head.blocks(); ++i) {
            const auto tokens = head.block(i);
            if (tokens.back() < begin || end <= head.tokens.begin[tokens.front()]) continue;
            const RowBlock<W> rows = load_rows(head, h, tokens);
            for (std::int64_t first = begin, b = 0; first < end; first += kBlockKeys, ++b)
                add_block(head, rows, blocks[b], first, static_cast<W*>(nullptr));
        }
}

/// A block of rows of query head h against all of its keys.
template <class T, class W>
void to_rows(const Head<T, W>& head, std::int64_t h, std::int64_t i) {
    struct KeysTag;
    struct DQTag;
    struct ResultTag;
    const std::int64_t dim = head.n.dim;
    const auto tokens = head.block(i);
    const RowBlock<W> rows = load_rows(head, h, tokens);
    W* const d_q = scratch<DQTag, W>(dim * kBlockQueries);
    std::fill_n(d_q, dim * kBlockQueries, W{0});
    for (std::int64_t first = rows.seen.first() / kBlockKeys * kBlockKeys; first < rows.seen.last();
         first += kBlockKeys) {
        KeyBlock<W> keys;
        pack_keys(keys, scratch<KeysTag, W>(KeyBlock<W>::values(dim)), head.k, head.v, first,
                  std::min(kBlockKeys, rows.seen.last() - first), dim);
        add_block(head, rows, keys, first, d_q);
    }
    W* const result = scratch<ResultTag, W>(kBlockQueries * dim);
    transpose(result, d_q, kBlockQueries, dim, kBlockQueries);
    scale_all(result, kBlockQueries * dim, static_cast<W>(head.a.scale));
    for (std::int64_t r = 0; r < std::ssize(tokens); ++r)
        store_head<T>(head.a.d_q, head.batch, h, tokens[static_cast<std::size_t>(r)], 1,
                      result + r * dim);
}

}  // namespace

template <class T, class W>
void dense_rows_backward(const Args& a, std::int64_t batch, std::int64_t kv_head, W* d_k, W* d_v,
                         W* d_gate, W* mass) {
    const Sizes n = sizes_of(a);
    if (mass != nullptr) std::fill_n(mass, n.len, W{0});
    const Head<T, W> head{.a = a,
                          .n = n,
                          .batch = batch,
                          .kv_head = kv_head,
                          .rows = dense_rows_of(a.dense_rows, batch),
                          .tokens = tokens_of<W>(a, n, batch, kv_head),
                          .k = head_matrix<T>(a.k, batch, kv_head),
                          .v = head_matrix<T>(a.v, batch, kv_head),
                          .d_k = d_k,
                          .d_v = d_v,
                          .d_gate = d_gate,
                          .mass = mass};
    parallel_for((n.len + kColumnKeys - 1) / kColumnKeys, 1,
                 [&](std::int64_t column, std::int64_t end) {
                     for (; column < end; ++column)
                         to_keys(head, column);
                 });
    parallel_for(n.group() * head.blocks(), 1, [&](std::int64_t i, std::int64_t end) {
        for (; i < end; ++i)
            to_rows(head, kv_head * n.group() + i / head.blocks(), i % head.blocks());
    });
    if (mass == nullptr) return;
    W* const to = a.far_mass.as<W>().data() + batch * n.len * n.n_kv_heads + kv_head;
    for (std::int64_t s = 0; s < n.len; ++s)
        to[s * n.n_kv_heads] = mass[s];
}

template void dense_rows_backward<float>(const Args&, std::int64_t, std::int64_t, float*, float*,
                                         float*, float*);
template void dense_rows_backward<double>(const Args&, std::int64_t, std::int64_t, double*, double*,
                                          double*, double*);
template void dense_rows_backward<bf16>(const Args&, std::int64_t, std::int64_t, float*, float*,
                                        float*, float*);
template void dense_rows_backward<fp16>(const Args&, std::int64_t, std::int64_t, float*, float*,
                                        float*, float*);

}  // namespace stoa::cpu
