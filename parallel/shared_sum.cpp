#include "parallel/shared_sum.h"

#include <sched.h>

#include <algorithm>
#include <atomic>

namespace stoa {
namespace {

using Counter = std::atomic_ref<std::uint64_t>;
static_assert(Counter::is_always_lock_free, "the counters work between processes");

bool on_one_machine(MPI_Comm comm) {
    MPI_Comm here = MPI_COMM_NULL;
    int size = 0, here_size = 0;
    if (MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &here) != MPI_SUCCESS)
        return false;
    MPI_Comm_size(comm, &size);
    MPI_Comm_size(here, &here_size);
    MPI_Comm_free(&here);
    return here_size == size;
}

bool all_ranks(bool mine, MPI_Comm comm) {
    int all = mine;
    MPI_Allreduce(MPI_IN_PLACE, &all, 1, MPI_INT, MPI_MIN, comm);
    return all != 0;
}

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

std::unique_ptr<SharedSum> SharedSum::open(MPI_Comm comm) {
    if (!all_ranks(on_one_machine(comm), comm)) return nullptr;
    auto s = std::make_unique<SharedSum>();
    s->comm_ = comm;
    int rank = 0, size = 0;
    MPI_Comm_rank(comm, &rank);
    MPI_Comm_size(comm, &size);
    s->rank_ = static_cast<std::size_t>(rank);
    void* mine = nullptr;
    const bool have =
        MPI_Win_allocate_shared(kBytes, 1, MPI_INFO_NULL, comm, &mine, &s->window_) == MPI_SUCCESS;
    if (!all_ranks(have, comm)) return nullptr;  // as MPI reports it: on every rank or on none
    for (int r = 0; r < size; ++r) {
        MPI_Aint bytes = 0;
        int unit = 0;
        std::byte* base = nullptr;
        MPI_Win_shared_query(s->window_, r, &bytes, &unit, &base);
        s->parts_.push_back({.given = reinterpret_cast<std::uint64_t*>(base),
                             .summed = reinterpret_cast<std::uint64_t*>(base + 64),
                             .values = base + 4096,
                             .sums = base + 4096 + kChunkBytes});
    }
    *s->parts_[s->rank_].given = *s->parts_[s->rank_].summed = 0;
    MPI_Barrier(comm);
    return s;
}

void SharedSum::close() {
    if (window_ != MPI_WIN_NULL) MPI_Win_free(&window_);
}

// Says how far this rank is, and waits until all are. MPI is given a turn now and then: a message
// that an earlier call left half sent must go on, or its receiver never comes here.
void SharedSum::wait_for_all(std::uint64_t* Part::*counter) {
    constexpr int kSpins = 2000, kTurns = 64;
    Counter(*(parts_[rank_].*counter)).store(round_, std::memory_order_release);
    for (const Part& part : parts_)
        for (int spins = 0; Counter(*(part.*counter)).load(std::memory_order_acquire) < round_;) {
            if (++spins < kSpins) {
#if defined(__x86_64__)
                __builtin_ia32_pause();
#endif
                continue;
            }
            sched_yield();  // more ranks than cores
            int waiting = 0;
            if (spins % kTurns == 0)
                MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, comm_, &waiting, MPI_STATUS_IGNORE);
        }
}

template <class T>
void SharedSum::sum_chunk(T* out, const T* in, std::int64_t count, SumOrder order, bool add) {
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
void SharedSum::sum(T* out, const T* in, std::int64_t count, SumOrder order, bool add) {
    constexpr std::int64_t kChunk = kChunkBytes / static_cast<std::int64_t>(sizeof(T));
    for (std::int64_t i = 0; i < count; i += kChunk)
        sum_chunk(out + i, in + i, std::min(kChunk, count - i), order, add);
}
template void SharedSum::sum(float*, const float*, std::int64_t, SumOrder, bool);
template void SharedSum::sum(bf16*, const bf16*, std::int64_t, SumOrder, bool);

}  // namespace stoa
