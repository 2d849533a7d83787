#pragma once
// The shape of every tree that sums over ranks, and over the parts that ranks may share.
#include <cstdint>

namespace stoa {

/// How many of `count` summands the first branch takes. Ranks that hold 2^n parts each, added by
/// this rule, and then added over the ranks by it, give the sum that one rank with all parts gives,
/// wherever the number of ranks is a power of two.
constexpr std::int64_t tree_half(std::int64_t count) { return count - count / 2; }

/// The tree of term(first) .. term(first + count - 1).
template <class W, class Term>
W tree_fold(std::int64_t first, std::int64_t count, const Term& term) {
    if (count == 1) return term(first);
    const std::int64_t half = tree_half(count);
    const W left = tree_fold<W>(first, half, term);
    return left + tree_fold<W>(first + half, count - half, term);
}

}  // namespace stoa
