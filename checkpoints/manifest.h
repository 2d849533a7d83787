#pragma once
// manifest.json: what a checkpoint holds, where each byte of it lies, and the hashes that say so.
// The format is described in docs/checkpoint-format.md.
#include <string>
#include <vector>

#include "checkpoints/checkpoint.h"

namespace stoa {

constexpr const char* kManifestName = "manifest.json";
constexpr const char* kViewName = "state.h5";
constexpr const char* kFormatName = "stoa-checkpoint";
constexpr std::int64_t kFormatVersion = 1;

/// One rectangle of a logical tensor in one file; the cells lie row-major and dense at `offset`.
struct StoredShard {
    std::string file;
    std::int64_t offset = 0;
    std::int64_t row_begin = 0, row_count = 0, col_begin = 0, col_count = 0;
    std::string xxh3;  // of its bytes
    std::int64_t numel() const { return row_count * col_count; }
};
struct StoredTensor {
    std::string name;
    Shape global_shape;  // rank 1 or 2
    DType dtype = DType::fp32;
    std::vector<StoredShard> shards;
    std::int64_t rows() const { return global_shape.rank == 2 ? global_shape[0] : 1; }
    std::int64_t cols() const { return global_shape[global_shape.rank - 1]; }
};
struct Manifest {
    CheckpointMeta meta;
    std::int64_t tp = 1;
    std::vector<CheckpointFile> files;
    std::vector<StoredTensor> tensors;
    std::string xxh3;  // the manifest's own
};

std::string format_manifest(const Manifest& m);
/// errors: CheckpointError (`where` in it) when the text is not a whole, unchanged manifest
Manifest parse_manifest(const std::string& text, const std::string& where);
Manifest read_manifest(const std::string& dir);

/// What one writer tells rank 0 about its file.
struct RankTable {
    CheckpointFile file;
    std::vector<StoredTensor> tensors;
    double write_s = 0.0, verify_s = 0.0;  // for the report of the save, not in the manifest
};
std::string format_rank_table(const RankTable& t);
RankTable parse_rank_table(const std::string& text);
/// The tensors of all files as one list. errors: CheckpointError naming the tensor whose shards
/// disagree
std::vector<StoredTensor> merge_tensors(const std::vector<RankTable>& tables);
/// errors: CheckpointError unless the shards cover every cell of the tensor exactly once
void require_tiles(const StoredTensor& t, const std::string& where);

}  // namespace stoa
