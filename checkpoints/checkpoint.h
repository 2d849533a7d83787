#pragma once
// Named tensors and counters on disk, whole or not at all, and back on any mesh.
//
//   <run>/ckpt/step-000000200/rank-0000.h5 ...   one file per rank that has cells of its own
//                             state.h5           a virtual view: one logical dataset per tensor
//                             with
//                                                its global shape (h5dump, h5py)
//                             manifest.json      written last: counters, tensor table, hashes
//   <run>/LATEST                                 "ckpt/step-000000200", a hint for people and tools
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "kernels/core/error.h"
#include "kernels/core/tensor_view.h"
#include "parallel/mesh.h"

namespace stoa {

/// The part of a logical tensor that one rank holds: rows and columns of a matrix of global shape
/// (rows, cols); a vector is a (1, n) matrix. `view` is the local memory, (local rows, local cols),
/// of which only [0, row_count) x [0, col_count) are logical cells (the rest is padding).
struct TensorShard {
    std::string name;    // "model.layers.0.mlp.up_proj.weight", "optimizer.m/..." ...
    Shape global_shape;  // rank 1 or 2
    TensorView view;
    std::int64_t row_begin = 0, row_count = 0, col_begin = 0, col_count = 0;
    bool replicated = false;  // every tp rank holds all of it: tp rank 0 writes
    bool dp_part = false;     // each dp rank holds other rows, and writes them; else dp rank 0 does
};

/// Everything else a run needs to go on exactly; kept as strings so that this room knows no layers.
struct CheckpointMeta {
    std::int64_t step = 0;
    std::map<std::string, std::string> counters;  // "curriculum.tokens" -> "123", ...
    std::string resolved_config;
    std::string config_hash;  // of what must not change on resume
    std::string tokenizer_hash;
};

/// Writes one checkpoint. Every rank calls it with its shards and writes those that are its own,
/// then all agree, then rank 0 writes the manifest, syncs and renames the directory into
/// place. A failure on any rank leaves the earlier checkpoints as they were and removes the
/// temporary files. comm: agree(world) three times, a broadcast(world) per rank errors: an
/// Error with ExitCode::checkpoint on all ranks alike; ShapeError for a bad shard returns the
/// directory
std::string save_checkpoint(const std::string& run_dir, const CheckpointMeta& meta,
                            const std::vector<TensorShard>& shards, const Mesh& mesh);

constexpr std::int64_t kAnyStep = std::numeric_limits<std::int64_t>::max();

/// The newest checkpoint of `run_dir`, of at most `at_most` steps, that verifies on all ranks
/// (manifest hash, file sizes and hashes), or "" when there is none at all. A damaged one is
/// skipped with a warning that names file and cause. comm: broadcast(world) and agree(world), once
/// and once per candidate errors: CheckpointError when there are checkpoints but none verifies
std::string find_checkpoint(const std::string& run_dir, const Mesh& mesh,
                            std::int64_t at_most = kAnyStep);

/// Whether the shards must name every tensor of the checkpoint (a resumed run) or may leave some
/// out (a reader of the weights alone).
enum class LoadTensors { all, subset };

/// Fills the logical cells of the shards from a checkpoint made on any mesh: each rank reads the
/// stored shards that overlap its own and checks their hashes over the very bytes it copied. HDF5
/// is not involved. On an error the contents of the shards are undefined. comm: broadcast(world),
/// agree(world) errors: CheckpointError (missing or extra tensor, other shape or dtype, damaged)
CheckpointMeta load_checkpoint(const std::string& dir, const std::vector<TensorShard>& shards,
                               const Mesh& mesh, LoadTensors which = LoadTensors::all);

/// Deletes all but the newest `keep` checkpoints; nothing goes before a newer one has been read
/// back whole, so the newest good one always stays. Rank 0 only; no comm. errors: CheckpointError
/// when the directory cannot be read or changed
void prune_checkpoints(const std::string& run_dir, std::int64_t keep);

// For `stoa ckpt ls|verify|show` and for tools without MPI.
struct CheckpointFile {
    std::string name;
    std::int64_t bytes = 0;
    std::string xxh3;
};
struct CheckpointTensor {
    std::string name;
    Shape global_shape;
    DType dtype = DType::fp32;
    std::string xxh3;  // of the whole logical tensor, row-major
};
struct CheckpointInfo {
    std::string dir;
    CheckpointMeta meta;
    std::int64_t tp = 1;
    std::vector<CheckpointFile> files;
    std::vector<CheckpointTensor> tensors;
};
/// All committed checkpoints of a run directory, oldest first.
std::vector<std::string> list_checkpoints(const std::string& run_dir);
/// Reads and checks the manifest (its own hash). A tensor's hash comes from the manifest when one
/// shard holds all of it; that of a split tensor is computed from the files, which are read but not
/// judged here (verify_checkpoint does that). errors: CheckpointError
CheckpointInfo read_checkpoint_info(const std::string& dir);
/// Checks sizes and hashes of every file against the manifest before HDF5 opens any.
/// errors: CheckpointError naming file, expected and actual
void verify_checkpoint(const std::string& dir);

}  // namespace stoa
