#pragma once
// `stoa launch` as a child of a test: its output and events while it runs, signals to it and to its
// ranks, and what it leaves behind.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "checkpoints/checkpoint.h"
#include "launcher/supervisor.h"
#include "tests/support/tiny_project.h"

namespace stoa::test {

using Json = nlohmann::json;
using SteadyClock = std::chrono::steady_clock;

inline double seconds_since(SteadyClock::time_point t) {
    return std::chrono::duration<double>(SteadyClock::now() - t).count();
}

/// Times of CI machines may be longer: CI_SLACK, else 3 with CI=true, else 1.
inline double ci_slack() {
    if (const char* text = std::getenv("CI_SLACK")) return std::max(1.0, std::atof(text));
    const char* ci = std::getenv("CI");
    return ci != nullptr && std::string(ci) == "true" ? 3.0 : 1.0;
}

inline std::vector<Json> json_lines(const std::string& path) {
    std::vector<Json> lines;
    std::ifstream in(path);
    for (std::string text; std::getline(in, text);) {
        Json j = Json::parse(text, nullptr, false);
        if (j.is_object()) lines.push_back(std::move(j));
    }
    return lines;
}

inline std::vector<Json> events_of(const std::string& run_dir, const std::string& kind) {
    std::vector<Json> found;
    for (Json& e : json_lines(run_dir + "/events.jsonl"))
        if (e.value("event", "") == kind) found.push_back(std::move(e));
    return found;
}

/// Seconds since 1970 of "2026-01-01T00:00:00.123Z".
inline double unix_time(const std::string& text) {
    std::tm utc{};
    if (strptime(text.c_str(), "%Y-%m-%dT%H:%M:%S", &utc) == nullptr) return 0.0;
    const auto dot = text.find('.');
    return static_cast<double>(timegm(&utc)) +
           (dot == std::string::npos ? 0.0 : std::atof(("0" + text.substr(dot)).c_str()));
}
inline double unix_now() {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch())
        .count();
}

/// Hashes of masters and moments, and the counters, of the last checkpoint.
inline std::map<std::string, std::string> last_state(const std::string& run_dir) {
    std::map<std::string, std::string> state;
    const auto all = list_checkpoints(run_dir);
    if (all.empty()) return state;
    const CheckpointInfo info = read_checkpoint_info(all.back());
    for (const CheckpointTensor& t : info.tensors)
        state[t.name] = t.xxh3;
    for (const auto& [key, value] : info.meta.counters)
        state["counter " + key] = value;
    return state;
}

/// Whether metrics.jsonl has each step from 1 to the last once, in order.
inline bool each_step_once(const std::string& run_dir, std::int64_t steps) {
    std::int64_t next = 1;
    for (const Json& line : json_lines(run_dir + "/metrics.jsonl"))
        if (line.value("step", std::int64_t{0}) != next++) return false;
    return next == steps + 1;
}

class Launch {
public:
    /// `arguments` in shell words behind `stoa launch`; `environment`: NAME=value words before it.
    Launch(const std::string& arguments, const std::string& environment, const std::string& log)
        : log_(log) {
        pid_ = fork();
        if (pid_ == 0) {
            setpgid(0, 0);
            const int fd = open(log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
            dup2(fd, 1);
            dup2(fd, 2);
            const std::string line =
                environment + " exec " + stoa_binary() + " launch " + arguments;
            execl("/bin/bash", "bash", "-c", line.c_str(), nullptr);
            _exit(126);
        }
    }
    ~Launch() {
        if (pid_ > 0 && !code_) {
            kill(pid_, SIGTERM);
            usleep(100'000);
            kill(pid_, SIGTERM);
            wait(10);
            if (!code_) kill(pid_, SIGKILL);
        }
    }
    Launch(const Launch&) = delete;
    Launch& operator=(const Launch&) = delete;
    pid_t pid() const { return pid_; }
    void send(int signal) const { kill(pid_, signal); }
    std::string output() const { return read_text(log_); }

    /// The exit code (128 + n for a signal); nothing when it still runs after `seconds`.
    std::optional<int> wait(double seconds) {
        const auto begin = SteadyClock::now();
        for (int status = 0; !code_; usleep(5'000)) {
            if (waitpid(pid_, &status, WNOHANG) == pid_)
                code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
            else if (seconds_since(begin) > seconds)
                return {};
        }
        return code_;
    }
    /// Until `ready` holds; false after `seconds`, or when it has ended before.
    bool until(const std::function<bool()>& ready, double seconds) {
        const auto begin = SteadyClock::now();
        while (!ready()) {
            if (seconds_since(begin) > seconds || wait(0.0)) return ready();
            usleep(5'000);
        }
        return true;
    }

private:
    pid_t pid_ = -1;
    std::string log_;
    std::optional<int> code_;
};

/// pid of a rank of a generation, from events.jsonl; 0 when its ranks are not there yet.
inline int rank_pid(const std::string& run_dir, int generation, int rank) {
    for (const Json& e : events_of(run_dir, "ranks"))
        if (e.value("generation", -1) == generation)
            for (const Json& r : e["ranks"])
                if (r.value("rank", -1) == rank) return r.value("pid", 0);
    return 0;
}

inline std::int64_t last_step(const std::string& run_dir) {
    const auto lines = json_lines(run_dir + "/metrics.jsonl");
    return lines.empty() ? 0 : lines.back().value("step", std::int64_t{0});
}

/// Live processes that were started for this run directory.
inline std::vector<int> processes_of(const std::string& run_dir) {
    std::vector<int> pids;
    std::error_code error;
    for (fs::directory_iterator it("/proc", error), end; !error && it != end; it.increment(error)) {
        const int pid = std::atoi(it->path().filename().c_str());
        if (pid <= 0) continue;
        const std::string environment = read_text(it->path() / "environ");
        if (environment.find("STOA_JOB=" + run_dir + '\0') != std::string::npos)
            pids.push_back(pid);
    }
    return pids;
}

/// MPI's own in the temporary directory ($TMPDIR), which nobody else uses during a test.
inline std::set<std::string> temporary_names() {
    std::set<std::string> names;
    std::error_code error;
    for (fs::directory_iterator it(fs::temp_directory_path(), error), end; !error && it != end;
         it.increment(error))
        if (it->path().filename().string().starts_with("ompi.")) names.insert(it->path().string());
    return names;
}

/// "" or what a run has left that it should not: a process, a temporary checkpoint, shared memory.
inline std::string leftovers(const std::string& run_dir, const std::set<std::string>& before) {
    for (int i = 0; i < 100 && !processes_of(run_dir).empty(); ++i)
        usleep(10'000);
    if (const auto pids = processes_of(run_dir); !pids.empty())
        return "process " + std::to_string(pids.front());
    std::error_code error;
    for (fs::directory_iterator it(run_dir + "/ckpt", error), end; !error && it != end;
         it.increment(error))
        if (it->path().filename().string().starts_with(".")) return it->path().string();
    const std::string prefix = shared_prefix(fs::canonical(run_dir).string());
    for (fs::directory_iterator it("/dev/shm", error), end; !error && it != end;
         it.increment(error))
        if (it->path().string().starts_with(prefix)) return it->path().string();
    for (const std::string& name : temporary_names())
        if (!before.contains(name)) return name;
    return "";
}

}  // namespace stoa::test
