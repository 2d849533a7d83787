#include "parallel/message_parts.h"

#include <algorithm>

#include "parallel/check_mpi.h"
#include "parallel/message_sum.h"

namespace stoa {
namespace {

/// Counts and places of one MPI call with a slot of equal length for every rank, in bytes.
struct Slots {
    std::vector<int> counts, places;
    Slots(std::size_t ranks, std::int64_t slot_bytes) : counts(ranks) {
        for (std::size_t r = 0; r < ranks; ++r)
            places.push_back(static_cast<int>(static_cast<std::int64_t>(r) * slot_bytes));
    }
};

}  // namespace

template <class T>
void message_sum_parts(std::span<const PartSum> parts, SumOrder order, bool add,
                       const Communicator& comm) {
    constexpr auto kSize = static_cast<std::int64_t>(sizeof(T));
    const auto ranks = static_cast<std::size_t>(comm.size()),
               me = static_cast<std::size_t>(comm.rank());
    const std::int64_t slot = std::max<std::int64_t>(1, kMessageChunk / kSize / comm.size());
    auto walks = walks_by_owner(parts, ranks), own = walks;
    std::vector<T> give(static_cast<std::size_t>(slot) * ranks), got(give.size());
    Slots sent(ranks, slot * kSize), received(ranks, slot * kSize);
    for (std::int64_t left = rounds_of(walks, slot); left > 0; --left) {
        for (std::size_t owner = 0; owner < ranks; ++owner) {
            T* const to = give.data() + static_cast<std::int64_t>(owner) * slot;
            const std::int64_t n = walks[owner].next(slot, [&](const PartRun<PartSum>& run) {
                if (owner != me)
                    std::copy_n(run.part.values.template as<T>().data() + run.begin, run.count,
                                to + run.slot_begin);
            });
            sent.counts[owner] = owner == me ? 0 : static_cast<int>(n * kSize);
            if (owner == me) std::ranges::fill(received.counts, static_cast<int>(n * kSize));
        }
        received.counts[me] = 0;
        check_mpi(
            MPI_Alltoallv(give.data(), sent.counts.data(), sent.places.data(), MPI_BYTE, got.data(),
                          received.counts.data(), received.places.data(), MPI_BYTE, comm.handle()),
            "reduce_scatter", comm);
        own[me].next(slot, [&](const PartRun<PartSum>& run) {
            const T* const mine = run.part.values.template as<T>().data() + run.begin;
            T* const total = run.part.total.template as<T>().data() + run.begin;
            for (std::int64_t i = 0; i < run.count; i += kSumStrip) {
                const auto at = [&](std::int64_t r) {
                    return r == comm.rank() ? mine + i : got.data() + r * slot + run.slot_begin + i;
                };
                sum_of_ranks<T>(total + i, at, comm.size(), std::min(kSumStrip, run.count - i),
                                order, add ? total + i : nullptr);
            }
        });
    }
}
template void message_sum_parts<float>(std::span<const PartSum>, SumOrder, bool,
                                       const Communicator&);
template void message_sum_parts<double>(std::span<const PartSum>, SumOrder, bool,
                                        const Communicator&);
template void message_sum_parts<bf16>(std::span<const PartSum>, SumOrder, bool,
                                      const Communicator&);

void message_gather_parts(std::span<const PartCopy> parts, const Communicator& comm) {
    const auto ranks = static_cast<std::size_t>(comm.size()),
               me = static_cast<std::size_t>(comm.rank());
    const std::int64_t slot = std::max<std::int64_t>(1, kMessageChunk / comm.size());
    auto walks = walks_by_owner(parts, ranks), counted = walks;
    std::vector<std::byte> give(static_cast<std::size_t>(slot)), got(give.size() * ranks);
    Slots received(ranks, slot);
    for (std::int64_t left = rounds_of(walks, slot); left > 0; --left) {
        for (std::size_t owner = 0; owner < ranks; ++owner)
            received.counts[owner] =
                static_cast<int>(counted[owner].next(slot, [](const auto&) {}));
        walks[me].next(slot, [&](const PartRun<PartCopy>& run) {
            std::copy_n(run.part.data.data + run.begin, run.count, give.data() + run.slot_begin);
        });
        check_mpi(
            MPI_Allgatherv(give.data(), received.counts[me], MPI_BYTE, got.data(),
                           received.counts.data(), received.places.data(), MPI_BYTE, comm.handle()),
            "all_gather", comm);
        for (std::size_t owner = 0; owner < ranks; ++owner) {
            if (owner == me) continue;
            walks[owner].next(slot, [&](const PartRun<PartCopy>& run) {
                std::copy_n(got.data() + received.places[owner] + run.slot_begin, run.count,
                            run.part.data.data + run.begin);
            });
        }
    }
}

}  // namespace stoa
