#pragma once
// A TrainRun as named tensors and counters, and back.
#include <map>
#include <string>

#include "checkpoints/checkpoint.h"
#include "trainer/train_loop.h"

namespace stoa {

/// Counters: curriculum, optimizer step, and the identity of the run: the settings that may not
/// change between a checkpoint and its resume ("identity.model.d_model", ...).
CheckpointMeta checkpoint_meta(const TrainRun& run);

/// Throws ConfigError when an identity setting differs; the message names key, saved and new value.
void check_identity(const CheckpointMeta& saved, const CheckpointMeta& now, const std::string& dir);

/// Sums go on in the order that the checkpoint's run began with: its virtual sizes become those of
/// `config` where that gives none. Nothing where either is fast; a warning where the mesh cannot
/// keep that order and `config` says auto. errors: ConfigError where `config` gives other sizes, or
/// says elastic and its mesh cannot keep the order
void adopt_sums(const CheckpointMeta& saved, RunConfig& config, const std::string& dir);

/// errors: CheckpointError
PolicyState saved_policy(const CheckpointMeta& meta, const RunConfig& config);

/// The stage that a checkpoint's run was in, or ended with.     errors: CheckpointError
const StageConfig& saved_stage(const CheckpointMeta& meta, const RunConfig& config);

void restore_counters(const CheckpointMeta& meta, TrainRun& run);

}  // namespace stoa
