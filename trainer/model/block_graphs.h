#pragma once
// The blocks of a training step on a GPU, where the arena stands still: a block's pass starts the
// same kernels on the same memory each time, so it is recorded once and started in one call.
#include <compare>
#include <cstdint>
#include <functional>
#include <map>

#include "kernels/core/exec.h"
#include "kernels/cuda/graph.h"
#include "parallel/mesh.h"

namespace stoa {

struct TrainState;

/// One pass of one block. A backward recomputes first, and adds to the gradients or, in a shard's
/// first micro-batch, overwrites them.
struct BlockPass {
    std::int64_t layer = 0;
    bool backward = false, add_grads = false;
    auto operator<=>(const BlockPass&) const = default;
};

/// Of one shape of micro-batches: with another they begin anew.
struct BlockGraphs {
    struct Entry {
        bool seen = false;
        cuda::Graph graph;
    };
    std::int64_t micro_batch = 0, seq_len = 0;
    std::map<BlockPass, Entry> passes;
};

/// Runs `work`, which is `pass` of the micro-batch at hand: the first time as it is, which makes
/// what libraries make once; the second time it is recorded; from then on its graph runs. Always as
/// it is where a pass is not the same each time, or not the device's alone:
///   on the CPU; with STOA_GRAPHS=off in the environment
///   outside training (evaluation has rows of its own)
///   in steps that sample for the precision policy
///   in layers with dense rows, which the host draws
///   with tensor parallel, whose sums the host takes part in
/// What else changes lies in device memory: tokens, targets, documents, and what the rounding of
/// bf16 gradients draws from.     comm: that of `work`
void run_block(TrainState& s, const BlockPass& pass, const Mesh& mesh, const Exec& exec,
               const std::function<void()>& work);

}  // namespace stoa
