#include "kernels/core/buffer.h"

#include <cstdlib>
#include <cstring>

namespace stoa {

Buffer::Buffer(std::int64_t bytes) : bytes_(bytes) {
    const auto size = static_cast<std::size_t>(align_up(bytes > 0 ? bytes : 1));
    auto* p = static_cast<std::byte*>(std::aligned_alloc(kAlignment, size));
    if (p == nullptr)
        throw MemoryError(
            {.what = "out of memory",
             .expected = std::to_string(bytes) + " bytes",
             .hint = "lower batch.micro_batch, set parallel.recompute: full, or use more ranks"});
    std::memset(p, 0, size);
    data_.reset(p);
}

void Buffer::Free::operator()(std::byte* p) const { std::free(p); }

}  // namespace stoa
