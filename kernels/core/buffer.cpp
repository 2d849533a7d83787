#include "kernels/core/buffer.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace stoa {
namespace {

std::atomic<std::int64_t> held{0}, most{0};  // statistics only

void count(std::int64_t bytes) {
    const std::int64_t now = held.fetch_add(bytes) + bytes;
    std::int64_t seen = most.load();
    while (now > seen && !most.compare_exchange_weak(seen, now)) {
    }
}

// Large buffers begin on a huge page and ask for them: the matrices of a step touch more pages than
// the TLB holds. A kernel that has none to give uses small ones.
constexpr std::size_t kHugePage = std::size_t{1} << 21;

std::byte* allocate(std::size_t size) {
    if (size < 2 * kHugePage) return static_cast<std::byte*>(std::aligned_alloc(kAlignment, size));
    const std::size_t whole = (size + kHugePage - 1) / kHugePage * kHugePage;
    auto* const p = static_cast<std::byte*>(std::aligned_alloc(kHugePage, whole));
    // Only whole pages: what lies behind the last stays as small as it is.
    if (p != nullptr) madvise(p, size / kHugePage * kHugePage, MADV_HUGEPAGE);
    return p;
}

}  // namespace

std::int64_t allocated_bytes() { return held.load(); }
std::int64_t peak_allocated_bytes() { return most.load(); }

Buffer::Buffer(std::int64_t bytes) : bytes_(bytes) {
    const auto size = static_cast<std::size_t>(align_up(bytes > 0 ? bytes : 1));
    std::byte* const p = allocate(size);
    if (p == nullptr)
        throw MemoryError(
            {.what = "out of memory",
             .expected = std::to_string(bytes) + " bytes",
             .hint = "lower batch.micro_batch, set parallel.recompute: full, or use more ranks"});
    std::memset(p, 0, size);
    data_ = std::unique_ptr<std::byte, FreeBuffer>(p, FreeBuffer{bytes});
    count(bytes);
}

void FreeBuffer::operator()(std::byte* p) const {
    if (release != nullptr) return release(p);
    held.fetch_sub(bytes);
    std::free(p);
}

}  // namespace stoa
