#pragma once
// The verbs of `stoa ckpt` that compare checkpoints or change a run directory.
#include <string>
#include <vector>

#include "launcher/commands.h"

namespace stoa {

/// The checkpoints that a path names: itself, or all of a run directory, oldest first.
/// errors: CheckpointError when there is none
std::vector<std::string> checkpoints_at(const std::string& path);

int ckpt_diff(const Args& args);     // stoa ckpt diff A B
int ckpt_prune(const Args& args);    // stoa ckpt prune RUN [--keep RULE] [--bad] [--yes]
int ckpt_average(const Args& args);  // stoa ckpt average A B ... --out RUN
int ckpt_adopt(const Args& args);    // stoa ckpt adopt CHECKPOINT RUN

}  // namespace stoa
