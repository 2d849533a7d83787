#pragma once
// Throw-away clusters on this machine, for acceptance programs: a real SLURM (shared/slurm-local)
// and make-believe hosts (shared/two-hosts). Everything they start ends with the object, and also
// when the program is killed.
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "checkpoints/checkpoint.h"
#include "tests/support/programs.h"

namespace stoa::test {

/// shared/<name>: below $STOA_SHARED, else beside the source; "" where it is not.
inline std::string shared_folder(const std::string& name) {
    const char* given = std::getenv("STOA_SHARED");
    const std::string shared = given != nullptr ? given : source_dir() + "/../shared";
    std::error_code ignored;
    const fs::path path = fs::weakly_canonical(shared + "/" + name, ignored);
    return fs::is_directory(path, ignored) ? path.string() : "";
}

inline bool on_path(const std::string& program) {
    return run_shell("command -v " + program + " >/dev/null").code == 0;
}

inline bool may_make_namespaces() {
    const std::string name = fmt::format("stoa-try-{}", getpid());
    return run_shell("ip netns add " + name + " && ip netns del " + name).code == 0;
}

/// Prints why and returns the code of a skipped program.
inline int skip(const std::string& reason) {
    fmt::print("{}\n", nlohmann::json{{"skipped", reason}}.dump());
    return 77;
}

/// A number that no other running program has: several of them may make clusters at once.
class Instance {
public:
    Instance() {
        for (int n = 0; n < 40; ++n) {
            const std::string path = fmt::format("/tmp/stoa-test-net-{}.lock", n);
            fd_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
            if (fd_ >= 0 && flock(fd_, LOCK_EX | LOCK_NB) == 0) {
                number_ = n;
                return;
            }
            if (fd_ >= 0) close(fd_);
            fd_ = -1;
        }
    }
    ~Instance() {
        if (fd_ >= 0) close(fd_);
    }
    Instance(const Instance&) = delete;
    Instance& operator=(const Instance&) = delete;
    int number() const { return number_; }

private:
    int fd_ = -1, number_ = 0;
};

/// Runs a shell command when this process ends, however it ends; `if_killed` as well where it is
/// killed.
class AtEnd {
public:
    AtEnd(std::string command, const std::string& if_killed) : command_(std::move(command)) {
        int ends[2];
        if (pipe2(ends, O_CLOEXEC) != 0) return;
        const pid_t child = fork();
        if (child == 0) {
            setsid();
            if (fork() != 0) _exit(0);  // nobody's child: waits for nobody
            close(ends[1]);
            char byte = 0;
            while (read(ends[0], &byte, 1) < 0 && errno == EINTR) {
            }
            // byte 1: it has been done already
            if (byte == 0)
                (void)!std::system(
                    ("{ " + command_ + "; " + if_killed + "; } >/dev/null 2>&1").c_str());
            _exit(0);
        }
        close(ends[0]);
        waitpid(child, nullptr, 0);
        write_end_ = ends[1];
    }
    ~AtEnd() {
        run_shell(command_);
        const char done = 1;
        (void)!write(write_end_, &done, 1);
        close(write_end_);
    }
    AtEnd(const AtEnd&) = delete;
    AtEnd& operator=(const AtEnd&) = delete;

private:
    std::string command_;
    int write_end_ = -1;
};

inline double seconds_now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

/// Whether it became true within `seconds`.
inline bool wait_until(double seconds, const std::function<bool()>& what) {
    for (const double end = seconds_now() + seconds; seconds_now() < end;) {
        if (what()) return true;
        std::this_thread::sleep_for(std::chrono::milliseconds(200));
    }
    return what();
}

/// Hashes of masters and moments, and the counters, of the last checkpoint.
inline std::map<std::string, std::string> state_at_end(const std::string& run_dir) {
    std::map<std::string, std::string> state;
    try {
        const auto all = list_checkpoints(run_dir);
        if (all.empty()) return state;
        const CheckpointInfo info = read_checkpoint_info(all.back());
        for (const CheckpointTensor& t : info.tensors)
            state[t.name] = t.xxh3;
        for (const auto& [key, value] : info.meta.counters)
            state["counter " + key] = value;
    } catch (const Error& e) {
        fmt::print(stderr, "{}\n", e.what());
    }
    return state;
}

inline std::vector<nlohmann::json> json_objects(const std::string& path) {
    std::vector<nlohmann::json> lines;
    std::ifstream in(path);
    for (std::string text; std::getline(in, text);) {
        auto line = nlohmann::json::parse(text, nullptr, false);
        if (line.is_object()) lines.push_back(std::move(line));
    }
    return lines;
}

/// The steps in the records are 1, 2, ... `steps`, each once: no sample lost, none seen twice.
inline bool each_step_once(const std::string& run_dir, std::int64_t steps) {
    std::int64_t next = 1;
    for (const auto& line : json_objects(run_dir + "/metrics.jsonl"))
        if (line.value("step", std::int64_t{0}) != next++) return false;
    return next == steps + 1;
}

inline std::int64_t steps_done(const std::string& run_dir) {
    std::ifstream in(run_dir + "/metrics.jsonl");
    std::int64_t n = 0;
    for (std::string line; std::getline(in, line);)
        ++n;
    return n;
}

inline int count_events(const std::string& run_dir, const std::string& event) {
    int n = 0;
    for (const auto& line : json_objects(run_dir + "/events.jsonl"))
        n += line.value("event", "") == event ? 1 : 0;
    return n;
}

/// Processes in the network namespace `name` whose command line contains `what` and not `but`.
inline int processes_in(const std::string& netns, const std::string& what, const std::string& but) {
    int n = 0;
    std::istringstream pids(run_shell("ip netns pids " + netns + " 2>/dev/null").output);
    for (std::string pid; pids >> pid;) {
        std::string line = read_text("/proc/" + pid + "/cmdline");
        for (char& c : line)
            if (c == '\0') c = ' ';
        n += line.find(what) != std::string::npos && line.find(but) == std::string::npos ? 1 : 0;
    }
    return n;
}

}  // namespace stoa::test
