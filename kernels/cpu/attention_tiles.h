#pragma once
// A softmax that passes the keys once: 32 queries keep their largest score so far, the sum of
// exponentials and the output measured from it [Milakov & Gimelshein 2018], and meet the keys in
// tiles that begin at multiples of kKeyTile.
#include "kernels/cpu/attention_panels.h"
#include "kernels/cpu/head_matrix.h"
#include "kernels/cpu/scratch.h"

namespace stoa::cpu {

constexpr std::int64_t kKeyTile = 128;  // enters the bits

/// One tile of keys, packed for scores and for sums.
template <class W>
struct KeyTile {
    std::int64_t first = 0, keys = 0;
    W *k = nullptr, *v = nullptr;
};
struct TileKTag;
struct TileVTag;
template <class T, class W = Wide<T>>
KeyTile<W> pack_tile(const HeadMatrix<T>& k, const HeadMatrix<T>& v, std::int64_t first,
                     std::int64_t last, std::int64_t dim) {
    KeyTile<W> tile{first, std::min(kKeyTile, last - first),
                    scratch<TileKTag, W>((kKeyTile + kMaxMr) * dim),
                    scratch<TileVTag, W>(kKeyTile * (dim + kMaxMr))};
    pack_left(tile.k, k.from_row(first), true, tile.keys, dim);
    pack_left(tile.v, v.from_row(first), false, dim, tile.keys);
    return tile;
}

/// out (dim, 32) += v^T p over keys [from, to) of the tile, when v holds NaN or infinity: they must
/// not meet the zeros of lanes that do not see them. The same chains as multiply().
template <class W>
void add_visible(W* out, const KeyTile<W>& tile, std::int64_t from, std::int64_t to, const W* p,
                 const LaneKeys& lanes, std::int64_t dim) {
    const std::int64_t mr = panel_shape<W>().rows;
    vectorised([&] {
        for (std::int64_t c = 0; c < dim; ++c) {
            const W* const v = tile.v + c / mr * mr * tile.keys + c % mr;
            W sums[kQueryLanes] = {};
            for (std::int64_t j = from; j < to; ++j)
                for (std::int64_t q = 0; q < kQueryLanes; ++q)
                    if (lanes.sees(q, tile.first + j))
                        sums[q] = std::fma(v[j * mr], p[j * kQueryLanes + q], sums[q]);
            for (std::int64_t q = 0; q < kQueryLanes; ++q)
                out[c * kQueryLanes + q] += sums[q];
        }
    });
}

/// What 32 queries know so far: out (dim, 32) and sum are measured from max.
template <class W>
struct LaneState {
    LaneKeys keys;
    W max[kQueryLanes], sum[kQueryLanes];
    const W* q = nullptr;  // packed, scaled
    W* out = nullptr;
};

/// Brings a state from its old maximum to the new one; base (32) is what scores are measured from.
template <class W>
void move_maximum(LaneState<W>& s, const W* max, W* base, std::int64_t dim) {
    vectorised([&] {
        W factor[kQueryLanes];
        for (std::int64_t q = 0; q < kQueryLanes; ++q) {
            base[q] = base_of(max[q]);
            factor[q] = fused_exp(s.max[q] - base[q]);
            s.max[q] = max[q];
            s.sum[q] *= factor[q];
        }
        for (std::int64_t c = 0; c < dim; ++c)
            for (std::int64_t q = 0; q < kQueryLanes; ++q)
                s.out[c * kQueryLanes + q] *= factor[q];
    });
}

/// add_to(scores, key, keys): what comes to the scores (keys, 32) of keys from `key` on.
template <class W, class AddTo>
void attend_tile(LaneState<W>& s, const KeyTile<W>& tile, std::int64_t dim, const AddTo& add_to) {
    struct ScoresTag;
    W* const scores = scratch<ScoresTag, W>(kKeyTile * kQueryLanes);
    const std::int64_t mr = panel_shape<W>().rows;
    const std::int64_t from = std::max<std::int64_t>(0, s.keys.first - tile.first) / mr * mr;
    const std::int64_t to = std::min(tile.keys, s.keys.last - tile.first), keys = to - from;
    if (keys <= 0) return;
    multiply(keys, kQueryLanes, dim, packed_left(tile.k, dim, from), packed_right(s.q, dim), scores,
             kQueryLanes, Into::write);
    add_to(scores, tile.first + from, keys);
    const bool all_seen = s.keys.all_see(tile.first + from, tile.first + to);
    if (!all_seen) hide_keys(scores, tile.first + from, keys, s.keys);
    W max[kQueryLanes], base[kQueryLanes], sum[kQueryLanes] = {};
    std::copy_n(s.max, kQueryLanes, max);
    raise_maxima(max, scores, keys);
    move_maximum(s, max, base, dim);
    exponentials(scores, sum, keys, base);
    for (std::int64_t q = 0; q < kQueryLanes; ++q)
        s.sum[q] += sum[q];
    if (!all_seen && !all_finite(tile.v, left_values<W>(dim, tile.keys)))
        return add_visible(s.out, tile, from, to, scores - from * kQueryLanes, s.keys, dim);
    multiply(dim, kQueryLanes, keys, packed_left(tile.v, tile.keys, 0, from),
             stored_right(scores, kQueryLanes), s.out, kQueryLanes, Into::add);
}

}  // namespace stoa::cpu
