#pragma once
// How a run is, from the files in its directory alone: nothing has to be running, and nothing is
// disturbed. Readable while the run writes: torn last lines are left out.
#include <cstdint>
#include <string>
#include <vector>

namespace stoa {

struct RunReport {
    std::string run_dir;
    // running, starting, restarting, saving, waiting for hosts, in the queue, finished, preempted,
    // interrupted, stopped, failed, gave up, dead (it says running, but its supervisor is gone),
    // silent (no step for long), not started
    std::string state, why;                  // why: one line, may be empty
    std::int64_t step = 0, total_steps = 0;  // 0: not known
    std::int64_t tokens = 0;
    std::string stage;
    double loss = 0.0;
    double tokens_per_s = 0.0, step_ms = 0.0;  // medians of the last steps
    double eta_s = -1.0;                       // -1: not known, or over
    double last_step_age_s = -1.0;
    std::int64_t checkpoint_step = -1;  // -1: none
    std::string checkpoint, checkpoint_time;
    int generation = -1, ranks = 0, restarts = 0;
    std::vector<std::string> hosts;
    std::string fault, fault_cause, fault_time;  // the last one
    std::int64_t fault_step = -1;
    std::string job;  // SLURM's number; "" outside
    int requeues = 0;
    std::string job_state, job_nodes, job_left, job_reason;  // from squeue; "" where it knows none
};

/// Whether it looks like one: a resolved configuration, records, a state or checkpoints.
bool is_run_dir(const std::string& path);

/// `now`: seconds since 1970.     errors: DataError when the directory cannot be read
RunReport read_run_report(const std::string& run_dir, double now);

}  // namespace stoa
