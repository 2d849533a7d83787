// Attention by blocks of queries: per (batch entry, head) a block's scores against the union of its
// rows' key ranges are one GEMM, the softmax works on that block in cache, and p v is another GEMM.
// q, k and v are read where they lie, in their own dtype. The threads divide the heads; the heads
// of a group go to one thread in the backward, which sums them.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/fast_exp.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/head_matrix.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/scratch.h"

namespace stoa::cpu {
namespace {

constexpr std::int64_t kBlockRows = 64;  // queries per block: few masked scores, still whole tiles

/// The rows of one block and the keys that any of them attends.
struct Block {
    std::int64_t row_begin = 0, rows = 0;  // queries of this batch entry
    std::int64_t key_begin = 0, keys = 0;
    const std::int32_t *row_key_begin = nullptr, *row_key_end = nullptr;  // per row of the block
    /// Keys of row r, counted from key_begin. Empty ranges come out as 0..0.
    std::int64_t from(std::int64_t r) const { return empty(r) ? 0 : row_key_begin[r] - key_begin; }
    std::int64_t to(std::int64_t r) const { return empty(r) ? 0 : row_key_end[r] - key_begin; }
    bool empty(std::int64_t r) const { return row_key_end[r] <= row_key_begin[r]; }
};

Block make_block(const ConstTensorView& key_begin, const ConstTensorView& key_end,
                 std::int64_t batch, std::int64_t row_begin, std::int64_t q_len) {
    const std::int64_t first = batch * q_len + row_begin;
    Block b{.row_begin = row_begin,
            .rows = std::min(kBlockRows, q_len - row_begin),
            .row_key_begin = key_begin.as<std::int32_t>().data() + first,
            .row_key_end = key_end.as<std::int32_t>().data() + first};
    std::int64_t begin = std::numeric_limits<std::int64_t>::max(), end = 0;
    for (std::int64_t r = 0; r < b.rows; ++r) {
        if (b.empty(r)) continue;
        begin = std::min<std::int64_t>(begin, b.row_key_begin[r]);
        end = std::max<std::int64_t>(end, b.row_key_end[r]);
    }
    if (end > begin) b.key_begin = begin, b.keys = end - begin;
    return b;
}

/// scores (rows, keys) = q k^T of the block, unscaled.
template <class T, class W>
void block_scores(W* scores, const Block& b, const HeadMatrix<T>& q, const HeadMatrix<T>& k,
                  std::int64_t dim) {
    gemm({.m = b.rows,
          .n = b.keys,
          .k = dim,
          .a = q.from_row(b.row_begin),
          .b = k.from_row(b.key_begin, true),
          .c = result(scores, b.keys)});
}

/// fn(first, last) over `heads` heads, divided among the threads; a few keys stay on this one.
template <class Fn>
void over_heads(std::int64_t heads, std::int64_t q_len, std::int64_t k_len, const Fn& fn) {
    parallel_for(heads, grain_for(q_len * k_len), fn);
}

/// Scores outside row r's keys become -infinity, so that exp makes them 0 and every loop over the
/// row runs the whole width, without a tail.
template <class W>
void mask_row(W* scores, const Block& b, std::int64_t r) {
    std::fill(scores, scores + b.from(r), -std::numeric_limits<W>::infinity());
    std::fill(scores + b.to(r), scores + b.keys, -std::numeric_limits<W>::infinity());
}

/// Scores to unnormalised probabilities exp(s - max), 0 outside the row's keys; lse and 1 / sum.
template <class W>
void block_softmax(W* scores, W* lse, W* inverse_sum, const Block& b, W scale) {
    const std::int64_t keys = b.keys;
    vectorised([&] {
        for (std::int64_t r = 0; r < b.rows; ++r, scores += keys) {
            W* const s = scores;
            mask_row(s, b, r);
            const W max = lane_max<W>(keys, std::numeric_limits<W>::lowest(),
                                      [&](std::int64_t j) { return s[j] * scale; });
            for (std::int64_t j = 0; j < keys; ++j)
                s[j] = fast_exp(s[j] * scale - max);
            const W sum = lane_sum<W>(keys, [&](std::int64_t j) { return s[j]; });
            lse[r] = b.empty(r) ? -std::numeric_limits<W>::infinity() : max + std::log(sum);
            inverse_sum[r] = b.empty(r) ? W{0} : W{1} / sum;
        }
    });
}

/// One head of one batch entry.
template <class T, class W = Wide<T>>
void forward_head(const AttentionArgs& args, std::int64_t batch, std::int64_t h) {
    struct ScoresTag;
    struct OutTag;
    const std::int64_t q_len = args.q.shape[1], n_heads = args.q.shape[2], dim = args.q.shape[3];
    const std::int64_t kv_head = h / (n_heads / args.k.shape[2]);
    W* const scores = scratch<ScoresTag, W>(kBlockRows * args.k.shape[1]);
    W* const out = scratch<OutTag, W>(kBlockRows * dim);
    W inverse_sum[kBlockRows];
    const auto q = head_matrix<T>(args.q, batch, h), k = head_matrix<T>(args.k, batch, kv_head),
               v = head_matrix<T>(args.v, batch, kv_head);
    W* const lse = args.lse.as<W>().data() + (batch * n_heads + h) * q_len;
    for (std::int64_t t = 0; t < q_len; t += kBlockRows) {
        const Block b = make_block(args.key_begin, args.key_end, batch, t, q_len);
        block_scores(scores, b, q, k, dim);
        block_softmax(scores, lse + t, inverse_sum, b, static_cast<W>(args.scale));
        gemm({.m = b.rows,
              .n = dim,
              .k = b.keys,
              .a = operand(scores, b.keys),
              .b = v.from_row(b.key_begin),
              .c = result(out, dim)});
        for (std::int64_t r = 0; r < b.rows; ++r)
            for (std::int64_t c = 0; c < dim; ++c)
                out[r * dim + c] *= inverse_sum[r];
        store_head<T>(args.out, batch, h, t, b.rows, out);
    }
}

/// scores to p = exp(s * scale - lse), and d_p to d_s = scale * p * (d_p - delta); 0 outside.
template <class W>
void block_softmax_backward(W* p, W* d_s, const Block& b, const W* lse, const W* delta, W scale) {
    const std::int64_t keys = b.keys;
    vectorised([&] {
        for (std::int64_t r = 0; r < b.rows; ++r, p += keys, d_s += keys) {
            const W row_lse = b.empty(r) ? W{0} : lse[r], row_delta = delta[r];
            mask_row(p, b, r);
#pragma GCC ivdep
            for (std::int64_t j = 0; j < keys; ++j) {
                p[j] = fast_exp(p[j] * scale - row_lse);
                d_s[j] = scale * p[j] * (d_s[j] - row_delta);
            }
        }
    });
}

/// delta[r] = sum over the head's columns of d_out * out.
template <class T, class W>
void block_delta(W* delta, const Block& b, const HeadMatrix<T>& d_out, const HeadMatrix<T>& out,
                 std::int64_t dim) {
    vectorised([&] {
        for (std::int64_t r = 0; r < b.rows; ++r) {
            const T* const x = d_out.row(b.row_begin + r);
            const T* const y = out.row(b.row_begin + r);
            delta[r] =
                lane_sum<W>(dim, [&](std::int64_t c) { return W{widen(x[c])} * W{widen(y[c])}; });
        }
    });
}

/// One query head of one batch entry; d_k and d_v (k_len, dim) of its kv head are added to.
template <class T, class W = Wide<T>>
void backward_head(const AttentionBackwardArgs& args, std::int64_t batch, std::int64_t h, W* d_k,
                   W* d_v) {
    struct PTag;
    struct DSTag;
    struct DQTag;
    const std::int64_t q_len = args.q.shape[1], n_heads = args.q.shape[2], dim = args.q.shape[3];
    const std::int64_t k_len = args.k.shape[1], kv_head = h / (n_heads / args.k.shape[2]);
    W* const p = scratch<PTag, W>(kBlockRows * k_len);
    W* const d_s = scratch<DSTag, W>(kBlockRows * k_len);
    W* const d_q = scratch<DQTag, W>(kBlockRows * dim);
    W delta[kBlockRows];
    const auto q = head_matrix<T>(args.q, batch, h), k = head_matrix<T>(args.k, batch, kv_head),
               v = head_matrix<T>(args.v, batch, kv_head), out = head_matrix<T>(args.out, batch, h),
               d_out = head_matrix<T>(args.d_out, batch, h);
    const W* const lse = args.lse.as<W>().data() + (batch * n_heads + h) * q_len;
    for (std::int64_t t = 0; t < q_len; t += kBlockRows) {
        const Block b = make_block(args.key_begin, args.key_end, batch, t, q_len);
        block_scores(p, b, q, k, dim);
        block_scores(d_s, b, d_out, v, dim);
        block_delta(delta, b, d_out, out, dim);
        block_softmax_backward(p, d_s, b, lse + t, delta, static_cast<W>(args.scale));
        Gemm to_keys{.m = b.keys,
                     .n = dim,
                     .k = b.rows,
                     .a = operand(p, b.keys, true),
                     .b = d_out.from_row(t),
                     .c = result(d_v + b.key_begin * dim, dim),
                     .accumulate = true};
        gemm(to_keys);  // d_v += p^T d_out
        to_keys.a = operand(d_s, b.keys, true);
        to_keys.b = q.from_row(t);
        to_keys.c = result(d_k + b.key_begin * dim, dim);
        gemm(to_keys);  // d_k += d_s^T q
        gemm({.m = b.rows,
              .n = dim,
              .k = b.keys,
              .a = operand(d_s, b.keys),
              .b = k.from_row(b.key_begin),
              .c = result(d_q, dim)});
        store_head<T>(args.d_q, batch, h, t, b.rows, d_q);
    }
}

/// One kv head of one batch entry: the query heads of its group, in order.
template <class T, class W = Wide<T>>
void backward_group(const AttentionBackwardArgs& args, std::int64_t batch, std::int64_t kv_head) {
    struct DKTag;
    struct DVTag;
    const std::int64_t k_len = args.k.shape[1], dim = args.k.shape[3];
    const std::int64_t group = args.q.shape[2] / args.k.shape[2];
    W* const d_k = scratch<DKTag, W>(k_len * dim);
    W* const d_v = scratch<DVTag, W>(k_len * dim);
    std::fill_n(d_k, k_len * dim, W{0});
    std::fill_n(d_v, k_len * dim, W{0});
    for (std::int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h)
        backward_head<T>(args, batch, h, d_k, d_v);
    store_head<T>(args.d_k, batch, kv_head, 0, k_len, d_k);
    store_head<T>(args.d_v, batch, kv_head, 0, k_len, d_v);
}

}  // namespace

void attention_forward(const AttentionArgs& args) {
    dispatch_dtype(args.q.dtype, [&]<Element T>(T) {
        const std::int64_t n_heads = args.q.shape[2];
        over_heads(args.q.shape[0] * n_heads, args.q.shape[1], args.k.shape[1],
                   [&](std::int64_t begin, std::int64_t end) {
                       for (; begin < end; ++begin)
                           forward_head<T>(args, begin / n_heads, begin % n_heads);
                   });
    });
}

void attention_backward(const AttentionBackwardArgs& args) {
    dispatch_dtype(args.q.dtype, [&]<Element T>(T) {
        const std::int64_t n_kv_heads = args.k.shape[2];
        over_heads(args.q.shape[0] * n_kv_heads, args.q.shape[1], args.k.shape[1],
                   [&](std::int64_t begin, std::int64_t end) {
                       for (; begin < end; ++begin)
                           backward_group<T>(args, begin / n_kv_heads, begin % n_kv_heads);
                   });
    });
}

}  // namespace stoa::cpu
