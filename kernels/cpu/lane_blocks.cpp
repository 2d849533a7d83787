#include "kernels/cpu/lane_blocks.h"

#include <algorithm>

namespace stoa::cpu {
namespace {

/// sum += a x
template <int N, class W>
inline void add_lanes(W* sum, W a, const W* x) {
    for_lanes<N>([&](int l) { sum[l] = fused(a, x[l], sum[l]); });
}
template <int N, class W>
inline void copy_lanes(W* to, const W* from) {
    for_lanes<N>([&](int l) { to[l] = from[l]; });
}
template <int N, class W>
inline void zero_lanes(W* to) {
    for_lanes<N>([&](int l) { to[l] = W{0}; });
}

template <int Lanes, int Count, class W>
inline void some_block_dots(W* out, const W* x, const std::int32_t* offset, std::int64_t dim,
                            const W* const* blocks) {
    const W* block[Count];
    W sum[Count][Lanes];
    for (int i = 0; i < Count; ++i) {
        block[i] = blocks[i];
        zero_lanes<Lanes>(sum[i]);
    }
    for (std::int64_t c = 0; c < dim; ++c) {
        const W a = x[c];
        const std::int64_t at = offset[c];
#pragma GCC unroll 8
        for (int i = 0; i < Count; ++i)
            add_lanes<Lanes>(sum[i], a, block[i] + at);
    }
    for (int i = 0; i < Count; ++i)
        copy_lanes<Lanes>(out + i * Lanes, sum[i]);
}
/// At most 8 blocks at a time, and no fewer than half of them: one chain alone would wait for
/// itself.
template <int Lanes, class W>
void block_dots(W* out, const W* x, const std::int32_t* offset, std::int64_t dim,
                const W* const* blocks, std::int64_t count) {
    while (count > 0) {
        const std::int64_t n = count > 16 ? 8 : count > 8 ? (count + 1) / 2 : count;
        switch (n) {
            case 1: {
                const W* const twice[2] = {blocks[0], blocks[0]};
                W both[2 * Lanes];
                some_block_dots<Lanes, 2>(both, x, offset, dim, twice);
                copy_lanes<Lanes>(out, both);
                break;
            }
            case 2:
                some_block_dots<Lanes, 2>(out, x, offset, dim, blocks);
                break;
            case 3:
                some_block_dots<Lanes, 3>(out, x, offset, dim, blocks);
                break;
            case 4:
                some_block_dots<Lanes, 4>(out, x, offset, dim, blocks);
                break;
            case 5:
                some_block_dots<Lanes, 5>(out, x, offset, dim, blocks);
                break;
            case 6:
                some_block_dots<Lanes, 6>(out, x, offset, dim, blocks);
                break;
            case 7:
                some_block_dots<Lanes, 7>(out, x, offset, dim, blocks);
                break;
            default:
                some_block_dots<Lanes, 8>(out, x, offset, dim, blocks);
        }
        count -= n, blocks += n, out += n * Lanes;
    }
}

template <int Lanes, int Rows, class W>
inline void some_row_dots(W* const* out, const W* const* rows, std::int64_t dim, const W* block,
                          std::int64_t ld) {
    const W* x[Rows];
    W sum[Rows][Lanes];
    for (int r = 0; r < Rows; ++r) {
        x[r] = rows[r];
        zero_lanes<Lanes>(sum[r]);
    }
    for (std::int64_t c = 0; c < dim; ++c, block += ld)
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r)
            add_lanes<Lanes>(sum[r], x[r][c], block);
    for (int r = 0; r < Rows; ++r)
        copy_lanes<Lanes>(out[r], sum[r]);
}
template <int Lanes, class W>
void row_dots(W* const* out, const W* const* rows, std::int64_t count, std::int64_t dim,
              const W* block, std::int64_t ld) {
    for (; count >= 8; count -= 8, rows += 8, out += 8)
        some_row_dots<Lanes, 8>(out, rows, dim, block, ld);
    if (count >= 4) {
        some_row_dots<Lanes, 4>(out, rows, dim, block, ld);
        count -= 4, rows += 4, out += 4;
    }
    if (count >= 2) {
        some_row_dots<Lanes, 2>(out, rows, dim, block, ld);
        count -= 2, rows += 2, out += 2;
    }
    if (count == 1) some_row_dots<Lanes, 1>(out, rows, dim, block, ld);
}

/// Rows x Blocks chains side by side: each row value and each block's lanes serve several of them.
template <int Rows, int Blocks, class W>
inline void some_tile_dots(W* const* out, std::int64_t first, const W* const* rows,
                           std::int64_t dim, const W* blocks) {
    const W* x[Rows];
    W sum[Rows][Blocks][kLanes];
    for (int r = 0; r < Rows; ++r) {
        x[r] = rows[r];
        for (int i = 0; i < Blocks; ++i)
            zero_lanes<kLanes>(sum[r][i]);
    }
    const std::int64_t ld = dim * kLanes;
    for (std::int64_t c = 0; c < dim; ++c, blocks += kLanes)
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
            for (int i = 0; i < Blocks; ++i)
                add_lanes<kLanes>(sum[r][i], x[r][c], blocks + i * ld);
    for (int r = 0; r < Rows; ++r)
        for (int i = 0; i < Blocks; ++i)
            copy_lanes<kLanes>(out[r] + first + i * kLanes, sum[r][i]);
}
template <int Rows, class W>
inline void rows_tile_dots(W* const* out, const W* const* rows, std::int64_t dim, const W* blocks,
                           std::int64_t n) {
    constexpr int kMost = Rows == 1 ? 8 : 4;
    const std::int64_t size = dim * kLanes;
    std::int64_t i = 0;
    for (; i + kMost <= n; i += kMost)
        some_tile_dots<Rows, kMost>(out, i * kLanes, rows, dim, blocks + i * size);
    if (i + 4 <= n) {
        some_tile_dots<Rows, 4>(out, i * kLanes, rows, dim, blocks + i * size);
        i += 4;
    }
    if (i + 2 <= n) {
        some_tile_dots<Rows, 2>(out, i * kLanes, rows, dim, blocks + i * size);
        i += 2;
    }
    if (i < n) some_tile_dots<Rows, 1>(out, i * kLanes, rows, dim, blocks + i * size);
}
template <class W>
void tile_dots(W* const* out, const W* const* rows, std::int64_t count, std::int64_t dim,
               const W* blocks, std::int64_t n_blocks) {
    for (; count >= 4; count -= 4, rows += 4, out += 4)
        rows_tile_dots<4>(out, rows, dim, blocks, n_blocks);
    if (count >= 2) {
        rows_tile_dots<2>(out, rows, dim, blocks, n_blocks);
        count -= 2, rows += 2, out += 2;
    }
    if (count == 1) rows_tile_dots<1>(out, rows, dim, blocks, n_blocks);
}

template <int Channels, class W>
inline void some_add_runs(W* y, const RowRun<W>* runs, std::int64_t n, std::int64_t width,
                          std::int64_t first) {
    W sum[Channels];
    copy_lanes<Channels>(sum, y + first);
    for (std::int64_t i = 0; i < n; ++i) {
        const W* row = runs[i].rows + first;
        for (std::int64_t j = 0; j < runs[i].count; ++j, row += width)
            add_lanes<Channels>(sum, runs[i].weights[j], row);
    }
    copy_lanes<Channels>(y + first, sum);
}
template <class W>
void add_runs(W* y, const RowRun<W>* runs, std::int64_t n, std::int64_t width) {
    std::int64_t c = 0;
    for (; c + 4 * kLanes <= width; c += 4 * kLanes)
        some_add_runs<4 * kLanes>(y, runs, n, width, c);
    for (; c < width; c += kLanes)
        some_add_runs<kLanes>(y, runs, n, width, c);
}

template <int Rows, int Channels, class W>
inline void some_add_rows(W* const* ys, const W* const* weights, const W* rows, std::int64_t count,
                          std::int64_t width, std::int64_t first) {
    W sum[Rows][Channels];
    const W* weight[Rows];
    for (int r = 0; r < Rows; ++r) {
        weight[r] = weights[r];
        copy_lanes<Channels>(sum[r], ys[r] + first);
    }
    rows += first;
    for (std::int64_t j = 0; j < count; ++j, rows += width)
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r)
            add_lanes<Channels>(sum[r], weight[r][j], rows);
    for (int r = 0; r < Rows; ++r)
        copy_lanes<Channels>(ys[r] + first, sum[r]);
}
template <int Rows, class W>
inline void wide_add_rows(W* const* ys, const W* const* weights, const W* rows, std::int64_t count,
                          std::int64_t width) {
    std::int64_t c = 0;
    for (; c + 4 * kLanes <= width; c += 4 * kLanes)
        some_add_rows<Rows, 4 * kLanes>(ys, weights, rows, count, width, c);
    for (; c < width; c += kLanes)
        some_add_rows<Rows, kLanes>(ys, weights, rows, count, width, c);
}
template <class W>
void add_rows(W* const* ys, const W* const* weights, std::int64_t n, const W* rows,
              std::int64_t count, std::int64_t width) {
    for (; n >= 4; n -= 4, ys += 4, weights += 4)
        wide_add_rows<4>(ys, weights, rows, count, width);
    if (n >= 2) {
        wide_add_rows<2>(ys, weights, rows, count, width);
        n -= 2, ys += 2, weights += 2;
    }
    if (n == 1) wide_add_rows<1>(ys, weights, rows, count, width);
}

template <int Keys, int Channels, class W>
inline void some_add_outer(W* y, const W* weights, std::int64_t weights_ld, const W* const* rows,
                           std::int64_t count, std::int64_t width, std::int64_t first) {
    W sum[Keys][Channels];
    y += first;
    for (int i = 0; i < Keys; ++i)
        copy_lanes<Channels>(sum[i], y + i * width);
    for (std::int64_t j = 0; j < count; ++j, weights += weights_ld) {
        const W* const row = rows[j] + first;
#pragma GCC unroll 4
        for (int i = 0; i < Keys; ++i)
            add_lanes<Channels>(sum[i], weights[i], row);
    }
    for (int i = 0; i < Keys; ++i)
        copy_lanes<Channels>(y + i * width, sum[i]);
}
template <class W>
void add_outer(W* y, std::int64_t keys, const W* weights, std::int64_t weights_ld,
               const W* const* rows, std::int64_t count, std::int64_t width) {
    for (; keys >= 4; keys -= 4, y += 4 * width, weights += 4) {
        std::int64_t c = 0;
        for (; c + 2 * kLanes <= width; c += 2 * kLanes)
            some_add_outer<4, 2 * kLanes>(y, weights, weights_ld, rows, count, width, c);
        for (; c < width; c += kLanes)
            some_add_outer<4, kLanes>(y, weights, weights_ld, rows, count, width, c);
    }
    for (; keys > 0; --keys, y += width, ++weights)
        for (std::int64_t c = 0; c < width; c += kLanes)
            some_add_outer<1, kLanes>(y, weights, weights_ld, rows, count, width, c);
}

#if defined(__x86_64__)
template <auto Fn, class... A>
[[gnu::flatten, STOA_TARGET_AVX512]] void on_avx512(A... a) {
    Fn(a...);
}
template <auto Fn, class... A>
[[gnu::flatten, STOA_TARGET_AVX2]] void on_avx2(A... a) {
    Fn(a...);
}
#endif

template <class W>
constexpr LaneKernels<W> kPortable{block_dots<kLanes, W>, block_dots<kHalfLanes, W>,
                                   row_dots<kLanes, W>,   row_dots<kHalfLanes, W>,
                                   tile_dots<W>,          add_runs<W>,
                                   add_rows<W>,           add_outer<W>};
#if defined(__x86_64__)
template <class W>
constexpr LaneKernels<W> kAvx512{
    on_avx512<block_dots<kLanes, W>>, on_avx512<block_dots<kHalfLanes, W>>,
    on_avx512<row_dots<kLanes, W>>,   on_avx512<row_dots<kHalfLanes, W>>,
    on_avx512<tile_dots<W>>,          on_avx512<add_runs<W>>,
    on_avx512<add_rows<W>>,           on_avx512<add_outer<W>>};
template <class W>
constexpr LaneKernels<W> kAvx2{on_avx2<block_dots<kLanes, W>>, on_avx2<block_dots<kHalfLanes, W>>,
                               on_avx2<row_dots<kLanes, W>>,   on_avx2<row_dots<kHalfLanes, W>>,
                               on_avx2<tile_dots<W>>,          on_avx2<add_runs<W>>,
                               on_avx2<add_rows<W>>,           on_avx2<add_outer<W>>};
#endif

}  // namespace

template <class W>
const LaneKernels<W>& lane_kernels(Isa isa) {
#if defined(__x86_64__)
    if (isa == Isa::avx512) return kAvx512<W>;
    if (isa == Isa::avx2) return kAvx2<W>;
#endif
    (void)isa;
    return kPortable<W>;
}
template const LaneKernels<float>& lane_kernels(Isa);
template const LaneKernels<double>& lane_kernels(Isa);

}  // namespace stoa::cpu
