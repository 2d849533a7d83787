#include "kernels/cuda/packs.h"
#include "kernels/cuda/transpose_codes.h"

namespace stoa::cuda {
namespace {

constexpr int kTile = 128, kBytes = 4, kTileWords = kTile / kBytes;
using Bytes = Pack<std::uint8_t, kBytes>;

/// Word q of row c of the transposed tile. Threads that write one q lie 4 rows apart, those that
/// read one row take all its words: either way the 32 of a warp meet 32 banks.
STOA_DEVICE int word_at(int c, int q) { return c * kTileWords + (q ^ c / kBytes); }

/// A tile of 128 x 128 a block. A thread turns 4 x 4 bytes in its registers; rows are read and
/// written as 128 bytes by a warp.
STOA_KERNEL void transpose_kernel(std::uint8_t* out, const std::uint8_t* x, std::int64_t rows,
                                  std::int64_t cols) {
    SharedMemory memory;
    const Shared<std::uint32_t> tile = memory.array<std::uint32_t>(kTile * kTileWords);
    const std::int64_t tiles = (cols + kTile - 1) / kTile;
    const std::int64_t row = block_index() / tiles * kTile, col = block_index() % tiles * kTile;
    const int warp = thread_index() / kWarp, lane = thread_index() % kWarp;
    for (int q = warp; q < kTileWords; q += block_threads() / kWarp) {
        Bytes in[kBytes] = {};
        for (int i = 0; i < kBytes; ++i) {
            const std::int64_t r = row + q * kBytes + i;
            if (r < rows) in[i] = load_pack<kBytes>(x + r * cols, col + lane * kBytes, cols);
        }
        for (int c = 0; c < kBytes; ++c) {
            Bytes turned;
            for (int i = 0; i < kBytes; ++i)
                turned.v[i] = in[i].v[c];
            std::uint32_t word = 0;
            std::memcpy(&word, &turned, sizeof word);
            tile.write(word_at(lane * kBytes + c, q), word);
        }
    }
    sync_block();
    for (int c = warp; c < kTile; c += block_threads() / kWarp) {
        if (col + c >= cols) break;
        const std::uint32_t word = tile.read(word_at(c, lane));
        Bytes bytes;
        std::memcpy(&bytes, &word, sizeof word);
        store_pack(out + (col + c) * rows, row + lane * kBytes, rows, bytes);
    }
}

}  // namespace

void transpose_codes(std::byte* out, const std::byte* x, std::int64_t rows, std::int64_t cols,
                     Stream stream) {
    launch({.name = "transpose_codes",
            .blocks = blocks_for(rows, kTile) * blocks_for(cols, kTile),
            .threads = kThreads,
            .stream = stream,
            .shared_bytes = kTile * kTile},
           transpose_kernel, reinterpret_cast<std::uint8_t*>(out),
           reinterpret_cast<const std::uint8_t*>(x), rows, cols);
}

}  // namespace stoa::cuda
