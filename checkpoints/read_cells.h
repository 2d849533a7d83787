#pragma once
#include <functional>

#include "checkpoints/file_io.h"
#include "checkpoints/manifest.h"

namespace stoa {

/// Streams the stored cells of one shard in blocks of whole rows (or parts of one long row) through
/// `take(row, col, cells)`: `cells` starts at global (row, col) and runs along whole shard rows
/// when it is longer than one. The hash is checked over exactly the bytes handed out. errors:
/// CheckpointError after the last block when the hash differs
void read_shard(const std::string& dir, const StoredTensor& t, const StoredShard& s,
                const std::function<void(std::int64_t row, std::int64_t col, Bytes cells)>& take);

/// XXH3-128 of the whole logical tensor, row-major, whatever mesh wrote it.
std::string hash_logical_tensor(const std::string& dir, const StoredTensor& t);

}  // namespace stoa
