#pragma once
// Reductions with a fixed shape: always 16 partial results, element i in lane i mod 16, folded in
// one fixed tree. The compiler may use any vector width without changing a bit.
#include <algorithm>
#include <cstdint>

namespace stoa::cpu {

constexpr int kLanes = 16;

/// Folds term(0) .. term(n - 1) with `combine`, which starts from `start`.
template <class W, class Term, class Combine>
W lane_fold(std::int64_t n, W start, const Term& term, const Combine& combine) {
    W lane[kLanes];
    for (int l = 0; l < kLanes; ++l)
        lane[l] = start;
    std::int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
#pragma GCC unroll 1  // unrolled, it would not be seen as one vector
        for (int l = 0; l < kLanes; ++l)
            lane[l] = combine(lane[l], term(i + l));
    for (int l = 0; i + l < n; ++l)
        lane[l] = combine(lane[l], term(i + l));
    for (int half = kLanes / 2; half > 0; half /= 2)
        for (int l = 0; l < half; ++l)
            lane[l] = combine(lane[l], lane[l + half]);
    return lane[0];
}

template <class W, class Term>
W lane_sum(std::int64_t n, const Term& term) {
    return lane_fold<W>(n, W{0}, term, [](W a, W b) { return a + b; });
}

/// The largest term, or `start` when none is larger. A NaN term is passed over.
template <class W, class Term>
W lane_max(std::int64_t n, W start, const Term& term) {
    return lane_fold<W>(n, start, term, [](W a, W b) { return b > a ? b : a; });
}

}  // namespace stoa::cpu
