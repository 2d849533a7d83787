#include "parallel/comm_queue.h"

#include <utility>

#include "parallel/comm_timer.h"

namespace stoa {

CommQueue::CommQueue(bool own_thread, Lane lane) : lane_(lane) {
    if (own_thread) thread_ = std::thread([this] { work(); });
}

CommQueue::~CommQueue() {
    if (!thread_.joinable()) return;
    {
        const std::scoped_lock lock(mutex_);
        closing_ = true;
    }
    changed_.notify_all();
    thread_.join();
}

CommQueue::Ticket CommQueue::submit(std::function<void()> job) {
    if (!thread_.joinable()) {
        job();
        return done_ = ++submitted_;
    }
    Ticket ticket = 0;
    {
        const std::scoped_lock lock(mutex_);
        jobs_.push_back(std::move(job));
        ticket = ++submitted_;
    }
    changed_.notify_all();
    return ticket;
}

void CommQueue::wait(Ticket ticket) {
    if (!thread_.joinable()) return;
    std::unique_lock lock(mutex_);
    if (done_ < ticket) {
        const CommTimer timer;
        const QueueWaitScope waits(lane_);
        changed_.wait(lock, [&] { return done_ >= ticket; });
    }
    if (failure_) std::rethrow_exception(failure_);
}

// After a failure the jobs that follow are dropped: their peers cannot be in step any more.
void CommQueue::work() {
    count_as_hidden();
    set_board_lane(lane_);
    std::unique_lock lock(mutex_);
    for (;;) {
        changed_.wait(lock, [&] { return !jobs_.empty() || closing_; });
        if (jobs_.empty()) return;
        const std::function<void()> job = std::move(jobs_.front());
        jobs_.pop_front();
        if (!failure_) {
            lock.unlock();
            std::exception_ptr failure;
            try {
                job();
            } catch (...) {
                failure = std::current_exception();
            }
            lock.lock();
            if (failure) failure_ = failure;
        }
        ++done_;
        changed_.notify_all();
    }
}

}  // namespace stoa
