#include <bit>

#include "kernels/cuda/tree_lists.h"

namespace stoa::cuda {
namespace {

constexpr std::uint32_t kNone = 0xffffffffu;

/// A block a chunk of queries of one level: a bitonic sort of `count` entries, a power of two.
STOA_KERNEL void sort_kernel(std::uint32_t* entries, TreeShape n, const std::int32_t* selection,
                             const std::int32_t* key_begin, std::int64_t chunks, std::int64_t chunk,
                             int count) {
    SharedMemory memory;
    const Shared<std::uint32_t> keys = memory.array<std::uint32_t>(count);
    const std::int64_t first = block_index() % chunks * chunk,
                       level = block_index() / chunks % n.levels,
                       pair = block_index() / chunks / n.levels;
    for (int e = thread_index(); e < count; e += block_threads()) {
        const std::int64_t row = first + e / n.slots;
        std::uint32_t key = kNone;
        if (e < chunk * n.slots && row < n.len) {
            const std::int64_t node =
                selection[((pair * n.len + row) * n.levels + level) * n.slots + e % n.slots];
            const std::int64_t begin = key_begin[pair / n.n_kv_heads * n.len + row];
            if (node >= 0)
                key = static_cast<std::uint32_t>((begin / n.span[level] + node) * chunk +
                                                 e / n.slots);
        }
        keys.write(e, key);
    }
    for (int size = 2; size <= count; size *= 2)
        for (int apart = size / 2; apart > 0; apart /= 2) {
            sync_block();
            for (int i = thread_index(); i < count; i += block_threads()) {
                const int other = i ^ apart;
                if (other < i) continue;
                const std::uint32_t a = keys.read(i), b = keys.read(other);
                if ((a > b) != ((i & size) == 0)) continue;
                keys.write(i, b);
                keys.write(other, a);
            }
        }
    sync_block();
    for (int e = thread_index(); e < chunk * n.slots; e += block_threads())
        entries[block_index() * chunk * n.slots + e] = keys.read(e);
}

}  // namespace

SelectionLists::SelectionLists(const TreeShape& n, const TreeBackwardScratch& room,
                               const std::int32_t* selection, const std::int32_t* key_begin,
                               Stream stream)
    : chunk(room.chunk), chunks(room.chunks), entries(stream, room.entries) {
    require(n.slots <= kTreeListEntries, "tree_attention: beam", "below 4096 on a GPU",
            std::to_string(n.rule.beam));
    require(n.places(0) * chunk < kNone, "tree_attention: len", "below 2^32 leaves x queries",
            std::to_string(n.len));
    const auto count = static_cast<int>(std::bit_ceil(static_cast<std::uint64_t>(chunk * n.slots)));
    launch({.name = "tree_attention_backward: lists",
            .blocks = n.pairs() * n.levels * chunks,
            .threads = kThreads,
            .stream = stream,
            .shared_bytes = (count * 4 + 15) / 16 * 16},
           sort_kernel, entries.as<std::uint32_t>(), n, selection, key_begin, chunks, chunk, count);
}

}  // namespace stoa::cuda
