#include "kernels/core/buffer.h"

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

}  // namespace

std::int64_t allocated_bytes() { return held.load(); }
std::int64_t peak_allocated_bytes() { return most.load(); }

Buffer::Buffer(std::int64_t bytes) : bytes_(bytes) {
    const auto size = static_cast<std::size_t>(align_up(bytes > 0 ? bytes : 1));
    auto* p = static_cast<std::byte*>(std::aligned_alloc(kAlignment, size));
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
    held.fetch_sub(bytes);
    std::free(p);
}

}  // namespace stoa
