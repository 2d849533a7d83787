#pragma once
// Whole logical tensors of checkpoints on disk, for `stoa ckpt diff|average|adopt`: no MPI, any
// mesh.
#include <string>
#include <vector>

#include "checkpoints/checkpoint.h"
#include "checkpoints/run_directory.h"

namespace stoa {

struct TensorDifference {
    std::string name;
    std::string only_in;         // the directory, where the other has none
    std::string form_a, form_b;  // "(13, 8) fp32", where they differ
    std::string xxh3_a, xxh3_b;  // of the logical tensor; equal hashes need no reading of values
    std::int64_t cells = 0, different = 0;
    double max_abs = 0.0;  // of finite differences; of 8-bit codes and integers: their values
    std::int64_t not_finite = 0;  // differing cells of which one is Inf or NaN
    bool same() const { return only_in.empty() && form_a == form_b && xxh3_a == xxh3_b; }
};
/// One entry per tensor name of either.     errors: CheckpointError
std::vector<TensorDifference> diff_checkpoints(const std::string& a, const std::string& b);

/// Writes a checkpoint whose weights are the mean of those of `dirs` (in float64, rounded once to
/// nearest) and whose moments, counters and configuration are those of the last of them, as the
/// first of the new run directory `out`. Returns its directory.
/// errors: CheckpointError: fewer than two, damaged, other tensors; `out` exists and is not empty
std::string average_checkpoints(const std::vector<std::string>& dirs, const std::string& out);

/// Copies a checkpoint into a run as one of its own: the manifest gets the run's id, and the
/// counter "adopted_from". Returns its directory. errors: CheckpointError: damaged, or the run has
/// that step
std::string adopt_checkpoint(const std::string& dir, const std::string& run_dir);

}  // namespace stoa
