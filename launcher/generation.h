#pragma once
// One generation of a job: one mpirun (or srun) and its ranks, from start to the last process gone.
#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "launcher/fault_policy.h"
#include "launcher/topology.h"

namespace stoa {

using SteadyTime = std::chrono::steady_clock::time_point;

/// What the user, the terminal or the scheduler has asked for so far.
struct StopState {
    int requests = 0;                         // of any kind
    int urgent = 0;                           // INT and TERM: the second one ends the ranks at once
    bool interrupted = false;                 // by Ctrl-C
    SteadyTime deadline = SteadyTime::max();  // of the save
    double term_grace_s = 0.0;                // after the first INT or TERM; 0: no deadline
    bool asked() const { return requests > 0; }
    /// The code of a run that has left as asked.
    int code() const;
};

/// Blocks the signals while it lives and hands them out through a descriptor, so that none is lost.
class SignalQueue {
public:
    SignalQueue();
    ~SignalQueue();
    SignalQueue(const SignalQueue&) = delete;
    SignalQueue& operator=(const SignalQueue&) = delete;
    int fd() const { return fd_; }
    /// What has come since; stop requests go into `stop`. True where there was one.
    bool take(StopState& stop);

private:
    int fd_ = -1;
};

struct GenerationPlan {
    int number = 0;
    std::vector<Host> placed;
    std::vector<std::string> command, environment;  // without what names this generation
    std::string shared_dir;                         // in /dev/shm: boards, MPI's segments and files
    std::string run_dir;
    std::string token;
    Limits limits;
    double fence_s = 10.0;
};

struct GenerationResult {
    GenerationEnd end;
    bool at_once = false;        // ended because it was asked for, nothing was saved
    bool past_deadline = false;  // asked to save, and it took too long
    std::int64_t step = 0;
};

struct GenerationCalls {
    std::function<void(std::int64_t step)> tick;  // about every second
    /// Once, as soon as it is clear why the generation ends; before what is left of it is ended.
    std::function<void(const GenerationEnd&)> ended;
};

/// Starts it, waits for its end, and leaves no process and no file of it on this host; on others
/// once they have said goodbye or are past their fence.
/// errors: DeviceError when it cannot be started
GenerationResult run_generation(const GenerationPlan& plan, SignalQueue& signals, StopState& stop,
                                const GenerationCalls& calls);

/// Sleeps, but not through a stop request. True when there was none.
bool wait_seconds(double seconds, SignalQueue& signals, StopState& stop,
                  const std::function<void()>& tick);

/// Ends every process of this host that belongs to the run (its parent may be long dead), and waits
/// until it is gone. Returns how many there were.
int end_processes_of(const std::string& run_dir);

}  // namespace stoa
