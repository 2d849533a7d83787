// Decoding with the keys of importance attention: which tokens a cache keeps, one query against
// them, and a part of a prompt as a short sequence of what the cache holds and the new tokens.
#include <cstring>
#include <vector>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/attention_panels.h"
#include "kernels/cpu/head_matrix.h"
#include "kernels/cpu/importance_keys.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/select_keys.h"

namespace stoa::cpu {
namespace {

using Cache = ImportanceCache;

std::int64_t far_room(const Cache& c) { return c.rule.sinks + c.rule.keep; }
std::int64_t row_count(const Cache& c) { return c.k.view.shape[1]; }

/// Rows [from, from + count) of one head's k, v, gate and importance go to row `to`.
void move_rows(const Cache& c, std::int64_t head, std::int64_t to, std::int64_t from,
               std::int64_t count) {
    for (const Tensor* t : {&c.k, &c.v, &c.gate, &c.importance}) {
        const std::int64_t bytes = t->view.bytes() / t->view.shape[0] / row_count(c);
        std::byte* const rows = t->view.data + head * row_count(c) * bytes;
        std::memmove(rows + to * bytes, rows + from * bytes,
                     static_cast<std::size_t>(count * bytes));
    }
}
double importance_of(const Cache& c, std::int64_t head, std::int64_t row) {
    return c.importance.as<double>()[static_cast<std::size_t>(head * row_count(c) + row)];
}
/// Far rows in order of age: older is better among equals, and a lower row is older.
Ranked<double> rank_of_row(const Cache& c, std::int64_t head, std::int64_t row) {
    return rank_of(importance_of(c, head, row), row);
}
/// Of the kept rows the one to go.
std::int64_t least_kept(const Cache& c, std::int64_t head) {
    std::int64_t least = c.rule.sinks;
    for (std::int64_t row = least + 1; row < c.far_keys; ++row)
        if (rank_of_row(c, head, least).better_than(rank_of_row(c, head, row))) least = row;
    return least;
}

/// The oldest token of a full window leaves it.
void leave_window(Cache& c) {
    const std::int64_t token = c.length - c.window_keys, row = c.window_begin;
    const bool is_sink = token < c.rule.sinks, room = c.far_keys < far_room(c);
    for (std::int64_t head = 0; head < c.k.view.shape[0]; ++head) {
        if (is_sink || (room && c.rule.keep > 0)) {
            move_rows(c, head, c.far_keys, row, 1);
            continue;
        }
        if (c.rule.keep == 0) continue;
        const std::int64_t least = least_kept(c, head);
        if (!rank_of_row(c, head, row).better_than(rank_of_row(c, head, least))) continue;
        move_rows(c, head, least, least + 1, c.far_keys - least - 1);
        move_rows(c, head, c.far_keys - 1, row, 1);
    }
    if (is_sink || (room && c.rule.keep > 0)) ++c.far_keys;
    ++c.window_begin;
    --c.window_keys;
}

template <class W>
W value_at(const ConstTensorView& t, std::int64_t i) {
    if (t.empty()) return W{0};
    return t.dtype == DType::fp64 ? static_cast<W>(t.as<double>()[static_cast<std::size_t>(i)])
                                  : static_cast<W>(t.as<float>()[static_cast<std::size_t>(i)]);
}

/// Token i of the call joins the window.
void push(Cache& c, const ImportanceCacheArgs& a, std::int64_t i) {
    if (c.window_keys == c.rule.window) leave_window(c);
    const std::int64_t heads = c.k.view.shape[0], rows = row_count(c);
    const bool at_end = c.window_begin + c.window_keys == rows;
    for (std::int64_t head = 0; head < heads; ++head) {
        if (at_end) move_rows(c, head, far_room(c), c.window_begin, c.window_keys);
        const std::int64_t row =
            head * rows + (at_end ? far_room(c) : c.window_begin) + c.window_keys;
        const std::int64_t bytes = c.k.view.shape[2] * size_of(c.k.view.dtype);
        std::memcpy(c.k.view.data + row * bytes, a.k.data + (i * heads + head) * bytes,
                    static_cast<std::size_t>(bytes));
        std::memcpy(c.v.view.data + row * bytes, a.v.data + (i * heads + head) * bytes,
                    static_cast<std::size_t>(bytes));
        c.importance.as<double>()[static_cast<std::size_t>(row)] =
            value_at<double>(a.importance, i * heads + head);
        if (c.gate.view.dtype == DType::fp64)
            c.gate.as<double>()[static_cast<std::size_t>(row)] =
                value_at<double>(a.gate, i * heads + head);
        else
            c.gate.as<float>()[static_cast<std::size_t>(row)] =
                value_at<float>(a.gate, i * heads + head);
    }
    if (at_end) c.window_begin = far_room(c);
    ++c.window_keys;
    ++c.length;
}

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

/// A part of a prompt: the cache's tokens and the new ones as one sequence, whose last queries are
/// computed. What is far in the cache is far from all of them there, too, and sinks come first.
struct Part {
    Tensor k, v, gate, importance, expiry, key_begin;
};
Part make_part(const Cache& c, const ImportanceCacheArgs& a) {
    const std::int64_t heads = c.k.view.shape[0], dim = c.k.view.shape[2], q_len = a.q.shape[0];
    const std::int64_t old = c.far_keys + c.window_keys, len = old + q_len;
    const DType dtype = c.k.view.dtype;
    Part p{Tensor({1, len, heads, dim}, dtype),        Tensor({1, len, heads, dim}, dtype),
           Tensor({1, len, heads}, c.gate.view.dtype), Tensor({1, len, heads}, DType::fp64),
           Tensor({1, heads, len}, DType::int32),      Tensor({len}, DType::int32)};
    const auto copy = [&](const Tensor& to, const Tensor& kept, const ConstTensorView& added,
                          std::int64_t bytes) {
        for (std::int64_t row = 0; row < old; ++row)
            for (std::int64_t h = 0; h < heads; ++h) {
                const std::int64_t from =
                    row < c.far_keys ? row : c.window_begin + row - c.far_keys;
                std::memcpy(to.view.data + (row * heads + h) * bytes,
                            kept.view.data + (h * row_count(c) + from) * bytes,
                            static_cast<std::size_t>(bytes));
            }
        if (!added.empty())
            std::memcpy(to.view.data + old * heads * bytes, added.data,
                        static_cast<std::size_t>(q_len * heads * bytes));
    };
    copy(p.k, c.k, a.k, dim * size_of(dtype));
    copy(p.v, c.v, a.v, dim * size_of(dtype));
    copy(p.gate, c.gate, a.gate, size_of(c.gate.view.dtype));
    copy(p.importance, c.importance, {}, size_of(DType::fp64));
    for (std::int64_t i = 0; i < q_len * heads; ++i)
        p.importance.as<double>()[static_cast<std::size_t>(old * heads + i)] =
            value_at<double>(a.importance, i);
    const auto u = p.importance.as<double>();
    for (std::int64_t h = 0; h < heads; ++h) {
        std::vector<Ranked<double>> kept;
        for (std::int64_t row = std::min(c.rule.sinks, c.far_keys); row < c.far_keys; ++row)
            kept.push_back(rank_of_row(c, h, row));
        select_in_document(
            p.expiry.as<std::int32_t>().data() + h * len, 0, len, c.rule,
            [&](std::int64_t s) { return u[static_cast<std::size_t>(s * heads + h)]; }, kept,
            c.far_keys);
    }
    return p;
}

}  // namespace

void importance_cache_attend(ImportanceCache& cache, const ImportanceCacheArgs& a) {
    const std::int64_t q_len = a.q.shape[0], n_heads = a.q.shape[1], dim = a.q.shape[2];
    if (q_len == 1) {
        push(cache, a, 0);
        dispatch_dtype(a.q.dtype, [&]<Element T>(T) {
            parallel_for(cache.k.view.shape[0], 1, [&](std::int64_t head, std::int64_t last) {
                for (; head < last; ++head)
                    attend_newest<T>(cache, a, head);
            });
        });
        return;
    }
    const Part p = make_part(cache, a);
    const Tensor lse({1, n_heads, q_len}, cache.gate.view.dtype);
    importance_attention_forward({.out = a.out.reshaped({1, q_len, n_heads, dim}),
                                  .lse = lse,
                                  .q = a.q.reshaped({1, q_len, n_heads, dim}),
                                  .k = p.k,
                                  .v = p.v,
                                  .expiry = p.expiry,
                                  .key_begin = p.key_begin,
                                  .gate = a.gate.empty() ? ConstTensorView{} : p.gate,
                                  .sink_logit = a.sink_logit,
                                  .rule = cache.rule,
                                  .scale = a.scale});
    for (std::int64_t i = 0; i < q_len; ++i)
        push(cache, a, i);
}

}  // namespace stoa::cpu
