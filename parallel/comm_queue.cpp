#include "parallel/comm_queue.h"

#include <utility>

#include "parallel/comm_timer.h"

namespace stoa {

CommQueue::CommQueue(bool own_thread, Lane lane, Device device) : device_(device), lane_(lane) {
    if (device.is_cuda()) {
        cuda::use_device(device.index);
        stream_ = std::make_unique<cuda::CudaStream>();
    }
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

CommQueue::Ticket CommQueue::submit(Job job, Stream main) {
    std::function<void()> whole = [job, main] { job(main); };
    if (own_stream()) {
        const auto given = std::make_shared<cuda::Event>();
        given->record(main);
        whole = [this, job = std::move(job), given] { run_beside(job, *given); };
    }
    if (!thread_.joinable()) {
        whole();
        return done_ = ++submitted_;
    }
    Ticket ticket = 0;
    {
        const std::scoped_lock lock(mutex_);
        jobs_.push_back(std::move(whole));
        ticket = ++submitted_;
    }
    changed_.notify_all();
    return ticket;
}

void CommQueue::run_beside(const Job& job, const cuda::Event& given) {
    cuda::use_device(device_.index);  // the thread may be new to it
    const Stream side = stream_->stream();
    given.make_wait(side);  // the job waits for what it reads, and for readers of what it writes
    job(side);
    cuda::Event end;
    end.record(side);
    const std::scoped_lock lock(mutex_);
    ends_.emplace_back(done_ + 1, std::move(end));
}

void CommQueue::wait(Ticket ticket, Stream main) {
    std::unique_lock lock(mutex_);
    if (thread_.joinable() && done_ < ticket) {  // else whatever was submitted is done
        const CommTimer timer;
        const QueueWaitScope waits(lane_);
        changed_.wait(lock, [&] { return done_ >= ticket; });
    }
    if (failure_) std::rethrow_exception(failure_);
    cuda::Event last;
    for (; !ends_.empty() && ends_.front().first <= ticket; ends_.pop_front())
        last = std::move(ends_.front().second);
    last.make_wait(main);  // the computation waits for the results, and to overwrite what jobs read
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
