#pragma once
// What the supervisor leaves in the run directory: lines of events.jsonl (beside those of rank 0),
// and state.json, replaced as a whole.
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "launcher/fault_policy.h"
#include "launcher/topology.h"

namespace stoa {

/// state.json
struct RunStatus {
    std::string state = "START";  // LAUNCH RUN DRAIN FAILED BACKOFF WAIT_HOSTS DONE PREEMPTED
                                  // STOPPED GAVE_UP
    int generation = -1, ranks = 0, restarts = 0;
    std::int64_t step = 0;
    std::vector<Host> hosts;
    int exit_code = -1;      // -1: not over
    std::string fault;       // the last one, one line
    std::string shared_dir;  // in /dev/shm, of this generation
};

void write_status(const std::string& run_dir, const RunStatus& status);
/// generation -1 where there is none, or none that can be read
RunStatus read_status(const std::string& run_dir);

/// One line; numbers stay numbers. Never throws: a full disk must not stop a supervisor.
struct EventField {
    std::string key, text;
    bool is_number = false;
};
void write_supervisor_event(const std::string& run_dir, const std::string& event, std::int64_t step,
                            const std::vector<EventField>& fields);
std::vector<EventField> fault_fields(const Fault& fault, int generation);

/// Steps of the committed checkpoints, ascending.
std::vector<std::int64_t> checkpoint_steps(const std::string& run_dir);

}  // namespace stoa
