#pragma once
// The sums of the sparse attentions on the GPU. Scores are chains of fused steps over channels, one
// key or query a lane; sums over keys or queries are chains too, one channel a lane.
#include <limits>

#include "kernels/core/fast_exp.h"
#include "kernels/cuda/packs.h"

namespace stoa::cuda {

/// sum_c (x_c scale) y_c, one chain: each lane's own rows, eight channels at a time.
template <class X, class Y, class W = Wide<X>>
STOA_DEVICE W chain_dot(const X* x, W scale, const Y* y, std::int64_t dim) {
    W sum = 0;
    for (std::int64_t c = 0; c < dim; c += kPack) {
        const auto a = load_pack<kPack>(x, c, dim);
        const auto b = load_pack<kPack>(y, c, dim);
        for (int i = 0; i < kPack; ++i)
            sum = fused(W{widen(a.v[i])} * scale, W{widen(b.v[i])}, sum);
    }
    return sum;
}

/// min(1, distance / window)
template <class W>
STOA_DEVICE W gate_ramp(std::int64_t distance, std::int64_t window) {
    const W x = static_cast<W>(distance) * (W{1} / static_cast<W>(window));
    return x < W{1} ? x : W{1};
}
/// The largest value of the warp's lanes, NaN passed over; for all of them.
template <class W>
STOA_DEVICE W warp_largest(W value) {
    for (int half = kWarp / 2; half > 0; half /= 2) {
        const W other = shuffle_down(value, half);
        value = other > value ? other : value;
    }
    return shuffle(value, 0);
}
/// A maximum as what scores are measured from: 0 where nothing was seen.
template <class W>
STOA_DEVICE W score_base(W max) {
    return max == -std::numeric_limits<W>::infinity() ? W{0} : max;
}

constexpr int kChannels = 8;   // of a lane at a time: rows of 256
constexpr int kHeadWarps = 8;  // heads of a block
constexpr std::int64_t kRowChannels = std::int64_t{kChannels} * kWarp;

/// Sums of up to 256 channels of a row, channel `first` + lane + 32 e in own[e].
template <class W>
struct RowSum {
    W own[kChannels] = {};
    /// += weight * row
    template <class T>
    STOA_DEVICE void add(W weight, W scale, const T* row, std::int64_t first, std::int64_t dim) {
        const std::int64_t c = first + thread_index() % kWarp;
        STOA_UNROLL_8
        for (int e = 0; e < kChannels; ++e)
            if (c + e * kWarp < dim)
                own[e] = fused(weight, W{widen(row[c + e * kWarp])} * scale, own[e]);
    }
    STOA_DEVICE void add(const RowSum& other) {
        STOA_UNROLL_8
        for (int e = 0; e < kChannels; ++e)
            own[e] += other.own[e];
    }
    STOA_DEVICE void times(W factor) {
        STOA_UNROLL_8
        for (int e = 0; e < kChannels; ++e)
            own[e] *= factor;
    }
    template <class T>
    STOA_DEVICE void store(T* row, std::int64_t first, std::int64_t dim) const {
        const std::int64_t c = first + thread_index() % kWarp;
        STOA_UNROLL_8
        for (int e = 0; e < kChannels; ++e)
            if (c + e * kWarp < dim) row[c + e * kWarp] = narrow_to<T>(own[e]);
    }
};

/// delta = d_out out of a row, and its part of the gradient towards its head's sink logit; 16
/// threads a row of (batch, len, heads). delta (batch, heads, len).
template <class T, class W = Wide<T>>
STOA_KERNEL void attention_delta_kernel(W* delta, W* d_sink, const T* d_out, const T* out,
                                        const W* lse, const W* sink_logit, std::int64_t rows,
                                        std::int64_t len, std::int64_t heads, std::int64_t dim,
                                        bool library_exp) {
    const std::int64_t row = global_group();
    if (row >= rows) return;
    const T *const x = d_out + row * dim, *const y = out + row * dim;
    const W dot = lane_sum<W>(dim, [&](std::int64_t c) { return W{widen(x[c])} * W{widen(y[c])}; });
    if (thread_index() % kLanes != 0) return;
    const std::int64_t h = row % heads, token = row / heads;
    const std::int64_t at = (token / len * heads + h) * len + token % len;
    delta[at] = dot;
    if (d_sink == nullptr) return;
    const W z = sink_logit[h] - lse[at];
    d_sink[row] = -(library_exp ? std::exp(z) : fused_exp(z)) * dot;
}

}  // namespace stoa::cuda
