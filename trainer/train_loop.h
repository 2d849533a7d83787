#pragma once
#include <string>

#include "data/curriculum.h"
#include "data/token_loader.h"
#include "data/tokenizer/tokenizer.h"
#include "parallel/mesh.h"
#include "trainer/model/transformer.h"

namespace stoa {

/// What a run is made of. run_worker builds it, train_loop drives it.
struct TrainRun {
    const Tokenizer& tokenizer;
    const TokenLoader& loader;
    const Mesh& mesh;
    Exec exec;
    TrainState state;
    CurriculumState curriculum;
    std::string resolved_config;  // goes into every checkpoint
    std::string resume_command;   // printed at the end
};

/// Reads the newest good checkpoint of the run directory, of at most `at_most` steps, into `run`,
/// if there is one. comm: agree(world) errors: CheckpointError; ConfigError when the configuration
/// no longer fits the checkpoint (names the
///         key, the saved and the new value)
bool resume_run(TrainRun& run, std::int64_t at_most = kAnyStep);

/// Steps until the curriculum ends or a rank is asked to stop; evaluates, saves and reports on the
/// way. comm: train_step per step; agree(world) around local work returns ok, preempted (75) or
/// interrupted (130) errors: on all ranks alike: DataError, CheckpointError, DivergedError
ExitCode train_loop(TrainRun& run);

}  // namespace stoa
