#pragma once
// Sums over the ranks of a group that share one machine, through memory that they share: each rank
// adds its slice of all ranks' values, so a value crosses between two cores twice and no message is
// sent. The order of a sum is that of rank_sum.h, whatever the size of the tensor.
#include <mpi.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "parallel/rank_sum.h"

namespace stoa {

class SharedSum {
public:
    /// The memory of `comm`'s ranks; null where they are on several machines, or one of them cannot
    /// have it. comm: collective, every rank gets the same answer
    static std::unique_ptr<SharedSum> open(MPI_Comm comm);
    /// comm: collective
    void close();

    /// out[i] = the sum of the ranks' in[i] in `order`, a chain from out[i] on where `add`; out may be
    /// in. T is float or bf16, summed in fp32 and rounded once, to nearest. The same bits on every
    /// rank. comm: all ranks wait for each other twice per kChunkBytes; one that never comes is
    /// waited for like in any MPI call.
    template <class T>
    void sum(T* out, const T* in, std::int64_t count, SumOrder order, bool add);

    static constexpr std::int64_t kChunkBytes = 1 << 18;  // stays in L2 between write and read
    /// Shared bytes of one rank.
    static constexpr std::int64_t kBytes = 4096 + 2 * kChunkBytes;

private:
    /// One rank's part of the window: how far it is, what it gives, what it has summed.
    struct Part {
        std::uint64_t *given = nullptr, *summed = nullptr;
        std::byte *values = nullptr, *sums = nullptr;
    };
    template <class T>
    void sum_chunk(T* out, const T* in, std::int64_t count, SumOrder order, bool add);
    void wait_for_all(std::uint64_t* Part::*counter);

    MPI_Comm comm_ = MPI_COMM_NULL;
    MPI_Win window_ = MPI_WIN_NULL;
    std::vector<Part> parts_;
    std::size_t rank_ = 0;
    std::uint64_t round_ = 0;
};

}  // namespace stoa
