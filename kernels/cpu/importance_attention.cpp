// Attention over a window and gathered keys. A tile of queries packs the contiguous range of its
// windows once; 32 queries at a time it meets the few far keys, then that range, as one softmax:
// first the logits of all keys and their maximum, then exponentials and sums, each one chain over
// far keys and window in ascending order. So a query's bits depend on the keys it sees alone.
#include "kernels/core/thread_pool.h"
#include "kernels/cpu/dense_rows.h"
#include "kernels/cpu/head_matrix.h"
#include "kernels/cpu/importance_keys.h"
#include "kernels/cpu/ops.h"

namespace stoa::cpu {
namespace {

constexpr std::int64_t kRunRows = 8 * kQueryLanes;  // queries that share the packed window
constexpr std::int64_t kFarRows = 4 * kQueryLanes;  // and its far keys: few change in so many
constexpr std::int64_t kChunk = 120;  // keys whose scores stay in L1; whole panels everywhere

/// A run of keys, packed for scores and for sums.
template <class W>
struct KeyRun {
    std::int64_t keys = 0;
    W *k = nullptr, *v = nullptr;
    bool finite = true;
    SeenKeys<W> seen;
};
template <class KTag, class VTag, class T, class W = Wide<T>>
KeyRun<W> pack_run(const HeadMatrix<T>& k, const HeadMatrix<T>& v, std::int64_t first,
                   std::int64_t keys, std::int64_t dim, const SeenKeys<W>& seen) {
    KeyRun<W> run{keys, scratch<KTag, W>((keys + kMaxMr) * dim),
                  scratch<VTag, W>(keys * (dim + kMaxMr)), true, seen};
    if (keys == 0) return run;
    pack_left(run.k, k.from_row(first), true, keys, dim);
    pack_left(run.v, v.from_row(first), false, dim, keys);
    run.finite = all_finite(run.v, left_values<W>(dim, keys));
    return run;
}

/// 32 queries from token t on, of one head.
template <class W>
struct Queries {
    std::int32_t t = 0;
    std::int64_t rows = 0;
    const W* q = nullptr;  // packed, scaled
    W max[kQueryLanes], sum[kQueryLanes];
    W* out = nullptr;  // (dim, 32)
};

/// Logits z of keys [from, to) of a run; the maxima rise.
template <class W>
void run_logits(W* z, Queries<W>& q, const KeyRun<W>& run, std::int64_t from, std::int64_t to,
                std::int64_t dim, const W* ramps) {
    for (std::int64_t chunk = from; chunk < to; chunk += kChunk, z += kChunk * kQueryLanes) {
        const std::int64_t keys = std::min(kChunk, to - chunk);
        multiply(keys, kQueryLanes, dim, packed_left(run.k, dim, chunk), packed_right(q.q, dim), z,
                 kQueryLanes, Into::write);
        vectorised([&] {
            Lanes<W> max(q.max);
            for (std::int64_t j = 0; j < keys; ++j) {
                W* const row = z + j * kQueryLanes;
                if (!gate_scores<kQueryLanes>(row, run.seen, chunk + j, q.t, q.rows, ramps))
                    for (std::int32_t r = 0; r < kQueryLanes; ++r)
                        row[r] = sees(run.seen, chunk + j, q.t + r)
                                     ? row[r]
                                     : -std::numeric_limits<W>::infinity();
                max.rise_to(row);
            }
            max.store(q.max);
        });
    }
}

/// Logits to probabilities, and the chains of sum and out go on over keys [from, to) of a run.
template <class W>
void add_run(W* z, Queries<W>& q, const KeyRun<W>& run, std::int64_t from, std::int64_t to,
             std::int64_t dim, const W* base) {
    for (std::int64_t j = from; j < to; j += kChunk, z += kChunk * kQueryLanes) {
        const std::int64_t keys = std::min(kChunk, to - j);
        exponentials(z, q.sum, keys, base);
        if (run.finite) {
            multiply(dim, kQueryLanes, keys, packed_left(run.v, run.keys, 0, j),
                     stored_right(z, kQueryLanes), q.out, kQueryLanes, Into::chain);
            continue;
        }
        // NaN and infinity must not meet the zeros of queries that do not see them.
        const std::int64_t mr = panel_shape<W>().rows;
        for (std::int64_t c = 0; c < dim; ++c)
            for (std::int64_t i = 0; i < keys; ++i)
                for (std::int32_t r = 0; r < kQueryLanes; ++r)
                    if (W& sum = q.out[c * kQueryLanes + r]; sees(run.seen, j + i, q.t + r))
                        sum = std::fma(run.v[c / mr * mr * run.keys + (j + i) * mr + c % mr],
                                       z[i * kQueryLanes + r], sum);
    }
}

/// One head's 32 queries against far keys and keys [from, to) of the window's run.
template <class T, class W>
void forward_panel(const ImportanceAttentionArgs& a, const ImportanceSizes& n, Queries<W>& q,
                   const KeyRun<W>& far, const KeyRun<W>& window, std::int64_t from,
                   std::int64_t to, const W* ramps, std::int64_t batch, std::int64_t h) {
    struct QueriesTag;
    struct LogitsTag;
    struct OutTag;
    struct RowsTag;
    const std::int64_t row = q.t - n.first_query(), dim = n.dim;
    W* const queries = scratch<QueriesTag, W>(kQueryLanes * dim);
    W* const z = scratch<LogitsTag, W>((far.keys + to - from) * kQueryLanes);
    W* const rows = scratch<RowsTag, W>(kQueryLanes * dim);
    const W sink = a.sink_logit.empty() ? -std::numeric_limits<W>::infinity()
                                        : a.sink_logit.as<W>()[static_cast<std::size_t>(h)];
    pack_right(queries, head_matrix<T>(a.q, batch, h).from_row(row), true, q.rows, dim);
    scale_all(queries, kQueryLanes * dim, static_cast<W>(a.scale));
    q.q = queries;
    q.out = scratch<OutTag, W>(kQueryLanes * dim);
    std::fill_n(q.out, kQueryLanes * dim, W{0});
    std::fill_n(q.max, kQueryLanes, sink);
    std::fill_n(q.sum, kQueryLanes, W{0});
    W* const local = z + far.keys * kQueryLanes;
    if (far.keys > 0) run_logits(z, q, far, 0, far.keys, dim, ramps);
    run_logits(local, q, window, from, to, dim, ramps);
    W base[kQueryLanes];
    for (std::int64_t r = 0; r < kQueryLanes; ++r)
        base[r] = base_of(q.max[r]);
    add_run(z, q, far, 0, far.keys, dim, base);
    add_run(local, q, window, from, to, dim, base);

    W* const lse = a.lse.as<W>().data() + (batch * n.n_heads + h) * n.q_len + row;
    transpose(rows, q.out, kQueryLanes, dim, kQueryLanes);
    for (std::int64_t r = 0; r < q.rows; ++r) {
        const W sum = q.sum[r] + fused_exp(sink - base[r]);
        lse[r] = base[r] + std::log(sum);
        scale_all(rows + r * dim, dim, W{1} / sum);
    }
    store_head<T>(a.out, batch, h, row, q.rows, rows);
}

/// Queries from token `first` on, of the heads of one group.
template <class T, class W = Wide<T>>
void forward_tile(const ImportanceAttentionArgs& a, const ImportanceSizes& n, const FarKeys& lists,
                  std::int64_t first, std::int64_t batch, std::int64_t kv_head) {
    struct KTag;
    struct VTag;
    struct SeenTag;
    struct FarKTag;
    struct FarVTag;
    struct FarSeenTag;
    struct FarRowsTag;
    struct FarValuesTag;
    struct RampTag;
    const auto k = head_matrix<T>(a.k, batch, kv_head), v = head_matrix<T>(a.v, batch, kv_head);
    const Tokens<W> tokens = tokens_of<W>(a, n, batch, kv_head);
    const W* const ramps = ramp_table<RampTag, W>(a.rule.window, n.len);
    const auto window_begin = [&](std::int64_t t) {
        return std::max<std::int64_t>(t - a.rule.window + 1, tokens.begin[t]);
    };
    const std::int64_t end = std::min(n.len, first + kRunRows), begin = window_begin(first);
    const KeyRun<W> run = pack_run<KTag, VTag>(k, v, begin, end - begin, n.dim,
                                               window_keys<SeenTag>(tokens, begin, end - begin));
    const std::int64_t mr = panel_shape<W>().rows;
    KeyRun<W> far;
    for (std::int64_t t = first; t < end; t += kQueryLanes) {
        if ((t - first) % kFarRows == 0) {
            const auto list = lists.of_tile((t - n.first_query()) / kFarRows);
            far = pack_run<FarKTag, FarVTag>(
                gather<FarRowsTag>(k, list, n.dim), gather<FarValuesTag>(v, list, n.dim), 0,
                std::ssize(list), n.dim, far_keys<FarSeenTag>(tokens, list));
        }
        const std::int64_t from = (window_begin(t) - begin) / mr * mr;
        Queries<W> q{.t = static_cast<std::int32_t>(t), .rows = std::min(kQueryLanes, end - t)};
        for (std::int64_t h = kv_head * n.group(); h < (kv_head + 1) * n.group(); ++h)
            forward_panel<T>(a, n, q, far, run, from, t + q.rows - begin, ramps, batch, h);
    }
}

}  // namespace

void importance_attention_forward(const ImportanceAttentionArgs& a) {
    dispatch_dtype(a.q.dtype, [&]<Element T>(T) {
        const ImportanceSizes n = sizes_of(a);
        const std::int64_t tiles = (n.q_len + kRunRows - 1) / kRunRows;
        std::vector<FarKeys> far;  // by batch entry and kv head
        for (std::int64_t i = 0; i < n.batch * n.n_kv_heads; ++i)
            far.push_back(find_far_keys(a.expiry.as<std::int32_t>().data() + i * n.len, n.len,
                                        a.rule.window, kFarRows, n.first_query()));
        parallel_for(n.batch * n.n_kv_heads * tiles, 1, [&](std::int64_t i, std::int64_t last) {
            for (; i < last; ++i) {
                const std::int64_t head = i / tiles;
                forward_tile<T>(a, n, far[static_cast<std::size_t>(head)],
                                n.first_query() + i % tiles * kRunRows, head / n.n_kv_heads,
                                head % n.n_kv_heads);
            }
        });
        if (!a.dense_rows.empty()) dense_rows_forward<T>(a);
    });
}

}  // namespace stoa::cpu
