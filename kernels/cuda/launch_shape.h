#pragma once
#include "kernels/core/exec.h"

namespace stoa::cuda {

constexpr int kWarp = 32;

/// One kernel launch; blocks and threads are counted along one axis. `name` is for errors.
struct Launch {
    const char* name;
    std::int64_t blocks;
    int threads;  // of a block: a multiple of 32, at most 1024
    Stream stream{};
    int shared_bytes = 0;  // of a block, at most 48 KiB
};
/// Blocks of `threads` for `count` threads or more.
constexpr std::int64_t blocks_for(std::int64_t count, int threads) {
    return (count + threads - 1) / threads;
}

}  // namespace stoa::cuda
