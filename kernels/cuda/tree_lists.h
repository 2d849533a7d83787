#pragma once
// The inverse of a selection on the GPU: which queries have expanded a node. The queries of a row
// go by chunks; a chunk's entries of one level are sorted by node and query, so that a node's
// queries are found in every chunk by bisection, in their order, and nobody adds what others add.
#include "kernels/cuda/key_tree.h"
#include "kernels/device_scratch.h"

namespace stoa::cuda {

struct QueryLists {
    const std::uint32_t* entries;  // (pairs, levels, chunks, chunk * slots): place * chunk + query
    std::int64_t levels, chunks, chunk, slots;

    /// The first of a chunk's entries that is not below `key`.
    STOA_DEVICE std::int64_t first_from(const std::uint32_t* of_chunk, std::uint64_t key) const {
        std::int64_t low = 0, high = chunk * slots;
        while (low < high) {
            const std::int64_t middle = (low + high) / 2;
            of_chunk[middle] < key ? low = middle + 1 : high = middle;
        }
        return low;
    }
    /// fn(rows, n): the n queries of one chunk that have expanded the node at `place` of a level of
    /// rows [from, to); rows[i] % chunk is the i-th's place in chunk `first / chunk`.
    template <class Fn>
    STOA_DEVICE void for_chunks(std::int64_t pair, std::int64_t level, std::int64_t place,
                                std::int64_t from, std::int64_t to, const Fn& fn) const {
        const auto key = static_cast<std::uint64_t>(place * chunk);
        for (std::int64_t c = from / chunk; c * chunk < to; ++c) {
            const std::uint32_t* const own =
                entries + ((pair * levels + level) * chunks + c) * chunk * slots;
            const std::int64_t begin = first_from(own, key),
                               end = first_from(own, key + static_cast<std::uint64_t>(chunk));
            if (begin < end) fn(own + begin, end - begin, c * chunk);
        }
    }
};

/// Sorts the entries of a selection; owns them.
struct SelectionLists {
    std::int64_t chunk, chunks;
    Scratch entries;
    SelectionLists(const TreeShape& n, const TreeBackwardScratch& room,
                   const std::int32_t* selection, const std::int32_t* key_begin, Stream stream);
    QueryLists view(const TreeShape& n) const {
        return {entries.as<std::uint32_t>(), n.levels, chunks, chunk, n.slots};
    }
};

}  // namespace stoa::cuda
