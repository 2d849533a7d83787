#pragma once
// Communication beside the computation: jobs that a thread of its own runs in the order in which
// they were given. All ranks of a group give the same jobs in the same order; the jobs use a
// communicator that nobody else uses.
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

#include "parallel/board.h"

namespace stoa {

class CommQueue {
public:
    using Ticket = std::int64_t;  // 0: of no job

    /// Without `own_thread`, submit runs the job before it returns. `lane`: whose collectives they
    /// are on the board.
    explicit CommQueue(bool own_thread = false, Lane lane = Lane::dp_queue);
    /// Waits for the jobs.
    ~CommQueue();
    CommQueue(const CommQueue&) = delete;
    CommQueue& operator=(const CommQueue&) = delete;

    /// What the job reads and writes is the queue's until wait(ticket) has returned.
    Ticket submit(std::function<void()> job);
    /// Returns when the job and all before it are done.     errors: the first of any job
    void wait(Ticket ticket);
    bool own_thread() const { return thread_.joinable(); }

private:
    void work();

    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<std::function<void()>> jobs_;
    Ticket submitted_ = 0, done_ = 0;
    std::exception_ptr failure_;
    bool closing_ = false;
    Lane lane_;
    std::thread thread_;
};

}  // namespace stoa
