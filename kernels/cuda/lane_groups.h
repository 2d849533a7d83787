#pragma once
// Reductions in the shape of kernels/cpu/lanes.h, so that their bits are the CPU's: 16 threads take
// the 16 lanes, element i in lane i mod 16, and fold them in the same tree.
#include "kernels/cuda/launch.h"

namespace stoa::cuda {

constexpr int kLanes = 16;

/// Called by all 16 threads of a group, and the same for all of them.
template <class W, class Term, class Combine>
STOA_DEVICE W lane_fold(std::int64_t n, W start, const Term& term, const Combine& combine) {
    W value = start;
    STOA_UNROLL_8  // eight loads on their way at a time
        for (std::int64_t i = thread_index() % kLanes; i < n; i += kLanes) value =
            combine(value, term(i));
    for (int half = kLanes / 2; half > 0; half /= 2)
        value = combine(value, shuffle_down(value, half, kLanes));
    return shuffle(value, 0, kLanes);
}
template <class W, class Term>
STOA_DEVICE W lane_sum(std::int64_t n, const Term& term) {
    return lane_fold<W>(n, W{0}, term, [](W a, W b) { return a + b; });
}
/// The largest term, or `start` when none is larger. A NaN term is passed over.
template <class W, class Term>
STOA_DEVICE W lane_max(std::int64_t n, W start, const Term& term) {
    return lane_fold<W>(n, start, term, [](W a, W b) { return b > a ? b : a; });
}

/// The index of the caller's group, and of its thread, in the whole launch.
STOA_DEVICE inline std::int64_t global_thread() {
    return block_index() * block_threads() + thread_index();
}
STOA_DEVICE inline std::int64_t global_group() { return global_thread() / kLanes; }

/// The largest value of a warp, for all of its threads.
STOA_DEVICE inline std::int32_t warp_max(std::int32_t value) {
    for (int half = kWarp / 2; half > 0; half /= 2) {
        const std::int32_t other = shuffle_down(value, half);
        value = other > value ? other : value;
    }
    return shuffle(value, 0);
}

/// The sum over a warp, in one tree, for all of its threads.
template <class W>
STOA_DEVICE W warp_sum(W value) {
    for (int half = kWarp / 2; half > 0; half /= 2)
        value += shuffle_down(value, half);
    return shuffle(value, 0);
}

/// The first token behind the document that begins at `begin`; a warp looks.
STOA_DEVICE inline std::int64_t document_end(const std::int32_t* begins, std::int64_t begin,
                                             std::int64_t len) {
    for (std::int64_t t = begin; t < len; t += kWarp) {
        const std::int64_t own = t + thread_index() % kWarp;
        const std::uint32_t others = warp_ballot(own < len && begins[own] != begin);
        if (others != 0) return t + lowest_bit(others);
    }
    return len;
}

constexpr int kThreads = 256;

}  // namespace stoa::cuda
