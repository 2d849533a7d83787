#pragma once
// Applying merges to one piece, and the hash map from a pair of tokens to its rank.
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "data/tokenizer/tokenizer.h"

namespace stoa {

/// Open addressing, at most half full; keys are (left id, right id).
class MergeTable {
public:
    struct Entry {
        std::uint64_t key = kEmpty;
        std::int32_t rank = 0;
        TokenId merged = 0;
    };
    explicit MergeTable(std::size_t merges);
    /// Keeps the first of equal pairs.
    void insert(TokenId left, TokenId right, std::int32_t rank, TokenId merged);
    /// The entry of a pair, or nullptr.
    const Entry* find(TokenId left, TokenId right) const {
        const std::uint64_t key = pack(left, right);
        for (std::size_t i = slot(key);; i = (i + 1) & mask_) {
            if (entries_[i].key == key) return &entries_[i];
            if (entries_[i].key == kEmpty) return nullptr;
        }
    }

private:
    static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};
    static std::uint64_t pack(TokenId left, TokenId right) {
        return (std::uint64_t{static_cast<std::uint32_t>(left)} << 32) |
               static_cast<std::uint32_t>(right);
    }
    std::size_t slot(std::uint64_t key) const {  // Fibonacci hashing
        return static_cast<std::size_t>((key ^ (key >> 29)) * 0x9E3779B97F4A7C15u >> 32) & mask_;
    }
    std::size_t mask_;
    std::vector<Entry> entries_;
};

/// Merges `ids` in place, lowest rank first and the leftmost of equals, until no pair has a rank.
/// Short pieces scan for the minimum; long ones use a heap: O(n log n) for any input.
void apply_merges(const MergeTable& merges, std::vector<TokenId>& ids);

}  // namespace stoa
