#pragma once
// One training job per run directory: <run>/run.lock, held by flock as long as its owner lives,
// with who that is inside. Where locks do not reach other hosts (some network file systems), the
// owner's host and the age of the file decide: an owner touches it every few seconds.
#include <cstdint>
#include <string>

namespace stoa {

struct LockOwner {
    std::string host;
    int pid = 0;
    std::int64_t start_time = 0;  // of the process, in ticks since the host's boot
    std::string what;             // "stoa launch", "stoa train"
    std::string since;            // UTC
};

class RunLock {
public:
    RunLock() = default;
    /// Takes the lock of `run_dir`, which exists. Takes over what a dead owner left: stale() then
    /// says whose it was. errors: ConfigError (exit code 2) that names a live owner; DataError
    /// where the file cannot be made
    RunLock(const std::string& run_dir, const std::string& what);
    RunLock(RunLock&& other) noexcept;
    RunLock& operator=(RunLock&& other) noexcept;
    ~RunLock();
    RunLock(const RunLock&) = delete;
    RunLock& operator=(const RunLock&) = delete;

    /// Every few seconds: says to other hosts that the owner lives.
    void touch() const;
    const std::string& stale() const { return stale_; }

private:
    int fd_ = -1;
    std::string path_, stale_;
};

/// When a process began, in ticks since boot (field 22 of /proc/PID/stat); 0: there is none.
std::int64_t process_start_time(int pid);

}  // namespace stoa
