#pragma once
// The watch over one worker: its board, its control thread, and, on rank 0 of a job that nobody
// supervises, the monitor. docs/watchdog.md explains the whole.
#include <map>
#include <memory>
#include <string>

#include "parallel/communicator.h"

namespace stoa {

class Watch {
public:
    /// Before MPI starts: opens the board and, with $STOA_CONTROL, reports to the supervisor.
    Watch();
    ~Watch();
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

    /// Without a supervisor rank 0 becomes the monitor and all ranks report to it; nothing with
    /// STOA_WATCHDOG=off, or where a job is one rank.
    /// comm: broadcast(world)     errors: ConfigError where $STOA_LIMITS is wrong
    void begin(const Communicator& world);
    /// From here on verdicts go into this run's events.jsonl.
    void records_in(const std::string& run_dir);
    /// A line of the run's events.jsonl, from the rank that calls it.
    void record(const std::string& event, std::int64_t step,
                const std::map<std::string, std::string>& fields);
    /// Something for the supervisor ("committed"); nothing without one.
    void event(const std::string& name, std::int64_t step,
               const std::map<std::string, std::string>& fields = {});
    /// Goodbye: what follows is not judged. Rank 0 waits a little for the others' goodbyes.
    void end();

private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace stoa
