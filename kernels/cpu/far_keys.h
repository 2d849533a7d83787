#pragma once
// Keys outside the windows, by tiles of queries, and who sees which key.
#include <cstdint>
#include <span>
#include <vector>

namespace stoa::cpu {

constexpr std::int64_t kTileRows = 64;  // queries of a tile of tree attention

/// For the queries [i tile_rows, ...): the keys, ascending, that any of them sees although they
/// have left its window. Each query of a tile sees `keep` and the sinks of its document at most;
/// the list also has those that enter or leave within the tile.
struct FarKeys {
    std::vector<std::int64_t> begin{0};  // into keys, one more than tiles
    std::vector<std::int32_t> keys;
    std::span<const std::int32_t> of_tile(std::int64_t i) const {
        const auto at = static_cast<std::size_t>(i);
        return std::span(keys).subspan(static_cast<std::size_t>(begin[at]),
                                       static_cast<std::size_t>(begin[at + 1] - begin[at]));
    }
};
/// From the expiry times (len) of one kv head, for the queries from `first` on.
/// O(len + tiles x keys of a tile).
FarKeys find_far_keys(const std::int32_t* expiry, std::int64_t len, std::int64_t window,
                      std::int64_t tile_rows, std::int64_t first = 0);

}  // namespace stoa::cpu
