#pragma once
// Keys outside the windows, by tiles of queries.
#include <cstdint>
#include <span>
#include <vector>

namespace stoa::cpu {

constexpr std::int64_t kTileRows = 64;  // queries that share a list

/// For the tile of queries [i kTileRows, ...): the keys before its first query's window that this
/// query sees, ascending. A later query of the tile sees no others: those that leave its window
/// within the tile lie in the tile's local range.
struct FarKeys {
    std::vector<std::int64_t> begin{0};  // into keys, one more than tiles
    std::vector<std::int32_t> keys;
    std::span<const std::int32_t> of_tile(std::int64_t i) const {
        const auto at = static_cast<std::size_t>(i);
        return std::span(keys).subspan(static_cast<std::size_t>(begin[at]),
                                       static_cast<std::size_t>(begin[at + 1] - begin[at]));
    }
};
/// From the expiry times (len) of one kv head. O(len + tiles x keys of a tile).
FarKeys find_far_keys(const std::int32_t* expiry, std::int64_t len, std::int64_t window);

}  // namespace stoa::cpu
