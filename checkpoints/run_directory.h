#pragma once
// The names inside <run>/ckpt and the moves between them. A checkpoint is committed by one rename;
// whatever a crash leaves behind is either committed, or replaceable junk, or the set-aside
// predecessor.
//
//   step-000000200        committed
//   .step-000000200.tmp   being written, or being deleted: junk once its process is gone
//   .step-000000200.old   set aside for the moment in which a newer save of the same step moves in
#include <cstdint>
#include <string>
#include <vector>

namespace stoa {

std::string checkpoint_root(const std::string& run_dir);                   // <run>/ckpt
std::string committed_dir(const std::string& run_dir, std::int64_t step);  // .../step-000000200
std::string temporary_dir(const std::string& run_dir,
                          std::int64_t step);  // .../.step-000000200.tmp
std::string set_aside_dir(const std::string& run_dir,
                          std::int64_t step);  // .../.step-000000200.old

/// Puts a set-aside checkpoint back when its successor never arrived, and deletes leftovers.
/// errors: CheckpointError
void clean_run_directory(const std::string& run_dir);
/// Moves the complete temporary directory of `step` into place; from the first rename on, either
/// the new or the set-aside directory is there. errors: CheckpointError
void commit_directory(const std::string& run_dir, std::int64_t step);
/// Deletes a directory so that a crash half-way never leaves a damaged one under its committed
/// name.
void delete_checkpoint(const std::string& dir);
/// Deletes without complaint; a failure is a warning.
void remove_quietly(const std::string& path);
/// <run>/LATEST; only a hint, so a failure is a warning.
void write_latest(const std::string& run_dir, std::int64_t step);

}  // namespace stoa
