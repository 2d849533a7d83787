#pragma once
// Communication beside the computation: jobs that a thread of its own runs in the order in which
// they were given. All ranks of a group give the same jobs in the same order; the jobs use a
// communicator that nobody else uses. On a GPU the jobs have a stream of their own beside the main
// one, with a thread or without.
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "kernels/cuda/device.h"
#include "parallel/board.h"

namespace stoa {

class CommQueue {
public:
    using Ticket = std::int64_t;  // 0: of no job
    /// What it puts on the device goes onto the stream that it is given.
    using Job = std::function<void(Stream)>;

    /// Without `own_thread`, submit runs the job before it returns. `lane`: whose collectives they
    /// are on the board. `device`: a GPU gives the queue a stream.
    explicit CommQueue(bool own_thread = false, Lane lane = Lane::dp_queue, Device device = {});
    /// Waits for the jobs.
    ~CommQueue();
    CommQueue(const CommQueue&) = delete;
    CommQueue& operator=(const CommQueue&) = delete;

    /// What the job reads and writes is the queue's until wait(ticket) has returned. `main`: the
    /// stream of the computation, the same in all calls: the job's stream waits for what it has
    /// been given so far. Without a stream of the queue's own, the job gets `main`.
    Ticket submit(Job job, Stream main);
    /// Returns when the job and all before it are done; with a stream of its own, when they have
    /// been put onto it, and what `main` is given from here on waits for them there.
    /// errors: the first of any job
    void wait(Ticket ticket, Stream main);
    bool own_thread() const { return thread_.joinable(); }
    bool own_stream() const { return stream_ != nullptr; }

private:
    void work();
    void run_beside(const Job& job, const cuda::Event& given);

    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<std::function<void()>> jobs_;
    Device device_;
    std::unique_ptr<cuda::CudaStream> stream_;
    std::deque<std::pair<Ticket, cuda::Event>> ends_;  // of jobs that nobody has waited for yet
    Ticket submitted_ = 0, done_ = 0;
    std::exception_ptr failure_;
    bool closing_ = false;
    Lane lane_;
    std::thread thread_;
};

}  // namespace stoa
