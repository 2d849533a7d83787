#pragma once
// Products of single rows with blocks of keys that lie side by side, a row of lanes per channel.
// Every result is one fma chain, over ascending channels or over ascending keys: its bits depend
// neither on the vector width nor on what is computed beside it, so that a query alone gets what it
// gets in company.
#include <cstdint>

#include "kernels/cpu/lanes.h"

namespace stoa::cpu {

inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }

/// out[i][l] = sum_c x[c] block[i][offset[c] + l]: one row, Count blocks.
template <int Lanes, int Count, class W>
inline void block_dots_of(W* out, const W* x, const std::int32_t* offset, std::int64_t dim,
                          const W* const* blocks) {
    const W* block[Count];
    W sum[Count][Lanes];
    for (int i = 0; i < Count; ++i) {
        block[i] = blocks[i];
        for (int l = 0; l < Lanes; ++l)
            sum[i][l] = W{0};
    }
    for (std::int64_t c = 0; c < dim; ++c) {
        const W a = x[c];
        const std::int64_t at = offset[c];
#pragma GCC unroll 8
        for (int i = 0; i < Count; ++i)
            for (int l = 0; l < Lanes; ++l)
                sum[i][l] = fused(a, block[i][at + l], sum[i][l]);
    }
    for (int i = 0; i < Count; ++i)
        for (int l = 0; l < Lanes; ++l)
            out[i * Lanes + l] = sum[i][l];
}
/// Any number of blocks; out (count, Lanes).
template <int Lanes, class W>
inline void block_dots(W* out, const W* x, const std::int32_t* offset, std::int64_t dim,
                       const W* const* blocks, std::int64_t count) {
    for (; count >= 8; count -= 8, blocks += 8, out += 8 * Lanes)
        block_dots_of<Lanes, 8>(out, x, offset, dim, blocks);
    if (count >= 4) {
        block_dots_of<Lanes, 4>(out, x, offset, dim, blocks);
        count -= 4, blocks += 4, out += 4 * Lanes;
    }
    for (; count > 0; --count, ++blocks, out += Lanes)
        block_dots_of<Lanes, 1>(out, x, offset, dim, blocks);
}

/// out[r][l] = sum_c x[r][c] block[c Lanes + l]: Rows rows, one block.
template <int Lanes, int Rows, class W>
inline void row_dots_of(W* const* out, const W* const* rows, std::int64_t dim, const W* block) {
    const W* x[Rows];
    W sum[Rows][Lanes];
    for (int r = 0; r < Rows; ++r) {
        x[r] = rows[r];
        for (int l = 0; l < Lanes; ++l)
            sum[r][l] = W{0};
    }
    for (std::int64_t c = 0; c < dim; ++c, block += Lanes) {
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r)
            for (int l = 0; l < Lanes; ++l)
                sum[r][l] = fused(x[r][c], block[l], sum[r][l]);
    }
    for (int r = 0; r < Rows; ++r)
        for (int l = 0; l < Lanes; ++l)
            out[r][l] = sum[r][l];
}
template <int Lanes, class W>
inline void row_dots(W* const* out, const W* const* rows, std::int64_t count, std::int64_t dim,
                     const W* block) {
    for (; count >= 8; count -= 8, rows += 8, out += 8)
        row_dots_of<Lanes, 8>(out, rows, dim, block);
    if (count >= 4) {
        row_dots_of<Lanes, 4>(out, rows, dim, block);
        count -= 4, rows += 4, out += 4;
    }
    for (; count > 0; --count, ++rows, ++out)
        row_dots_of<Lanes, 1>(out, rows, dim, block);
}

/// Consecutive rows and their weights.
template <class W>
struct RowRun {
    const W *rows, *weights;
    std::int64_t count;
};
template <int Channels, class W>
inline void add_runs_of(W* y, const RowRun<W>* runs, std::int64_t n, std::int64_t width,
                        std::int64_t first) {
    W sum[Channels];
    for (int c = 0; c < Channels; ++c)
        sum[c] = y[first + c];
    for (std::int64_t i = 0; i < n; ++i) {
        const W* row = runs[i].rows + first;
        for (std::int64_t j = 0; j < runs[i].count; ++j, row += width) {
            const W weight = runs[i].weights[j];
            for (int c = 0; c < Channels; ++c)
                sum[c] = fused(weight, row[c], sum[c]);
        }
    }
    for (int c = 0; c < Channels; ++c)
        y[first + c] = sum[c];
}
/// y += sum over the runs' rows of weight * row, in order. Rows are `width` wide and apart.
template <class W>
inline void add_runs(W* y, const RowRun<W>* runs, std::int64_t n, std::int64_t width) {
    std::int64_t c = 0;
    for (; c + 4 * kLanes <= width; c += 4 * kLanes)
        add_runs_of<4 * kLanes>(y, runs, n, width, c);
    for (; c < width; c += kLanes)
        add_runs_of<kLanes>(y, runs, n, width, c);
}

template <int Rows, int Channels, class W>
inline void add_rows_of(W* const* ys, const W* const* weights, const W* rows, std::int64_t count,
                        std::int64_t width, std::int64_t first) {
    W sum[Rows][Channels];
    const W* weight[Rows];
    for (int r = 0; r < Rows; ++r) {
        weight[r] = weights[r];
        for (int c = 0; c < Channels; ++c)
            sum[r][c] = ys[r][first + c];
    }
    rows += first;
    for (std::int64_t j = 0; j < count; ++j, rows += width)
#pragma GCC unroll 2
        for (int r = 0; r < Rows; ++r)
            for (int c = 0; c < Channels; ++c)
                sum[r][c] = fused(weight[r][j], rows[c], sum[r][c]);
    for (int r = 0; r < Rows; ++r)
        for (int c = 0; c < Channels; ++c)
            ys[r][first + c] = sum[r][c];
}
/// y[r] += sum_j weight[r][j] row_j for n ys: the same rows, in order, for each.
template <class W>
inline void add_rows(W* const* ys, const W* const* weights, std::int64_t n, const W* rows,
                     std::int64_t count, std::int64_t width) {
    for (std::int64_t r = 0; r < n; r += 2) {
        const bool two = r + 1 < n;
        std::int64_t c = 0;
        for (; c + 4 * kLanes <= width; c += 4 * kLanes)
            two ? add_rows_of<2, 4 * kLanes>(ys + r, weights + r, rows, count, width, c)
                : add_rows_of<1, 4 * kLanes>(ys + r, weights + r, rows, count, width, c);
        for (; c < width; c += kLanes)
            two ? add_rows_of<2, kLanes>(ys + r, weights + r, rows, count, width, c)
                : add_rows_of<1, kLanes>(ys + r, weights + r, rows, count, width, c);
    }
}

template <int Keys, int Channels, class W>
inline void add_outer_of(W* y, const W* weights, std::int64_t weights_ld, const W* rows,
                         std::int64_t count, std::int64_t width) {
    W sum[Keys][Channels];
    for (int i = 0; i < Keys; ++i)
        for (int c = 0; c < Channels; ++c)
            sum[i][c] = y[i * width + c];
    for (std::int64_t j = 0; j < count; ++j, rows += width, weights += weights_ld)
#pragma GCC unroll 4
        for (int i = 0; i < Keys; ++i)
            for (int c = 0; c < Channels; ++c)
                sum[i][c] = fused(weights[i], rows[c], sum[i][c]);
    for (int i = 0; i < Keys; ++i)
        for (int c = 0; c < Channels; ++c)
            y[i * width + c] = sum[i][c];
}
/// y[i] += sum_j weights[j][i] row_j for `keys` rows i of y.
template <class W>
inline void add_outer(W* y, std::int64_t keys, const W* weights, std::int64_t weights_ld,
                      const W* rows, std::int64_t count, std::int64_t width) {
    for (; keys > 0; keys -= 4, y += 4 * width, weights += 4) {
        std::int64_t c = 0;
        for (; c + 2 * kLanes <= width; c += 2 * kLanes)
            if (keys >= 4)
                add_outer_of<4, 2 * kLanes>(y + c, weights, weights_ld, rows + c, count, width);
            else
                for (std::int64_t i = 0; i < keys; ++i)
                    add_outer_of<1, 2 * kLanes>(y + i * width + c, weights + i, weights_ld,
                                                rows + c, count, width);
        for (; c < width; c += kLanes)
            for (std::int64_t i = 0; i < std::min<std::int64_t>(4, keys); ++i)
                add_outer_of<1, kLanes>(y + i * width + c, weights + i, weights_ld, rows + c, count,
                                        width);
    }
}

}  // namespace stoa::cpu
