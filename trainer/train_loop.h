#pragma once
#include <string>

#include "checkpoints/checkpoint.h"
#include "checkpoints/run_identity.h"
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
    RunIdentity identity;         // whose run directory it is, and which start of the run
    GpuSetup gpu;
    std::int64_t planned_bytes = 0;  // of this rank's device: what its peak is held against
    std::vector<RefusedCheckpoint> refused;  // met by resume_run and not yet in the records
};

/// Sweeps what dead saves have left, and reads the newest good checkpoint of the run directory, of
/// at most `at_most` steps, into `run`, if there is one. Damaged and foreign ones are renamed and end up in run.refused.
/// comm: agree(world)
/// errors: CheckpointError; ConfigError when the configuration no longer fits the checkpoint (names
/// the
///         key, the saved and the new value)
bool resume_run(TrainRun& run, std::int64_t at_most = kAnyStep);

/// Steps until the curriculum ends or a rank is asked to stop; evaluates, saves and reports on the
/// way. comm: train_step per step; agree(world) around local work returns ok, preempted (75) or
/// interrupted (130) errors: on all ranks alike: DataError, CheckpointError, DivergedError
ExitCode train_loop(TrainRun& run);

}  // namespace stoa
