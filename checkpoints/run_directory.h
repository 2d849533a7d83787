#pragma once
// The names inside <run>/ckpt and the moves between them. A checkpoint is committed by one rename;
// whatever a crash leaves behind is either committed, or replaceable junk, or the set-aside
// predecessor.
//
//   step-000000200          committed
//   step-000000200.bad      damaged: kept for whoever wants to look, never loaded
//   step-000000200.foreign  of another run, likewise
//   .step-000000200.g3.tmp  being written by generation 3: junk once its process is gone
//   .step-000000200.old     set aside for the moment in which a newer save of the step moves in
//   .step-000000200.del     being deleted
//
// <run>/run_id and <run>/generation say whose directory it is.
#include <cstdint>
#include <string>
#include <vector>

#include "checkpoints/checkpoint.h"

namespace stoa {

std::string checkpoint_root(const std::string& run_dir);                   // <run>/ckpt
std::string committed_dir(const std::string& run_dir, std::int64_t step);  // .../step-000000200
std::string temporary_dir(const std::string& run_dir, std::int64_t step,
                          std::int64_t generation = 0);  // .../.step-000000200.g0.tmp
std::string set_aside_dir(const std::string& run_dir,
                          std::int64_t step);  // .../.step-000000200.old
/// The step that a name inside ckpt is of, whatever its kind; -1 for other names.
std::int64_t step_of_name(const std::string& name);

/// Puts a set-aside checkpoint back when its successor never arrived, and deletes leftovers: of
/// deletions, and of saves of this generation and those before. A temporary directory is renamed
/// before it is emptied, so an older generation's late commit finds it whole or not at all.
/// errors: CheckpointError
void clean_run_directory(const std::string& run_dir, std::int64_t generation = 0);
/// Moves the complete temporary directory of `step` into place; from the first rename on, either
/// the new or the set-aside directory is there. errors: CheckpointError; fenced
void commit_directory(const std::string& run_dir, std::int64_t step, std::int64_t generation = 0);
/// Deletes a directory so that a crash half-way never leaves a damaged one under its committed
/// name.
void delete_checkpoint(const std::string& dir);
/// Deletes without complaint; a failure is a warning.
void remove_quietly(const std::string& path);
/// <run>/LATEST; only a hint, so a failure is a warning.
void write_latest(const std::string& run_dir, std::int64_t step);

/// Refused checkpoints step out of the way: `.bad` or `.foreign` behind their name, and a number
/// where that is taken. Returns the new path.     errors: CheckpointError
std::string rename_refused(const std::string& dir, const std::string& suffix);
/// All of a run's `.bad` and `.foreign`, oldest first.
std::vector<std::string> list_refused(const std::string& run_dir);

}  // namespace stoa
