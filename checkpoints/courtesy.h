#pragma once
// A thread that works beside a training which may use every core.
#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace stoa {

/// Keeps its thread to a small share of a core while others want the core. Where one is free, it
/// costs nothing and does not slow the thread down.
class Courtesy {
public:
    /// `share`: of a core, while others wait for it. Two ranks that wait for each other lose up to
    /// the sum of their shares.
    explicit Courtesy(double share = 0.0025) : share_(share) {}
    /// Before the thread begins with something for which nobody waits yet.
    void begin();
    /// Between two pieces of work, each some milliseconds long: sleeps where the thread had to wait
    /// for a core for longer than it has computed since the last call.
    void pause();
    /// Sleeps so long, or until hurry().
    void stand_back(std::int64_t ns);
    /// From another thread, which waits for this one: no more pauses until begin().
    void hurry();

    /// How long: `share` is kept over computing, waiting and sleeping; a second at most.
    static std::int64_t pause_ns(std::int64_t ran_ns, std::int64_t waited_ns, double share);

private:
    struct Spent {
        std::int64_t ran_ns = 0, waited_ns = 0;
    };
    static Spent spent();
    double share_;
    Spent before_;
    std::mutex mutex_;
    std::condition_variable hurried_;
    bool hurry_ = false;
};

/// This thread only: the processor when nobody else wants it, the disk behind other users of it.
void lower_priority();

/// Processor time of this thread.
double thread_seconds();

}  // namespace stoa
