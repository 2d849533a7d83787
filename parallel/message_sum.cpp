#include "parallel/message_sum.h"

#include <vector>

#include "parallel/check_mpi.h"

namespace stoa {
namespace {

/// out[i] = the sum over ranks of values[r * stride + i].
template <class T>
void sum_gathered(T* out, const T* values, std::int64_t stride, std::int64_t ranks,
                  std::int64_t count, SumOrder order, const T* start) {
    for (std::int64_t i = 0; i < count; i += kSumStrip)
        sum_of_ranks(
            out + i, [&](std::int64_t r) { return values + r * stride + i; }, ranks,
            std::min(kSumStrip, count - i), order, start == nullptr ? nullptr : start + i);
}

int bytes_of(std::int64_t count, std::size_t size) {
    return static_cast<int>(count * static_cast<std::int64_t>(size));
}

template <class T>
void sum_few(T* out, const T* in, std::int64_t count, SumOrder order, bool add,
             const Communicator& comm) {
    std::vector<T> all(static_cast<std::size_t>(count * comm.size()));
    const int bytes = bytes_of(count, sizeof(T));
    check_mpi(MPI_Allgather(in, bytes, MPI_BYTE, all.data(), bytes, MPI_BYTE, comm.handle()),
              "all_gather", comm);
    sum_gathered(out, all.data(), count, comm.size(), count, order, add ? out : nullptr);
}

/// Slices of equal length; the last ones may reach behind the end, where they are zero.
template <class T>
void sum_chunk(T* out, const T* in, std::int64_t count, SumOrder order, bool add,
               const Communicator& comm) {
    const std::int64_t ranks = comm.size(), slice = (count + ranks - 1) / ranks;
    const auto padded = static_cast<std::size_t>(slice * ranks);
    std::vector<T> give(padded), got(padded), sum(static_cast<std::size_t>(slice));
    std::copy_n(in, count, give.data());
    const int bytes = bytes_of(slice, sizeof(T));
    check_mpi(MPI_Alltoall(give.data(), bytes, MPI_BYTE, got.data(), bytes, MPI_BYTE,
                           comm.handle()),
              "all_to_all", comm);
    if (add) std::copy_n(out, count, give.data());
    sum_gathered(sum.data(), got.data(), slice, ranks, slice, order,
                 add ? give.data() + comm.rank() * slice : nullptr);
    check_mpi(MPI_Allgather(sum.data(), bytes, MPI_BYTE, got.data(), bytes, MPI_BYTE,
                            comm.handle()),
              "all_gather", comm);
    std::copy_n(got.data(), count, out);
}

}  // namespace

template <class T>
void message_sum(T* out, const T* in, std::int64_t count, SumOrder order, bool add,
                 const Communicator& comm) {
    constexpr auto kSize = static_cast<std::int64_t>(sizeof(T));
    if (count * kSize <= kMessageBytes) return sum_few(out, in, count, order, add, comm);
    for (std::int64_t i = 0; i < count; i += kMessageChunk / kSize)
        sum_chunk(out + i, in + i, std::min(kMessageChunk / kSize, count - i), order, add, comm);
}
template void message_sum(float*, const float*, std::int64_t, SumOrder, bool, const Communicator&);
template void message_sum(double*, const double*, std::int64_t, SumOrder, bool,
                          const Communicator&);
template void message_sum(bf16*, const bf16*, std::int64_t, SumOrder, bool, const Communicator&);

}  // namespace stoa
