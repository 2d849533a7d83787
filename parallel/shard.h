#pragma once
// How one axis of a logical tensor is cut over a group.
#include <algorithm>
#include <cstdint>

namespace stoa {

/// Rank `rank` of `size` holds logical cells [begin, begin + count) in `local` slots; local - count
/// slots are padding. Even cuts have no padding; an odd vocabulary has it on the last rank(s).
struct ShardRange {
    std::int64_t begin = 0, count = 0, local = 0;
};
/// `chunks`: a multiple of size; each rank holds whole chunks of the axis, equal but for padding.
inline ShardRange shard_range(std::int64_t logical, int rank, int size, std::int64_t chunks) {
    const std::int64_t local = (logical + chunks - 1) / chunks * (chunks / size);
    const std::int64_t begin = std::min<std::int64_t>(local * rank, logical);
    return {begin, std::min(local, logical - begin), local};
}
inline ShardRange shard_range(std::int64_t logical, int rank, int size) {
    return shard_range(logical, rank, size, size);
}

}  // namespace stoa
