#pragma once
// The order in which the values of the ranks are added, whatever carries them: so a sum has the
// same bits through shared memory, through messages, and on every rank.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/core/numeric.h"
#include "kernels/core/tree.h"

namespace stoa {

/// tree:  that of kernels/core/tree.h over the ranks
/// chain: ((start + rank 0) + rank 1) + ...: goes on over any number of calls.
enum class SumOrder { tree, chain };

constexpr std::int64_t kSumStrip = 512;  // sums that are held at once, in Sum<T>
template <class T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
Sum<T> wide_of(T x) {
    if constexpr (std::is_same_v<T, bf16>)
        return to_float(x);
    else
        return x;
}
template <class T>
T narrow_of(Sum<T> x) {
    if constexpr (std::is_same_v<T, bf16>)
        return to_bf16(x);
    else
        return x;
}

/// sum[i] = the tree of at(r)[i] over ranks [first, first + count); n <= kSumStrip.
template <class T, class At>
void tree_of_ranks(Sum<T>* sum, const At& at, std::int64_t first, std::int64_t count,
                   std::int64_t n) {
    if (count == 1) {
        const T* const x = at(first);
        for (std::int64_t i = 0; i < n; ++i)
            sum[i] = wide_of(x[i]);
        return;
    }
    Sum<T> right[kSumStrip];
    const std::int64_t half = tree_half(count);
    tree_of_ranks<T>(sum, at, first, half, n);
    tree_of_ranks<T>(right, at, first + half, count - half, n);
    for (std::int64_t i = 0; i < n; ++i)
        sum[i] += right[i];
}

/// out[i] = the sum of at(r)[i] over `ranks`, rounded once; a chain begins from start[i] where
/// there is a start (which may be out). n <= kSumStrip.
template <class T, class At>
void sum_of_ranks(T* out, const At& at, std::int64_t ranks, std::int64_t n, SumOrder order,
                  const T* start) {
    Sum<T> sum[kSumStrip];
    if (order == SumOrder::tree) {
        tree_of_ranks<T>(sum, at, 0, ranks, n);
    } else {
        tree_of_ranks<T>(
            sum, [&](std::int64_t) { return start != nullptr ? start : at(0); }, 0, 1, n);
        for (std::int64_t r = start != nullptr ? 0 : 1; r < ranks; ++r) {
            const T* const x = at(r);
            for (std::int64_t i = 0; i < n; ++i)
                sum[i] += wide_of(x[i]);
        }
    }
    for (std::int64_t i = 0; i < n; ++i)
        out[i] = narrow_of<T>(sum[i]);
}

}  // namespace stoa
