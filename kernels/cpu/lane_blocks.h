#pragma once
// Products of single rows with blocks of keys that lie side by side, a row of lanes per channel.
// Every result is one fma chain, over ascending channels or over ascending keys: its bits depend
// neither on the vector width nor on what is computed beside it, so that a query alone gets what it
// gets in company.
#include <cstdint>

#include "kernels/core/fast_exp.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/lanes.h"

namespace stoa::cpu {

using stoa::fused;

constexpr int kHalfLanes = kLanes / 2;

/// fn(l) for N values, a multiple of 8, by whole lanes. The compiler must not unroll a loop over
/// lanes before it has seen it as one vector.
template <int N, class Fn>
inline void for_lanes(const Fn& fn) {
    constexpr int kWhole = N < kLanes ? N : kLanes;
#pragma GCC unroll 8
    for (int first = 0; first < N; first += kWhole)
#pragma GCC unroll 1
        for (int l = 0; l < kWhole; ++l)
            fn(first + l);
}
/// The same for n values, which are mostly 8.
template <class Fn>
inline void for_children(std::int64_t n, const Fn& fn) {
    if (n == kHalfLanes) return for_lanes<kHalfLanes>(fn);
    for (int l = 0; l < n; ++l)
        fn(l);
}

/// Consecutive rows and their weights.
template <class W>
struct RowRun {
    const W *rows, *weights;
    std::int64_t count;
};

/// The kernels of one instruction set. Rows of y and `rows` are `width` wide, in whole lanes.
template <class W>
struct LaneKernels {
    /// out[i][l] = sum_c x[c] block_i[offset[c] + l]: one row, `count` blocks; out (count, lanes)
    using BlockDots = void (*)(W* out, const W* x, const std::int32_t* offset, std::int64_t dim,
                               const W* const* blocks, std::int64_t count);
    BlockDots block_dots, half_block_dots;  // kLanes, kHalfLanes
    /// out[r][l] = sum_c x[r][c] block[c ld + l]: `count` rows, one block
    using RowDots = void (*)(W* const* out, const W* const* x, std::int64_t count, std::int64_t dim,
                             const W* block, std::int64_t ld);
    RowDots row_dots, half_row_dots;
    /// The same over blocks one behind the other, kLanes wide: out[r][i kLanes + l] of block i
    void (*tile_dots)(W* const* out, const W* const* x, std::int64_t count, std::int64_t dim,
                      const W* blocks, std::int64_t n_blocks);
    /// y += sum over the runs' rows of weight * row, in order
    void (*add_runs)(W* y, const RowRun<W>* runs, std::int64_t n, std::int64_t width);
    /// y[r] += sum_j weights[r][j] row_j for n ys
    void (*add_rows)(W* const* ys, const W* const* weights, std::int64_t n, const W* rows,
                     std::int64_t count, std::int64_t width);
    /// y[i] += sum_j weights[j][i] row_j for `keys` rows i of y
    void (*add_outer)(W* y, std::int64_t keys, const W* weights, std::int64_t weights_ld,
                      const W* const* rows, std::int64_t count, std::int64_t width);
};
template <class W>
const LaneKernels<W>& lane_kernels(Isa isa);

}  // namespace stoa::cpu
