#pragma once
// What the attentions share: scores lie as (keys, queries), 32 queries side by side in the vector
// lanes, so that a softmax is elementwise work and no lane ever meets another. A key that a query
// does not see adds zeros, which change nothing: a query's bits are those of its own keys, in
// ascending order.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/fast_exp.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/panels.h"

namespace stoa::cpu {

constexpr std::int64_t kQueryLanes = kPanelWidth;

/// The keys that 32 queries see: lane q those with begin[q] <= key < end[q].
struct LaneKeys {
    alignas(64) std::int32_t begin[kQueryLanes], end[kQueryLanes];
    std::int64_t first = 0, last = 0;       // any lane's
    std::int64_t all_from = 0, all_to = 0;  // every lane sees these
    bool all_see(std::int64_t from, std::int64_t to) const {
        return all_from <= from && to <= all_to;
    }
    bool sees(std::int64_t lane, std::int64_t key) const {
        return begin[lane] <= key && key < end[lane];
    }
};
/// Of `rows` queries; lanes beyond them see everything and are nobody's.
inline LaneKeys lane_keys(const std::int32_t* begin, const std::int32_t* end, std::int64_t rows) {
    constexpr std::int32_t kMost = std::numeric_limits<std::int32_t>::max();
    LaneKeys k{.first = kMost, .last = 0, .all_from = 0, .all_to = kMost};
    for (std::int64_t q = 0; q < kQueryLanes; ++q) {
        const bool is_query = q < rows, empty = is_query && end[q] <= begin[q];
        k.begin[q] = !is_query ? 0 : empty ? kMost : begin[q];
        k.end[q] = !is_query ? kMost : empty ? 0 : end[q];
        if (!is_query) continue;
        k.all_from = std::max<std::int64_t>(k.all_from, k.begin[q]);
        k.all_to = std::min<std::int64_t>(k.all_to, k.end[q]);
        if (empty) continue;
        k.first = std::min<std::int64_t>(k.first, k.begin[q]);
        k.last = std::max<std::int64_t>(k.last, k.end[q]);
    }
    return k;
}

/// s (keys, 32), the first row of which is key `first`: -infinity where a lane does not see a key.
template <class W>
void hide_keys(W* s, std::int64_t first, std::int64_t keys, const LaneKeys& lanes) {
    vectorised([&] {
        for (std::int64_t j = 0; j < keys; ++j, s += kQueryLanes) {
            const auto key = static_cast<std::int32_t>(first + j);
            for (std::int64_t q = 0; q < kQueryLanes; ++q) {
                const bool seen = (lanes.begin[q] <= key) & (key < lanes.end[q]);
                s[q] = seen ? s[q] : -std::numeric_limits<W>::infinity();
            }
        }
    });
}

/// 16 lanes in a register; g++ splits it where registers are narrower.
template <class W>
struct SixteenLanes;
template <>
struct SixteenLanes<float> {
    using Vector = float __attribute__((vector_size(64), aligned(4), may_alias));
};
template <>
struct SixteenLanes<double> {
    using Vector = double __attribute__((vector_size(128), aligned(8), may_alias));
};
template <class W>
struct Lanes {
    using Vector = typename SixteenLanes<W>::Vector;
    static constexpr std::int64_t kCount = kQueryLanes / 16;
    Vector part[kCount];
    explicit Lanes(W value) {
        for (Vector& v : part)
            v = Vector{} + value;
    }
    explicit Lanes(const W* from) {
        for (std::int64_t i = 0; i < kCount; ++i)
            part[i] = *reinterpret_cast<const Vector*>(from + 16 * i);
    }
    void store(W* to) const {
        for (std::int64_t i = 0; i < kCount; ++i)
            *reinterpret_cast<Vector*>(to + 16 * i) = part[i];
    }
    void add(const W* from) {
        for (std::int64_t i = 0; i < kCount; ++i)
            part[i] += *reinterpret_cast<const Vector*>(from + 16 * i);
    }
    /// The larger of both, lane by lane; NaN is passed over.
    void rise_to(const W* from) {
        for (std::int64_t i = 0; i < kCount; ++i) {
            const Vector x = *reinterpret_cast<const Vector*>(from + 16 * i);
            part[i] = x > part[i] ? x : part[i];
        }
    }
};

/// max (32) = the largest of it and the scores s (keys, 32)
template <class W>
void raise_maxima(W* max, const W* s, std::int64_t keys) {
    vectorised([&] {
        Lanes<W> m(max);
        for (std::int64_t j = 0; j < keys; ++j)
            m.rise_to(s + j * kQueryLanes);
        m.store(max);
    });
}

/// s (keys, 32) = exp(s - base), sum (32) = what each lane has of it, key after key.
template <class W>
void exponentials(W* s, W* sum, std::int64_t keys, const W* base) {
    vectorised([&] {
        Lanes<W> total(sum);
        for (std::int64_t j = 0; j < keys; ++j, s += kQueryLanes) {
            for (std::int64_t q = 0; q < kQueryLanes; ++q)
                s[q] = fused_exp(s[q] - base[q]);
            total.add(s);
        }
        total.store(sum);
    });
}

template <class W>
void scale_all(W* x, std::int64_t n, W factor) {
    vectorised([&] {
        for (std::int64_t i = 0; i < n; ++i)
            x[i] *= factor;
    });
}

/// A maximum as what scores are measured from: 0 where nothing was seen.
template <class W>
W base_of(W max) {
    return max == -std::numeric_limits<W>::infinity() ? W{0} : max;
}

}  // namespace stoa::cpu
