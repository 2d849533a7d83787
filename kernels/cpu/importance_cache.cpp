// Decoding with the keys of importance attention: one query against those that the cache keeps, and
// a part of a prompt as a short sequence of these and the new tokens.
#include <cstring>
#include <vector>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/attention_panels.h"
#include "kernels/cpu/head_matrix.h"
#include "kernels/cpu/importance_keys.h"
#include "kernels/cpu/importance_rows.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/ops.h"

namespace stoa::cpu {
namespace {

using Cache = ImportanceCache;

/// Keys of one head that lie one after the other, the query at `distance` from the first of them.
template <class T, class W = Wide<T>>
struct Run {
    HeadMatrix<T> k, v;
    const W* gate;
    std::int64_t keys, distance, sinks;  // the first `sinks` have no gate
    bool far;
};

/// The newest token's query of every head of a group. The sums are those of forward_panel.
template <class T, class W = Wide<T>>
void attend_newest(const Cache& c, const ImportanceCacheArgs& a, std::int64_t kv_head) {
    struct QueriesTag;
    struct LogitsTag;
    struct KTag;
    struct VTag;
    struct OutTag;
    const std::int64_t heads = a.q.shape[1], group = heads / c.k.view.shape[0], dim = a.q.shape[2];
    const std::int64_t width = pad_width(dim), first_head = kv_head * group;
    const T* const k = c.k.as<T>().data() + kv_head * row_count(c) * dim;
    const T* const v = c.v.as<T>().data() + kv_head * row_count(c) * dim;
    const W* const gate = c.gate.as<W>().data() + kv_head * row_count(c);
    const auto run_at = [&](std::int64_t row, std::int64_t keys, std::int64_t token, bool far) {
        return Run<T>{{k + row * dim, dim},
                      {v + row * dim, dim},
                      gate + row,
                      keys,
                      c.length - 1 - token,
                      std::clamp<std::int64_t>(c.rule.sinks - token, 0, keys),
                      far};
    };
    const Run<T> runs[] = {run_at(0, c.far_keys, 0, true),
                           run_at(c.window_begin, c.window_keys, c.length - c.window_keys, false)};
    const std::int64_t ld = pad_width(c.far_keys) + pad_width(c.window_keys);
    W* const queries = scratch<QueriesTag, W>(group * dim);
    W* const z = scratch<LogitsTag, W>(group * ld);
    W* const out = scratch<OutTag, W>(group * width);
    const W scale = static_cast<W>(a.scale), inverse_window = W{1} / static_cast<W>(c.rule.window);
    for (std::int64_t r = 0; r < group; ++r)
        for (std::int64_t i = 0; i < dim; ++i)
            queries[r * dim + i] =
                W{widen(a.q.as<T>()[static_cast<std::size_t>((first_head + r) * dim + i)])} * scale;
    std::fill_n(out, group * width, W{0});
    std::int64_t at = 0;
    for (const Run<T>& run : runs) {
        if (run.keys == 0) continue;
        W* const packed = scratch<KTag, W>(pad_width(run.keys) * dim);
        pack_right(packed, run.k.from_row(0), true, run.keys, dim);
        multiply(group, pad_width(run.keys), dim, stored_left(queries, dim),
                 packed_right(packed, dim), z + at, ld, Into::write);
        at += pad_width(run.keys);
    }
    std::vector<W> sums(static_cast<std::size_t>(group));
    vectorised([&] {
        for (std::int64_t r = 0; r < group; ++r) {
            const W sink = a.sink_logit.empty()
                               ? -std::numeric_limits<W>::infinity()
                               : a.sink_logit.as<W>()[static_cast<std::size_t>(first_head + r)];
            W max = sink;
            W* row = z + r * ld;
            for (const Run<T>& run : runs) {
                for (std::int64_t j = run.sinks; j < run.keys; ++j)
                    row[j] += run.far ? run.gate[j]
                                      : ramp(run.distance - j, inverse_window) * run.gate[j];
                max = lane_max<W>(run.keys, max, [&](std::int64_t j) { return row[j]; });
                row += pad_width(run.keys);
            }
            const W base = base_of(max);
            W sum = 0;
            row = z + r * ld;
            for (const Run<T>& run : runs) {
                for (std::int64_t j = 0; j < run.keys; ++j)
                    row[j] = fused_exp(row[j] - base);
                for (std::int64_t j = 0; j < run.keys; ++j)
                    sum += row[j];
                row += pad_width(run.keys);
            }
            sums[static_cast<std::size_t>(r)] = sum + fused_exp(sink - base);
        }
    });
    at = 0;
    for (const Run<T>& run : runs) {
        if (run.keys == 0) continue;
        W* const packed = scratch<VTag, W>(run.keys * width);
        pack_right(packed, run.v.from_row(0), false, dim, run.keys);
        multiply(group, width, run.keys, stored_left(z + at, ld), packed_right(packed, run.keys),
                 out, width, Into::chain);
        at += pad_width(run.keys);
    }
    T* const to = a.out.as<T>().data() + first_head * dim;
    for (std::int64_t r = 0; r < group; ++r) {
        const W inverse = W{1} / sums[static_cast<std::size_t>(r)];
        for (std::int64_t i = 0; i < dim; ++i)
            to[r * dim + i] = narrow_to<T>(out[r * width + i] * inverse);
    }
}

/// A part of a prompt with what the cache holds, whose last queries are computed.
struct Part {
    Tensor k, v, gate, key_begin;
};
Part make_part(const Cache& c, const ImportanceCacheArgs& a) {
    const std::int64_t heads = c.k.view.shape[0], dim = c.k.view.shape[2], q_len = a.q.shape[0];
    const std::int64_t old = held(c), len = old + q_len;
    const DType dtype = c.k.view.dtype;
    Part p{Tensor({1, len, heads, dim}, dtype), Tensor({1, len, heads, dim}, dtype),
           Tensor({1, len, heads}, c.gate.view.dtype), Tensor({len}, DType::int32)};
    const auto copy = [&](const Tensor& to, const Tensor& kept, const ConstTensorView& added,
                          std::int64_t bytes) {
        for (std::int64_t row = 0; row < old; ++row)
            for (std::int64_t h = 0; h < heads; ++h) {
                std::memcpy(to.view.data + (row * heads + h) * bytes,
                            kept.view.data + (h * row_count(c) + row_of(c, row)) * bytes,
                            static_cast<std::size_t>(bytes));
            }
        if (!added.empty())
            std::memcpy(to.view.data + old * heads * bytes, added.data,
                        static_cast<std::size_t>(q_len * heads * bytes));
    };
    copy(p.k, c.k, a.k, dim * size_of(dtype));
    copy(p.v, c.v, a.v, dim * size_of(dtype));
    copy(p.gate, c.gate, a.gate, size_of(c.gate.view.dtype));
    return p;
}

}  // namespace

void importance_cache_attend(ImportanceCache& cache, const ImportanceCacheArgs& a) {
    const std::int64_t q_len = a.q.shape[0], n_heads = a.q.shape[1], dim = a.q.shape[2],
                       heads = cache.k.view.shape[0];
    const ImportanceCacheKeys keys{a.k, a.v, a.gate, a.importance};
    if (q_len == 1) {
        push(cache, keys);
        dispatch_dtype(a.q.dtype, [&]<Element T>(T) {
            parallel_for(cache.k.view.shape[0], 1, [&](std::int64_t head, std::int64_t last) {
                for (; head < last; ++head)
                    attend_newest<T>(cache, a, head);
            });
        });
        return;
    }
    const Part p = make_part(cache, a);
    const Tensor expiry = select_with(cache, a.importance, q_len);
    const Tensor lse({1, n_heads, q_len}, cache.gate.view.dtype);
    importance_attention_forward({.out = a.out.reshaped({1, q_len, n_heads, dim}),
                                  .lse = lse,
                                  .q = a.q.reshaped({1, q_len, n_heads, dim}),
                                  .k = p.k,
                                  .v = p.v,
                                  .expiry = expiry.view.reshaped({1, heads, held(cache) + q_len}),
                                  .key_begin = p.key_begin,
                                  .gate = a.gate.empty() ? ConstTensorView{} : p.gate,
                                  .sink_logit = a.sink_logit,
                                  .rule = cache.rule,
                                  .scale = a.scale});
    take(cache, keys, expiry);
}

void importance_cache_append(ImportanceCache& cache, const ImportanceCacheKeys& keys) {
    const std::int64_t count = keys.k.shape[0];
    if (count == 0) return;
    if (count == 1) return push(cache, keys);
    take(cache, keys, select_with(cache, keys.importance, count));
}

}  // namespace stoa::cpu
