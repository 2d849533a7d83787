#pragma once
// What the HDF5 files of a checkpoint look like: names, types, attributes, and where the data goes.
#include <vector>

#include "checkpoints/checkpoint.h"
#include "checkpoints/h5_image.h"
#include "checkpoints/manifest.h"

namespace stoa {

/// HDF5's metadata for a rank file, and the offset at which each shard's cells belong.
struct RankFileLayout {
    H5Image image;
    std::vector<std::int64_t> offsets;  // one per shard
};
/// One contiguous dataset per shard, allocated and not written. errors: CheckpointError naming the
/// tensor
RankFileLayout lay_out_rank_file(const std::vector<const TensorShard*>& shards);

/// state.h5: one virtual dataset per tensor, with its global shape, over the rank files (relative
/// names).
H5Image lay_out_view(const std::vector<StoredTensor>& tensors);

}  // namespace stoa
