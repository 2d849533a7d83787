#include <algorithm>

#include "parallel/shared_memory.h"

namespace stoa {
namespace {

/// What rank r sums: whole cache lines of [0, count).
struct Slice {
    std::int64_t begin, end;
    std::int64_t size() const { return end - begin; }
};
template <class T>
Slice slice_of(std::size_t rank, std::size_t ranks, std::int64_t count) {
    constexpr std::int64_t kLine = 64 / sizeof(T);
    const std::int64_t lines = (count + kLine - 1) / kLine, n = static_cast<std::int64_t>(ranks);
    const std::int64_t size = (lines + n - 1) / n * kLine, r = static_cast<std::int64_t>(rank);
    return {std::min(count, r * size), std::min(count, (r + 1) * size)};
}

}  // namespace

template <class T>
void SharedMemory::sum_chunk(T* out, const T* in, std::int64_t count, SumOrder order, bool add) {
    const std::size_t ranks = parts_.size();
    const auto values = [&](std::size_t r) { return reinterpret_cast<T*>(parts_[r].values); };
    const auto sums = [&](std::size_t r) { return reinterpret_cast<T*>(parts_[r].sums); };
    const Slice mine = slice_of<T>(rank_, ranks, count);
    ++round_;
    std::copy_n(in, mine.begin, values(rank_));
    std::copy_n(in + mine.end, count - mine.end, values(rank_) + mine.end);
    wait_for_all(&Part::given);
    for (std::int64_t i = mine.begin; i < mine.end; i += kSumStrip) {
        const std::int64_t n = std::min(kSumStrip, mine.end - i);
        const auto at = [&](std::int64_t rank) {
            const auto r = static_cast<std::size_t>(rank);
            return (r == rank_ ? in : values(r)) + i;
        };
        T* const sum = sums(rank_) + i;
        sum_of_ranks(sum, at, static_cast<std::int64_t>(ranks), n, order, add ? out + i : nullptr);
        std::copy_n(sum, n, out + i);
    }
    wait_for_all(&Part::summed);
    for (std::size_t r = 0; r < ranks; ++r)
        if (const Slice s = slice_of<T>(r, ranks, count); r != rank_)
            std::copy_n(sums(r) + s.begin, s.size(), out + s.begin);
}

template <class T>
void SharedMemory::sum(T* out, const T* in, std::int64_t count, SumOrder order, bool add) {
    constexpr std::int64_t kChunk = kChunkBytes / static_cast<std::int64_t>(sizeof(T));
    for (std::int64_t i = 0; i < count; i += kChunk)
        sum_chunk(out + i, in + i, std::min(kChunk, count - i), order, add);
}
template void SharedMemory::sum(float*, const float*, std::int64_t, SumOrder, bool);
template void SharedMemory::sum(bf16*, const bf16*, std::int64_t, SumOrder, bool);

}  // namespace stoa
