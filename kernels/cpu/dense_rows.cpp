// Forward of the dense rows: attention.cpp's softmax, over rows that lie anywhere and have gates.
#include "kernels/cpu/dense_rows.h"

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/dense_gates.h"

namespace stoa::cpu {
namespace {

constexpr std::int64_t kSharedRows = 256;  // queries that share packed keys: enters no bit

/// out / sum with the sink's share, lane by lane, and the logarithm.
template <class T, class W>
void finish(const ImportanceAttentionArgs& a, const ImportanceSizes& n, const LaneState<W>& s,
            W sink, std::int64_t batch, std::int64_t h, std::span<const std::int32_t> rows) {
    struct ResultTag;
    W* const out = scratch<ResultTag, W>(kQueryLanes * n.dim);
    W* const lse = a.lse.as<W>().data() + (batch * n.n_heads + h) * n.len;
    transpose(out, s.out, kQueryLanes, n.dim, kQueryLanes);
    for (std::int64_t r = 0; r < std::ssize(rows); ++r) {
        const std::int32_t t = rows[static_cast<std::size_t>(r)];
        const W base = base_of(s.max[r]), sum = s.sum[r] + fused_exp(sink - base);
        lse[t] = base + std::log(sum);
        scale_all(out + r * n.dim, n.dim, W{1} / sum);
        store_head<T>(a.out, batch, h, t, 1, out + r * n.dim);
    }
}

/// Up to kSharedRows rows of one head.
template <class T, class W = Wide<T>>
void forward_tile(const ImportanceAttentionArgs& a, const ImportanceSizes& n, std::int64_t batch,
                  std::int64_t h, std::span<const std::int32_t> rows) {
    struct QueriesTag;
    struct RowsTag;
    struct OutTag;
    const std::int64_t count = std::ssize(rows), width = pad_width(count), kv_head = h / n.group();
    const auto k = head_matrix<T>(a.k, batch, kv_head), v = head_matrix<T>(a.v, batch, kv_head);
    const Tokens<W> tokens = tokens_of<W>(a, n, batch, kv_head);
    const W sink = a.sink_logit.empty() ? -std::numeric_limits<W>::infinity()
                                        : a.sink_logit.as<W>()[static_cast<std::size_t>(h)];
    W* const queries = scratch<QueriesTag, W>(width * n.dim);
    W* const out = scratch<OutTag, W>(width * n.dim);
    pack_right(queries, gather<RowsTag>(head_matrix<T>(a.q, batch, h), rows, n.dim).from_row(0),
               true, count, n.dim);
    scale_all(queries, width * n.dim, static_cast<W>(a.scale));
    std::fill_n(out, width * n.dim, W{0});

    const RowKeys<kSharedRows> seen(rows, tokens.begin);
    LaneState<W> states[kSharedRows / kQueryLanes];
    const std::int64_t panels = width / kQueryLanes;
    for (std::int64_t p = 0; p < panels; ++p) {
        LaneState<W>& s = states[p];
        const std::int64_t r = p * kQueryLanes;
        s.keys = lane_keys(seen.begin + r, seen.end + r, std::min(kQueryLanes, count - r));
        std::fill_n(s.max, kQueryLanes, sink);
        std::fill_n(s.sum, kQueryLanes, W{0});
        s.q = queries + r * n.dim;
        s.out = out + r * n.dim;
    }
    for (std::int64_t first = seen.first() / kKeyTile * kKeyTile; first < seen.last();
         first += kKeyTile) {
        const KeyTile<W> tile = pack_tile<T>(k, v, first, seen.last(), n.dim);
        for (std::int64_t p = 0; p < panels; ++p)
            attend_tile(states[p], tile, n.dim, [&](W* z, std::int64_t key, std::int64_t keys) {
                vectorised([&] {
                    for (std::int64_t j = 0; j < keys; ++j)
                        add_gate<kQueryLanes>(z + j * kQueryLanes, tokens, key + j,
                                              seen.end + p * kQueryLanes);
                });
            });
    }
    for (std::int64_t r = 0; r < count; r += kQueryLanes)
        finish<T>(a, n, states[r / kQueryLanes], sink, batch, h,
                  rows.subspan(static_cast<std::size_t>(r),
                               static_cast<std::size_t>(std::min(kQueryLanes, count - r))));
}

}  // namespace

template <class T>
void dense_rows_forward(const ImportanceAttentionArgs& a) {
    const ImportanceSizes n = sizes_of(a);
    const std::int64_t rows = a.dense_rows.shape[1], tiles = (rows + kSharedRows - 1) / kSharedRows;
    parallel_for(n.batch * n.n_heads * tiles, 1, [&](std::int64_t i, std::int64_t end) {
        for (; i < end; ++i) {
            // The last tiles have the most keys: they begin first.
            const std::int64_t head = i / tiles, row = (tiles - 1 - i % tiles) * kSharedRows;
            const std::int64_t batch = head / n.n_heads;
            forward_tile<T>(
                a, n, batch, head % n.n_heads,
                dense_rows_of(a.dense_rows, batch)
                    .subspan(static_cast<std::size_t>(row),
                             static_cast<std::size_t>(std::min(kSharedRows, rows - row))));
        }
    });
}

template void dense_rows_forward<float>(const ImportanceAttentionArgs&);
template void dense_rows_forward<double>(const ImportanceAttentionArgs&);
template void dense_rows_forward<bf16>(const ImportanceAttentionArgs&);
template void dense_rows_forward<fp16>(const ImportanceAttentionArgs&);

}  // namespace stoa::cpu
