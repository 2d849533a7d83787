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
#include "kernels/core/exec.h"
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
    std::string run_id;  // of the run that wrote it (run_identity.h); "": not told
};

/// Whether a rank writes this shard: of what several ranks hold, one does.
bool writes_shard(const TensorShard& s, int tp_rank, int dp_rank);

constexpr std::int64_t kAnyStep = std::numeric_limits<std::int64_t>::max();

/// Which checkpoints stay: the newest ones, and for ever those of steps that `every` divides.
struct KeepRule {
    std::int64_t newest = 0;       // 0: all
    std::int64_t every_steps = 0;  // 0: no milestones
};

struct SaveOptions {
    std::int64_t generation = 0;  // of the run (run_identity.h); part of the temporary's name
    KeepRule keep;                // applied after the commit
    /// Each rank reads its file back from the device before the commit; without it, pruning reads
    /// the whole checkpoint.
    bool read_back = false;
    bool courteous = false;  // the writing thread takes what the others leave (nice)
    std::function<void(const char*)> entered;  // "snapshot", "write", ..., for whoever watches
};

/// Writes one checkpoint and returns when it is committed: a CheckpointSaver (saver.h) that waits.
/// Every rank calls it with its shards and writes those that are its own. A failure on any rank
/// leaves the earlier checkpoints as they were and removes the temporary files.
/// comm: as CheckpointSaver
/// errors: an Error with ExitCode::checkpoint (or fenced) on all ranks alike. Returns the directory
std::string save_checkpoint(const std::string& run_dir, const CheckpointMeta& meta,
                            const std::vector<TensorShard>& shards, const Mesh& mesh,
                            const SaveOptions& options = {});

/// A checkpoint that was not taken, and why.
struct RefusedCheckpoint {
    enum class Why { damaged, foreign, unreadable } why = Why::damaged;
    std::string dir, reason;
};
struct FoundCheckpoint {
    std::string dir;  // "": there is none at all
    std::vector<RefusedCheckpoint> refused;
};
/// The newest checkpoint of `run_dir`, of at most `at_most` steps, that verifies on all ranks
/// (manifest hash, file sizes and hashes) and, where `run_id` is given, was written by that run.
/// Others are passed over with a warning that names file and cause. Nothing is changed. comm:
/// broadcast(world) and agree(world), once and once per candidate errors: CheckpointError when
/// there are checkpoints but none can be taken
FoundCheckpoint find_newest(const std::string& run_dir, const Mesh& mesh,
                            const std::string& run_id = "", std::int64_t at_most = kAnyStep);
/// Its directory alone.
std::string find_checkpoint(const std::string& run_dir, const Mesh& mesh,
                            std::int64_t at_most = kAnyStep);

/// Renames what is damaged to step-N.bad and what is of another run to step-N.foreign, so that it
/// is kept and in nobody's way; returns the new names, "" for what stays. Rank 0 only; no comm.
/// errors: CheckpointError
std::vector<std::string> set_aside(const std::vector<RefusedCheckpoint>& refused);

/// Whether the shards must name every tensor of the checkpoint (a resumed run) or may leave some
/// out (a reader of the weights alone).
enum class LoadTensors { all, subset };

/// Fills the logical cells of the shards from a checkpoint made on any mesh: each rank reads the
/// stored shards that overlap its own and checks their hashes over the very bytes it copied. HDF5
/// is not involved. On an error the contents of the shards are undefined. Shards on a GPU are
/// filled through the host, one at a time, in the order of `stream`. comm: broadcast(world),
/// agree(world) errors: CheckpointError (missing or extra tensor, other shape or dtype, damaged)
CheckpointMeta load_checkpoint(const std::string& dir, const std::vector<TensorShard>& shards,
                               const Mesh& mesh, LoadTensors which = LoadTensors::all,
                               Stream stream = {});

/// What the rule lets go, oldest first; nothing while no newer checkpoint has been read back whole,
/// so the newest good one always stays. `known_good`: one that needs no reading.
/// errors: CheckpointError when the directory cannot be read
std::vector<std::string> prunable(const std::string& run_dir, const KeepRule& keep,
                                  const std::string& known_good = "");
/// Deletes them and returns them. Rank 0 only; no comm. errors: CheckpointError
std::vector<std::string> prune_checkpoints(const std::string& run_dir, const KeepRule& keep,
                                           const std::string& known_good = "");

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
