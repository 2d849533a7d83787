#include "parallel/comm_timer.h"

#include <atomic>

namespace stoa {
namespace {

// Running totals, read and reset by take_comm_seconds().
std::atomic<double> exposed_seconds{0.0}, hidden_seconds{0.0};
thread_local bool hidden = false;

}  // namespace

CommSeconds take_comm_seconds() {
    return {exposed_seconds.exchange(0.0), hidden_seconds.exchange(0.0)};
}

void count_as_hidden() { hidden = true; }

CommTimer::~CommTimer() {
    const auto spent = std::chrono::steady_clock::now() - begin_;
    (hidden ? hidden_seconds : exposed_seconds)
        .fetch_add(std::chrono::duration<double>(spent).count());
}

}  // namespace stoa
