// Sums and copies of parts that have owners, through shared memory. What a rank gives in one round
// lies where it lay two rounds ago: all have met since, so all have read it.
#include <algorithm>

#include "parallel/shared_memory.h"

namespace stoa {

template <class T>
void SharedMemory::sum_parts(std::span<const PartSum> parts, SumOrder order, bool add) {
    const std::size_t ranks = parts_.size();
    const std::int64_t slot = std::max<std::int64_t>(
        1, kChunkBytes / static_cast<std::int64_t>(sizeof(T) * ranks));  // of one owner
    auto walks = walks_by_owner(parts, ranks);
    const auto slot_of = [slot](std::size_t owner) {
        return static_cast<std::int64_t>(owner) * slot;
    };
    for (std::int64_t left = rounds_of(walks, slot); left > 0; --left) {
        ++round_;
        for (std::size_t owner = 0; owner < ranks; ++owner) {
            if (owner == rank_) continue;
            T* const to = parts_of<T>(rank_) + slot_of(owner);
            walks[owner].next(slot, [&](const PartRun<PartSum>& run) {
                std::copy_n(run.part.values.template as<T>().data() + run.begin, run.count,
                            to + run.slot_begin);
            });
        }
        wait_for_all(&Part::given);
        walks[rank_].next(slot, [&](const PartRun<PartSum>& run) {
            const T* const own = run.part.values.template as<T>().data() + run.begin;
            T* const total = run.part.total.template as<T>().data() + run.begin;
            for (std::int64_t i = 0; i < run.count; i += kSumStrip) {
                const auto at = [&](std::int64_t rank) {
                    const auto r = static_cast<std::size_t>(rank);
                    return r == rank_ ? own + i
                                      : parts_of<T>(r) + slot_of(rank_) + run.slot_begin + i;
                };
                sum_of_ranks(total + i, at, static_cast<std::int64_t>(ranks),
                             std::min(kSumStrip, run.count - i), order, add ? total + i : nullptr);
            }
        });
    }
}
template void SharedMemory::sum_parts<float>(std::span<const PartSum>, SumOrder, bool);
template void SharedMemory::sum_parts<bf16>(std::span<const PartSum>, SumOrder, bool);

void SharedMemory::gather_parts(std::span<const PartCopy> parts) {
    auto walks = walks_by_owner(parts, parts_.size());
    for (std::int64_t left = rounds_of(walks, kChunkBytes); left > 0; --left) {
        ++round_;
        walks[rank_].next(kChunkBytes, [&](const PartRun<PartCopy>& run) {
            std::copy_n(run.part.data.data + run.begin, run.count,
                        parts_of<std::byte>(rank_) + run.slot_begin);
        });
        wait_for_all(&Part::given);
        for (std::size_t owner = 0; owner < walks.size(); ++owner) {
            if (owner == rank_) continue;
            walks[owner].next(kChunkBytes, [&](const PartRun<PartCopy>& run) {
                std::copy_n(parts_of<std::byte>(owner) + run.slot_begin, run.count,
                            run.part.data.data + run.begin);
            });
        }
    }
}

}  // namespace stoa
