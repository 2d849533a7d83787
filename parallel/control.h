#pragma once
// The worker's side of the watch: a thread that sends the board to the monitor every 0.25 s and
// does what it is told. It calls neither MPI nor HDF5 and takes no lock that the training threads
// hold while they communicate, so it lives where they hang.
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

namespace stoa {

struct ControlOptions {
    std::string addresses;  // "host:port,host:port"
    std::string token;
    int generation = 0, rank = 0, world = 1;
    /// So long after the monitor's process has gone this one leaves with 82 (fenced); after 1.2
    /// times as long where there is only silence, which a network may end.
    double fence_s = 10.0;
    /// A monitor that is a rank of this job: ended with the fence if it is on this host, since a
    /// stopped process would stay for ever.
    int monitor_pid = 0;
    std::string monitor_host;
    /// Asked to stop: "preempted" or "interrupted". Called on the control thread.
    std::function<void(const std::string& how)> on_drain;
    /// This process ends now, with this exit code. Called on the control thread, before the end.
    std::function<void(int code, const std::string& why)> on_leave;
};

class ControlThread {
public:
    /// Starts the thread, which connects by itself.
    explicit ControlThread(ControlOptions options);
    /// Says goodbye and ends the thread; the monitor does not judge this rank any more.
    ~ControlThread();
    ControlThread(const ControlThread&) = delete;
    ControlThread& operator=(const ControlThread&) = delete;

    /// Something for the monitor's events: ("committed", 1200, {{"dir", ...}}). Never waits.
    void event(const std::string& name, std::int64_t step,
               const std::map<std::string, std::string>& fields = {});

private:
    struct State;
    std::unique_ptr<State> state_;
};

/// Ends this process at once with `code`: stacks and `why` into the log, then on_leave, then what
/// is left in /dev/shm by this process's MPI, then _exit. For the control thread, while the main
/// thread may sit anywhere.
[[noreturn]] void leave_now(int code, const std::string& why,
                            const std::function<void(int, const std::string&)>& on_leave);

}  // namespace stoa
