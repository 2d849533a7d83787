#include "parallel/shared_memory.h"

#include <sched.h>
#include <time.h>

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

void sleep_a_little() {
    constexpr timespec kPause{.tv_sec = 0, .tv_nsec = 20'000};
    nanosleep(&kPause, nullptr);
}

}  // namespace

std::unique_ptr<SharedMemory> SharedMemory::open(MPI_Comm comm, Wait wait) {
    if (!all_ranks(on_one_machine(comm), comm)) return nullptr;
    auto s = std::make_unique<SharedMemory>();
    s->comm_ = comm;
    s->wait_ = wait;
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
        s->parts_.push_back(
            {.given = reinterpret_cast<std::uint64_t*>(base),
             .summed = reinterpret_cast<std::uint64_t*>(base + 64),
             .values = base + 4096,
             .sums = base + 4096 + kChunkBytes,
             .parts = {base + 4096 + 2 * kChunkBytes, base + 4096 + 3 * kChunkBytes}});
    }
    *s->parts_[s->rank_].given = *s->parts_[s->rank_].summed = 0;
    MPI_Barrier(comm);
    return s;
}

void SharedMemory::close() {
    if (window_ != MPI_WIN_NULL) MPI_Win_free(&window_);
}

// Says how far this rank is, and waits until all are. MPI is given a turn now and then: a message
// that an earlier call left half sent must go on, or its receiver never comes here.
void SharedMemory::wait_for_all(std::uint64_t* Part::*counter) {
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
            wait_ == Wait::sleep ? sleep_a_little() : void(sched_yield());  // more ranks than cores
            int waiting = 0;
            if (spins % kTurns == 0)
                MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, comm_, &waiting, MPI_STATUS_IGNORE);
        }
}

}  // namespace stoa
