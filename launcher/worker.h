#pragma once
#include <string>
#include <vector>

#include "configs/run_config.h"
#include "kernels/core/error.h"
#include "launcher/watch.h"
#include "parallel/mpi_session.h"

namespace stoa {

struct WorkerOptions {
    std::string config_path;
    std::vector<std::string> overrides;
    bool fresh = false;  // refuse to resume
    bool print_memory_plan = false;
    std::string resume_command;  // what the user typed
};

/// Threads of a rank: parallel.device, or the cores that it may run on, shared among the ranks of
/// this machine.
int threads_of(const RunConfig& config, int ranks_here);

/// One rank of a training run, from configuration to exit code:
/// load_run_config -> make_mesh -> plan_memory -> make_train_state -> load_checkpoint ->
/// train_loop. comm: agree(world) around every phase that can fail locally errors: on all ranks
/// alike
ExitCode run_worker(const WorkerOptions& options, const MpiSession& session, Watch& watch);

}  // namespace stoa
