#pragma once
// Collectives of ranks that share one machine, through memory that they share: a value crosses
// between two cores once (parts) or twice (sums for all), and no message is sent. The order of a
// sum is that of rank_sum.h, whatever the size of the tensor.
#include <mpi.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "parallel/owned_parts.h"
#include "parallel/rank_sum.h"

namespace stoa {

class SharedMemory {
public:
    /// How a rank waits for the others: spinning, or asleep for some ten microseconds at a time,
    /// for a thread that should leave the core to the computation.
    enum class Wait { spin, sleep };

    /// The memory of `comm`'s ranks; null where they are on several machines, or one of them cannot
    /// have it. comm: collective, every rank gets the same answer
    static std::unique_ptr<SharedMemory> open(MPI_Comm comm, Wait wait);
    /// comm: collective
    void close();

    // In all of these: comm: the ranks wait for each other, one that never comes is waited for like
    // in any MPI call. T is float or bf16, summed in fp32 and rounded once, to nearest.

    /// out[i] = the sum of the ranks' in[i] in `order`, a chain from out[i] on where `add`; out may
    /// be in. The same bits on every rank. comm: two meetings per kChunkBytes
    template <class T>
    void sum(T* out, const T* in, std::int64_t count, SumOrder order, bool add);

    /// Owners' total = the sum of the ranks' values, a chain from total on where `add`; total may
    /// be values. comm: one meeting per kChunkBytes
    template <class T>
    void sum_parts(std::span<const PartSum> parts, SumOrder order, bool add);
    /// comm: one meeting per kChunkBytes of one owner
    void gather_parts(std::span<const PartCopy> parts);

    static constexpr std::int64_t kChunkBytes = 1 << 18;  // stays in L2 between write and read
    /// Shared bytes of one rank.
    static constexpr std::int64_t kBytes = 4096 + 4 * kChunkBytes;

private:
    /// One rank's part of the window: how far it is, what it gives, what it has summed; and in
    /// turns what it gives in parts, so that one meeting is enough.
    struct Part {
        std::uint64_t *given = nullptr, *summed = nullptr;
        std::byte *values = nullptr, *sums = nullptr;
        std::byte* parts[2] = {nullptr, nullptr};
    };
    template <class T>
    void sum_chunk(T* out, const T* in, std::int64_t count, SumOrder order, bool add);
    template <class T>
    T* parts_of(std::size_t rank) const {
        return reinterpret_cast<T*>(parts_[rank].parts[round_ & 1]);
    }
    void wait_for_all(std::uint64_t* Part::*counter);

    MPI_Comm comm_ = MPI_COMM_NULL;
    MPI_Win window_ = MPI_WIN_NULL;
    Wait wait_ = Wait::spin;
    std::vector<Part> parts_;
    std::size_t rank_ = 0;
    std::uint64_t round_ = 0;
};

}  // namespace stoa
