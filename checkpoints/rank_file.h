#pragma once
// What one rank puts on disk in a save, and the memory in which it waits for that.
#include <string>
#include <vector>

#include "checkpoints/checkpoint.h"
#include "checkpoints/courtesy.h"
#include "checkpoints/manifest.h"
#include "kernels/core/exec.h"

namespace stoa {

/// The shards that this rank writes; those without cells are left out.
std::vector<TensorShard> written_here(const std::vector<TensorShard>& shards, int tp_rank,
                                      int dp_rank);

/// Bytes of a snapshot of what this rank writes: its logical cells, each shard 64-byte aligned,
/// from 1 MiB on at a multiple of kDirectBytes.
std::int64_t snapshot_bytes(const std::vector<TensorShard>& shards, int tp_rank, int dp_rank);
/// Copies the cells of `mine` into `memory` of the host, and returns the same shards as views of
/// it. From a GPU to pinned memory, the copies are only given to the stream. errors:
/// CheckpointError where they do not fit
std::vector<TensorShard> take_snapshot(const std::vector<TensorShard>& mine,
                                       const TensorView& memory, Stream stream = {});

/// Writes `mine` to <dir>/rank-NNNN.h5, synced. `read_back`: compares what the device holds.
/// With `courtesy` it leaves the core to others, where they want it. errors: CheckpointError
RankTable write_rank_file(const std::string& dir, const std::vector<TensorShard>& mine, int rank,
                          bool read_back, Courtesy* courtesy = nullptr);
/// Writes <dir>/state.h5, the view of the rank files, synced.     errors: CheckpointError
CheckpointFile write_view(const std::string& dir, const std::vector<StoredTensor>& tensors);

}  // namespace stoa
