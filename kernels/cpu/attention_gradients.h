#pragma once
// The backward of a block of queries against a block of keys: five products on packed operands.
#include "kernels/cpu/attention_panels.h"
#include "kernels/cpu/head_matrix.h"
#include "kernels/cpu/scratch.h"

namespace stoa::cpu {

constexpr std::int64_t kBlockQueries = 64;  // side by side in a block; enters the bits of d_k, d_v
constexpr std::int64_t kBlockKeys = 64;     // enters the bits of d_q

/// A block of queries, packed. Queries beyond `rows` are zeros.
template <class W>
struct QueryBlock {
    std::int64_t rows = 0, dim = 0;
    W *q_columns, *d_out_columns;  // op(b) of (dim, 64): against keys
    W *q_rows, *d_out_rows;        // op(b) of (rows, dim): towards keys
    W lse[kBlockQueries], delta[kBlockQueries];
    static std::int64_t values(std::int64_t dim) {
        return 2 * kBlockQueries * (dim + pad_width(dim));
    }
};
/// `memory` holds QueryBlock::values. q comes scaled: so do scores and the gradient towards keys.
template <class T, class W>
void pack_queries(QueryBlock<W>& b, W* memory, const HeadMatrix<T>& q, const HeadMatrix<T>& d_out,
                  std::int64_t first, std::int64_t rows, std::int64_t dim, W scale) {
    b.rows = rows;
    b.dim = dim;
    b.q_columns = memory;
    b.q_rows = b.q_columns + kBlockQueries * dim;
    b.d_out_columns = b.q_rows + kBlockQueries * pad_width(dim);
    b.d_out_rows = b.d_out_columns + kBlockQueries * dim;
    if (pad_width(rows) < kBlockQueries)
        for (W* const columns : {b.q_columns, b.d_out_columns})
            std::fill_n(columns, kBlockQueries * dim, W{0});
    pack_right(b.q_columns, q.from_row(first), true, rows, dim);
    pack_right(b.d_out_columns, d_out.from_row(first), true, rows, dim);
    pack_right(b.q_rows, q.from_row(first), false, dim, rows);
    pack_right(b.d_out_rows, d_out.from_row(first), false, dim, rows);
    scale_all(b.q_columns, kBlockQueries * dim, scale);
    scale_all(b.q_rows, rows * pad_width(dim), scale);
}

/// A block of keys, packed.
template <class W>
struct KeyBlock {
    std::int64_t keys = 0, dim = 0;
    W *k_rows, *v_rows;  // op(a) of (keys, dim): against queries
    W* k_columns;        // op(a) of (dim, keys): towards queries
    static std::int64_t values(std::int64_t dim) {
        return 2 * (kBlockKeys + kMaxMr) * dim + kBlockKeys * (dim + kMaxMr);
    }
};
/// Where the parts of a block lie in `memory`, which holds KeyBlock::values.
template <class W>
void place_keys(KeyBlock<W>& b, W* memory, std::int64_t keys, std::int64_t dim) {
    b.keys = keys;
    b.dim = dim;
    b.k_rows = memory;
    b.v_rows = b.k_rows + (kBlockKeys + kMaxMr) * dim;
    b.k_columns = b.v_rows + (kBlockKeys + kMaxMr) * dim;
}
/// Keys [first, first + keys).
template <class T, class W>
void pack_keys(KeyBlock<W>& b, W* memory, const HeadMatrix<T>& k, const HeadMatrix<T>& v,
               std::int64_t first, std::int64_t keys, std::int64_t dim) {
    place_keys(b, memory, keys, dim);
    pack_left(b.k_rows, k.from_row(first), true, keys, dim);
    pack_left(b.v_rows, v.from_row(first), true, keys, dim);
    pack_left(b.k_columns, k.from_row(first), false, dim, keys);
}

constexpr std::int64_t kParts = kBlockQueries / kQueryLanes;

/// By 32 queries: the keys [from, to) of a block that they may see. What lies outside is not
/// computed, and 0.
struct PartKeys {
    std::int64_t from[kParts], to[kParts];
    bool all(std::int64_t keys) const {
        return std::ranges::all_of(from, [](auto f) { return f == 0; }) &&
               std::ranges::all_of(to, [&](auto t) { return t == keys; });
    }
    bool meets(std::int64_t part, std::int64_t first, std::int64_t last) const {
        return from[part] < last && first < to[part];
    }
};

/// Scores and the gradient of probabilities of a block, (keys, 64) each.
template <class W>
struct BlockScores {
    W *p, *d_z;
};
template <class W>
BlockScores<W> block_scores(const QueryBlock<W>& q, const KeyBlock<W>& k, const PartKeys& keys) {
    struct PTag;
    struct DZTag;
    const BlockScores<W> s{scratch<PTag, W>(kBlockKeys * kBlockQueries),
                           scratch<DZTag, W>(kBlockKeys * kBlockQueries)};
    const std::int64_t mr = panel_shape<W>().rows;
    for (std::int64_t part = 0; part < kParts; ++part) {
        const std::int64_t column = part * kQueryLanes, from = keys.from[part] / mr * mr,
                           to = std::max(from, keys.to[part]);
        for (W* const scores : {s.p, s.d_z})
            for (std::int64_t j = 0; j < k.keys; ++j)
                if (j < from || j >= to)
                    std::fill_n(scores + j * kBlockQueries + column, kQueryLanes, W{0});
        multiply(to - from, kQueryLanes, k.dim, packed_left(k.k_rows, k.dim, from),
                 packed_right(q.q_columns, k.dim, column), s.p + from * kBlockQueries + column,
                 kBlockQueries, Into::write);
        multiply(to - from, kQueryLanes, k.dim, packed_left(k.v_rows, k.dim, from),
                 packed_right(q.d_out_columns, k.dim, column),
                 s.d_z + from * kBlockQueries + column, kBlockQueries, Into::write);
    }
    return s;
}

/// gradient (keys, padded dim) += scores rows, where scores is (keys, 64) and `rows` a packed
/// op(b).
template <class W>
void add_to_keys(W* gradient, const W* scores, const W* rows, const QueryBlock<W>& q,
                 std::int64_t keys, const PartKeys& seen) {
    const std::int64_t width = pad_width(q.dim), nr = panel_shape<W>().columns;
    const std::int64_t run = seen.all(keys) ? keys : kQueryLanes;
    for (std::int64_t first = 0; first < keys; first += run) {
        const std::int64_t count = std::min(run, keys - first);
        std::int64_t begin = 0, end = kBlockQueries;
        while (begin < end && !seen.meets(begin / kQueryLanes, first, first + count))
            begin += kQueryLanes;
        while (begin < end && !seen.meets(end / kQueryLanes - 1, first, first + count))
            end -= kQueryLanes;
        end = std::min(end, q.rows);
        if (begin < end)
            multiply(count, width, end - begin,
                     stored_left(scores + first * kBlockQueries + begin, kBlockQueries),
                     {rows + begin * nr, q.rows * nr, nr}, gradient + first * width, width,
                     Into::add);
    }
}

/// d_v += p^T d_out and d_k += d_z^T q (keys, padded dim); d_q (dim, 64) += k^T d_z; without d_k,
/// or without d_q, not these. Where some do not see each other, which `hidden` says, see(query,
/// key) of the block tells who does: what is infinite or NaN then stays apart from the zeros that
/// stand for what is not seen.
template <class W, class See>
void add_gradients(const BlockScores<W>& s, const QueryBlock<W>& q, const KeyBlock<W>& k, W* d_k,
                   W* d_v, W* d_q, const PartKeys& keys, bool hidden, const See& see) {
    const std::int64_t width = pad_width(q.dim), mr = panel_shape<W>().rows,
                       nr = panel_shape<W>().columns;
    if (!hidden ||
        (all_finite(q.q_rows, q.rows * width) && all_finite(q.d_out_rows, q.rows * width) &&
         all_finite(k.k_columns, left_values<W>(k.dim, k.keys)))) {
        if (d_k != nullptr) {
            add_to_keys(d_v, s.p, q.d_out_rows, q, k.keys, keys);
            add_to_keys(d_k, s.d_z, q.q_rows, q, k.keys, keys);
        }
        for (std::int64_t part = 0; part < kParts && d_q != nullptr; ++part) {
            const std::int64_t column = part * kQueryLanes, from = keys.from[part];
            if (from < keys.to[part])
                multiply(q.dim, kQueryLanes, keys.to[part] - from,
                         packed_left(k.k_columns, k.keys, 0, from),
                         stored_right(s.d_z + from * kBlockQueries + column, kBlockQueries),
                         d_q + column, kBlockQueries, Into::add);
        }
        return;
    }
    for (std::int64_t c = 0; c < q.dim; ++c) {
        const W* const q_column = q.q_rows + c / nr * nr * q.rows + c % nr;
        const W* const d_out_column = q.d_out_rows + c / nr * nr * q.rows + c % nr;
        const W* const k_column = k.k_columns + c / mr * mr * k.keys + c % mr;
        W to_query[kBlockQueries] = {};
        for (std::int64_t j = 0; j < k.keys; ++j) {
            W to_k = 0, to_v = 0;
            for (std::int64_t r = 0; r < q.rows; ++r) {
                if (!see(r, j)) continue;
                const std::int64_t at = j * kBlockQueries + r;
                to_v = std::fma(s.p[at], d_out_column[r * nr], to_v);
                to_k = std::fma(s.d_z[at], q_column[r * nr], to_k);
                to_query[r] = std::fma(k_column[j * mr], s.d_z[at], to_query[r]);
            }
            if (d_k == nullptr) continue;
            d_k[j * width + c] += to_k;
            d_v[j * width + c] += to_v;
        }
        for (std::int64_t r = 0; r < q.rows && d_q != nullptr; ++r)
            d_q[c * kBlockQueries + r] += to_query[r];
    }
}

}  // namespace stoa::cpu
