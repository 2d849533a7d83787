#pragma once
// Runs a kernel's blocks one after another on the host. The threads of a block are fibers, which
// meet at sync_block and at shuffles; accesses to shared memory are recorded, and those that no
// barrier orders, that nothing has written or that lie outside their array are findings.
#include <cstdint>
#include <functional>
#include <string>

#include "kernels/cuda/launch_shape.h"

namespace stoa::cuda::host {

/// What a test breaks on purpose, to see it found.
struct Mutation {
    int skip_barrier = -1;  // the sync_block that each thread of a block passes as its n-th
    int shift_index = 0;    // is added to every index into shared memory
};
/// For the scope.
class MutationScope {
public:
    explicit MutationScope(Mutation mutation);
    ~MutationScope();
    MutationScope(const MutationScope&) = delete;
    MutationScope& operator=(const MutationScope&) = delete;
};

/// What the launches since the last reset did.
struct Counts {
    std::int64_t launches = 0, blocks = 0, barriers = 0, shuffles = 0, shared_accesses = 0;
    int most_barriers = 0;  // that one thread passed
};
Counts counts();
void reset_counts();

/// body() once per thread of every block.
/// errors: DeviceError with the first finding, or where threads wait that can never meet
void run(const Launch& launch, const std::function<void()>& body);

struct Position {
    int thread = 0, threads = 0;
    std::int64_t block = 0, blocks = 0;
};
const Position& position();
void meet_block();
/// The value that lane `from` of the caller's group of `width` threads passes in the same call.
std::uint64_t exchange(std::uint64_t value, int from, int width);
std::uint32_t ballot(bool bit);

/// One access of the running thread, to element `index` of `count`, at `offset_bytes` of the
/// block's memory. Ends the thread where it lies outside or no barrier orders it.
void access(std::int64_t offset_bytes, int index, int count, bool write);
std::byte* shared_memory();
int shifted(int index);
void require_shared(std::int64_t end_bytes);

}  // namespace stoa::cuda::host
