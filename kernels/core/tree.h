#pragma once
// The shape of every tree that sums over ranks, and over the parts that ranks may share.
#include <cstdint>

#include "kernels/core/numeric.h"

namespace stoa {

/// How many of `count` summands the first branch takes. Ranks that hold 2^n parts each, added by
/// this rule, and then added over the ranks by it, give the sum that one rank with all parts gives,
/// wherever the number of ranks is a power of two.
STOA_HD constexpr std::int64_t tree_half(std::int64_t count) { return count - count / 2; }

/// The tree of term(first) .. term(first + count - 1).
template <class W, class Term>
W tree_fold(std::int64_t first, std::int64_t count, const Term& term) {
    if (count == 1) return term(first);
    const std::int64_t half = tree_half(count);
    const W left = tree_fold<W>(first, half, term);
    return left + tree_fold<W>(first + half, count - half, term);
}

/// The same tree without a call of itself, for kernels: terms 0 .. count - 1, count >= 1.
template <class W, class Term>
STOA_HD W tree_fold_flat(std::int64_t count, const Term& term) {
    struct Node {
        std::int64_t first, count;
        W left;
        bool in_right;
    };
    Node path[48];
    int depth = 0;
    path[0] = {0, count, W{0}, false};
    for (;;) {
        while (path[depth].count > 1) {
            path[depth + 1] = {path[depth].first, tree_half(path[depth].count), W{0}, false};
            ++depth;
        }
        W value = term(path[depth].first);
        while (depth > 0 && path[depth - 1].in_right)
            value = path[--depth].left + value;
        if (depth == 0) return value;
        Node& parent = path[depth - 1];
        const std::int64_t half = tree_half(parent.count);
        parent.left = value;
        parent.in_right = true;
        path[depth] = {parent.first + half, parent.count - half, W{0}, false};
    }
}

}  // namespace stoa
