#pragma once
// What an end of a generation means and what follows from it: pure functions of what was seen.
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/core/error.h"
#include "parallel/exit_record.h"
#include "parallel/monitor.h"

namespace stoa {

enum class Cause {
    config,
    data,
    memory,
    hardware,
    communication,
    checkpoint,
    diverged,
    preempted,
    crash,
    hang,
    lost_host
};
const char* cause_name(Cause cause);

/// The first cause of an end: one per fault, whatever it brought down after itself.
struct Fault {
    Cause cause = Cause::crash;
    std::string kind;  // "SIGKILL", "exit without closing MPI", "bad_alloc", "silent_rank", ...
    int code = 0;      // the exit code that belongs to it
    int rank = -1;     // -1: no single one
    std::string host;
    int pid = 0;
    std::string phase;  // "" where nobody knows
    std::int64_t step = -1;
    std::string site, waiting;
    std::string text;  // one line: who, what, when
    double noticed_ms = 0.0;
};

/// A process that was there and has gone without goodbye.
struct DeadRank {
    int rank = -1, pid = 0;
    std::string host, phase;
    std::int64_t step = -1;
    double time = 0.0;  // seconds since 1970
};

/// What the supervisor has seen when a generation is over.
struct GenerationEnd {
    int exit_code = 0;                   // of mpirun
    bool runner_killed = false;          // mpirun itself ended by a signal, exit_code is 128 + n
    std::vector<ExitRecord> records;     // oldest first
    std::optional<DeadRank> first_dead;  // before all others
    int verdict_pid = 0;                 // of the rank that the verdict names
    std::optional<Verdict> verdict;      // then the generation was ended by the supervisor
    std::string silent_host;             // another one, not heard of for a while when it ended
    bool ranks_came = false;             // at least one has said hello or was seen
    std::int64_t oom_kills = 0;          // by the kernel, while it ran
    std::string runner = "mpirun";
};

/// The fault of an end, or nothing where it is none: 0, or 75 and 130 (asked to stop, and saved).
std::optional<Fault> classify(const GenerationEnd& end);

/// Seconds before the n-th restart without progress, n = 0, 1, ...: 0, 1, 2, 4 .. 60.
double backoff_seconds(int restarts);

/// Whether another start can end differently: not for a wrong configuration, wrong data, a plan
/// that does not fit, a run that diverged, or no usable checkpoint.
bool worth_restarting(const Fault& fault);

struct RestartPolicy {
    int max_restarts = 10;  // without a newer checkpoint in between
};

/// What a run has behind it.
struct RestartHistory {
    int restarts = 0;  // since the last progress
    int all_restarts = 0;
    std::int64_t best_step = -1;  // of the newest checkpoint there has been
    std::string last_fault;       // kind and step
    int same_fault = 0;           // how often in a row
};

struct RestartDecision {
    enum class Action { restart, stop, give_up };
    Action action = Action::restart;
    double delay_s = 0.0;
    std::optional<std::int64_t> resume_at_most;  // an older checkpoint than the newest
    int exit_code = 0;                           // of the supervisor, where it does not restart
    std::string why;                             // why not, or why from an older one
};

/// comm: none. `checkpoints`: steps of the committed ones, ascending. Progress is a newer
/// checkpoint. The same fault at the same step twice ("poison step"): one checkpoint earlier, and
/// then never again.
RestartDecision decide_restart(RestartHistory& history, const Fault& fault,
                               const std::vector<std::int64_t>& checkpoints,
                               const RestartPolicy& policy);

}  // namespace stoa
