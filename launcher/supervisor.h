#pragma once
// `stoa launch`: starts the ranks, watches them, finds the first cause when they end, and starts
// them again from the newest checkpoint. Not an MPI program: a job that dies cannot take it along.
#include <string>
#include <vector>

#include "configs/run_config.h"
#include "launcher/fault_policy.h"
#include "launcher/topology.h"

namespace stoa {

struct LaunchOptions {
    RunConfig config;                // as loaded; the ranks resolve it for their number
    std::vector<std::string> words;  // CONFIG [key=value ...] for the ranks
    int ranks = 1;
    std::vector<Host> hosts;  // all there are, spares included; one: this machine
    bool one_machine = true;  // no hostfile, no allocation
    bool srun = false;        // instead of mpirun
    bool fresh = false;       // first start only
    bool allow_tp_across = false;
    int min_ranks = 0;  // 0: never fewer than `ranks`
    RestartPolicy restarts;
    double term_grace_s = 0.0;   // 0: a stop may take as long as it takes
    double stop_before_s = 0.0;  // the end of a SLURM job; 0: not
    double fence_s = 10.0;
    std::string limits;  // --limit, for the monitor and the ranks
    int keepalive_s = 10, keepalive_interval_s = 3, keepalive_probes = 7;
    std::string interface, rsh_agent;
    std::vector<std::string> mpirun_args;
    std::string typed;  // what resumes the run, for people
};

/// The command of one generation; `hostfile` empty on one machine.
std::vector<std::string> worker_command(const LaunchOptions& options,
                                        const std::vector<Host>& placed,
                                        const std::string& hostfile);

/// Of the folders in shared memory: one per user, run directory and generation on every host, so
/// that a later supervisor finds what is left. `run_dir` absolute, without links.
std::string shared_prefix(const std::string& run_dir);

/// Runs the job to its end. Returns the exit code of `stoa launch`.
/// errors: ConfigError (another job in the run directory, hosts that differ), DataError (run
/// directory), DeviceError (no mpirun, host not reached): before anything was started
int supervise(const LaunchOptions& options);

}  // namespace stoa
