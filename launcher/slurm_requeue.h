#pragma once
// What a supervisor inside a SLURM job has to know: which job it is, when the job ends, and how the
// job gets into the queue again. All of it through SLURM's own programs (squeue, scontrol).
#include <chrono>
#include <optional>
#include <string>

#include "launcher/tool.h"

namespace stoa {

/// The job this process is in.
struct SlurmJob {
    std::string id;    // "123", a task of an array "120_3": what squeue and scontrol take
    int restarts = 0;  // how often it has been requeued
    std::string nodes;
};
/// From the environment; nothing outside a job.
std::optional<SlurmJob> slurm_job();

/// squeue's %L, "[days-][[hours:]minutes:]seconds": seconds; infinity for UNLIMITED; nothing where
/// it is no time.
std::optional<double> parse_time_left(const std::string& text);

/// A time limit as sbatch takes it ("90", "24:00:00", "1-12"): seconds; nothing where it is none.
std::optional<double> parse_time_limit(const std::string& text);

/// The job's end by its time limit, watched by ourselves: SLURM's signal may never come. From
/// $SLURM_JOB_END_TIME where SLURM sets it and from squeue, which is asked from time to time (a
/// limit may be changed) and once more before the answer is yes.
class SlurmDeadline {
public:
    SlurmDeadline() = default;  // never reached
    SlurmDeadline(const SlurmJob& job, double margin_s);
    /// Whether the job ends in less than `margin_s`. Never waits; to be called about once a second.
    bool reached();
    /// As far as known; infinity where it is not.
    double seconds_left() const;

private:
    using Clock = std::chrono::steady_clock;
    void ask(Clock::time_point now);
    std::string job_;
    double margin_s_ = 0.0;
    std::optional<Clock::time_point> end_, told_;  // told_: when squeue last answered
    std::optional<Tool> question_;
    Clock::time_point asked_{}, ask_next_{};
    int silent_ = 0;  // questions without an answer in a row
};

struct RequeueResult {
    bool requeued = false;
    std::string text;  // one line for people
};
/// `scontrol requeue` of a job that SLURM takes for running: a job that is being cancelled,
/// requeued or ended by SLURM is left alone. A few tries, half a minute at most. SLURM then sends
/// SIGTERM to every process of the job, this one included: the caller ignores it from here on.
RequeueResult requeue_slurm_job(const SlurmJob& job);

/// A line of <run>/events.jsonl: {"event": event, "source": "supervisor", "job", "restart",
/// "nodes", "text"}. Makes the run directory where it is not there yet; never throws.
void write_slurm_event(const std::string& run_dir, const std::string& event, const SlurmJob& job,
                       const std::string& text = "");

}  // namespace stoa
