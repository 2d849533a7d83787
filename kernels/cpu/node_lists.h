#pragma once
// The inverse of a selection: which queries have selected a node.
#include <algorithm>
#include <cstdint>

namespace stoa::cpu {

/// A stable counting sort. visit(fn) calls fn(node, value) for every pair, twice in the same order.
/// The values of a node come to lie in that order at values[begin[node] ... begin[node + 1]); begin
/// has nodes + 1 elements.
template <class Value, class Visit>
void sort_by_node(std::int64_t* begin, Value* values, std::int64_t nodes, const Visit& visit) {
    std::fill_n(begin, nodes + 1, std::int64_t{0});
    std::int64_t* const end = begin + 1;  // of a node; while values come, where its next one goes
    visit([&](std::int64_t node, Value) { ++end[node]; });
    for (std::int64_t node = 0, sum = 0; node < nodes; ++node) {
        sum += end[node];
        end[node] = sum - end[node];
    }
    visit([&](std::int64_t node, Value value) { values[end[node]++] = value; });
}

/// The selected leaves of a chunk of queries; entry = query * slots + slot.
struct SelectedLeaves {
    const std::int32_t* selection = nullptr;  // of the first query, `stride` to a query
    std::int64_t count = 0, stride = 0, slots = 0, entries = 0;
    std::int32_t* entry = nullptr;  // (count * slots)
    std::int32_t leaf(std::int32_t e) const { return selection[e / slots * stride + e % slots]; }
};

/// Fills the entries, those of a leaf side by side where that pays; those of a query keep their
/// order either way. `begin` has far + 1 elements, `far` the leaves that can have been selected.
inline void order_leaves(SelectedLeaves& s, std::int64_t* begin, std::int64_t far) {
    const auto visit = [&](const auto& fn) {
        for (std::int64_t r = 0; r < s.count; ++r)
            for (std::int64_t i = 0; i < s.slots && s.selection[r * s.stride + i] >= 0; ++i)
                fn(s.selection[r * s.stride + i], static_cast<std::int32_t>(r * s.slots + i));
    };
    if (s.count * s.slots * 4 >= far) {
        sort_by_node(begin, s.entry, far, visit);
        s.entries = begin[far];
    } else {
        s.entries = 0;
        visit([&](std::int64_t, std::int32_t entry) { s.entry[s.entries++] = entry; });
    }
}

/// fn(leaf, first, last) for runs of entries with the same leaf.
template <class Fn>
void for_each_leaf(const SelectedLeaves& s, const Fn& fn) {
    for (std::int64_t first = 0, last = 0; first < s.entries; first = last) {
        const std::int32_t leaf = s.leaf(s.entry[first]);
        for (last = first + 1; last < s.entries && s.leaf(s.entry[last]) == leaf;)
            ++last;
        fn(leaf, first, last);
    }
}

}  // namespace stoa::cpu
