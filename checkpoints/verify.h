#pragma once
// The checks that stand between a file on disk and anything that believes it.
#include "checkpoints/checkpoint.h"
#include "checkpoints/manifest.h"

namespace stoa {

/// errors: CheckpointError naming the file
void require_size(const std::string& dir, const CheckpointFile& f);
void require_hash(const std::string& dir, const CheckpointFile& f);
/// The manifest's own hash, or "" when it cannot be read.
std::string manifest_hash(const std::string& dir);
/// Two hosts may see two different directories under one path.
/// errors: CheckpointError when this rank's manifest is not rank 0's
void require_same_manifest(const std::string& dir, const std::string& hash_on_first,
                           const Manifest& m);
/// Shards that name cells inside their tensor and their view, each name once.
/// errors: ShapeError naming the tensor
void require_shards(const std::vector<TensorShard>& shards);

/// One line per file of a checkpoint: "" or why it does not verify.
struct FileVerdict {
    std::string name;
    std::int64_t bytes = 0;
    std::string problem;
};
std::vector<FileVerdict> judge_files(const std::string& dir);

}  // namespace stoa
