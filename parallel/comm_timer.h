#pragma once
// Where a step's communication time goes, for the step line.
#include <chrono>

namespace stoa {

/// exposed: the computation stood still, inside a collective or waiting for one that a CommQueue
/// runs. hidden: collectives on the threads of CommQueues, whether waited for or not.
struct CommSeconds {
    double exposed = 0.0, hidden = 0.0;
};
/// Of this process since the last call.
CommSeconds take_comm_seconds();

/// What this thread spends from now on counts as hidden.
void count_as_hidden();

/// Adds its lifetime to the time of its thread's kind.
struct CommTimer {
    CommTimer() = default;
    ~CommTimer();
    CommTimer(const CommTimer&) = delete;
    CommTimer& operator=(const CommTimer&) = delete;

private:
    std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

}  // namespace stoa
