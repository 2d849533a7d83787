#include "data/tokenizer/bpe_merge.h"

#include <bit>
#include <limits>
#include <queue>

namespace stoa {
namespace {

constexpr std::size_t kShortPiece = 48;  // tokens; where the scan stops being the faster way

void merge_by_scan(const MergeTable& merges, std::vector<TokenId>& ids) {
    while (ids.size() > 1) {
        const MergeTable::Entry* best = nullptr;
        std::size_t at = 0;
        for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
            const auto* e = merges.find(ids[i], ids[i + 1]);
            if (e != nullptr && (best == nullptr || e->rank < best->rank)) best = e, at = i;
        }
        if (best == nullptr) return;
        ids[at] = best->merged;
        ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    }
}

/// A doubly linked list over the positions and a heap of candidate merges. An outdated candidate is
/// recognised when it comes up: its pair no longer stands there.
void merge_by_heap(const MergeTable& merges, std::vector<TokenId>& ids) {
    struct Candidate {
        std::int32_t rank;
        std::size_t at;
        TokenId left, right;
        bool operator<(const Candidate& o) const {  // std::priority_queue keeps the greatest on top
            return rank != o.rank ? rank > o.rank : at > o.at;
        }
    };
    constexpr TokenId kGone = -1;
    const std::size_t n = ids.size();
    std::vector<std::size_t> next(n), prev(n);
    for (std::size_t i = 0; i < n; ++i)
        next[i] = i + 1, prev[i] = i == 0 ? n : i - 1;
    std::vector<Candidate> storage;
    storage.reserve(n);
    std::priority_queue<Candidate> heap({}, std::move(storage));
    const auto offer = [&](std::size_t at) {
        if (at >= n || next[at] >= n) return;
        const TokenId left = ids[at], right = ids[next[at]];
        if (const auto* e = merges.find(left, right)) heap.push({e->rank, at, left, right});
    };
    for (std::size_t i = 0; i + 1 < n; ++i)
        offer(i);
    while (!heap.empty()) {
        const Candidate c = heap.top();
        heap.pop();
        const std::size_t right = next[c.at];
        if (ids[c.at] != c.left || right >= n || ids[right] != c.right) continue;
        ids[c.at] = merges.find(c.left, c.right)->merged;
        ids[right] = kGone;
        next[c.at] = next[right];
        if (next[right] < n) prev[next[right]] = c.at;
        offer(prev[c.at]);
        offer(c.at);
    }
    std::erase(ids, kGone);
}

}  // namespace

MergeTable::MergeTable(std::size_t merges)
    : mask_(std::bit_ceil(2 * merges + 2) - 1), entries_(mask_ + 1) {}

void MergeTable::insert(TokenId left, TokenId right, std::int32_t rank, TokenId merged) {
    const std::uint64_t key = pack(left, right);
    std::size_t i = slot(key);
    while (entries_[i].key != kEmpty && entries_[i].key != key)
        i = (i + 1) & mask_;
    if (entries_[i].key == kEmpty) entries_[i] = {key, rank, merged};
}

void apply_merges(const MergeTable& merges, std::vector<TokenId>& ids) {
    ids.size() <= kShortPiece ? merge_by_scan(merges, ids) : merge_by_heap(merges, ids);
}

}  // namespace stoa
