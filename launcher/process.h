#pragma once
// Starting, watching and ending processes of this machine.
#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

namespace stoa {

/// The path of this program.     errors: DeviceError
std::string this_program();

/// "NAME=value" of this process without what an outer mpirun or srun step left (its ranks would be
/// taken for ours), with what lets mpirun start as root, and STOA_TTY.
std::vector<std::string> clean_environment();
/// The value of NAME in such a list; "" when it is not there.
std::string value_in(const std::vector<std::string>& environment, const std::string& name);

/// A command that can be pasted into a shell.
std::string shell_line(const std::vector<std::string>& words);
std::vector<std::string> split_words(const std::string& text);

struct SpawnOptions {
    std::vector<std::string> command, environment;
    int stdout_fd = -1, stderr_fd = -1;  // -1: those of this process
    // SIGTERM does not reach it, SIGINT ends it. For mpirun, which ends its ranks at once by
    // either: a scheduler that sends SIGTERM to every process of a job leaves them the time to
    // save. Open MPI gives the ranks themselves a clean mask.
    bool without_term = false;
};
/// In a process group of its own (Ctrl-C reaches only us), with an empty stdin, default signals,
/// and SIGTERM (SIGINT) when this process ends. Throws what exec() says, with `hint`. errors:
/// DeviceError "cannot start NAME"
pid_t spawn(SpawnOptions options, const std::string& hint);

/// A descriptor that becomes readable when the process ends; -1 when it has ended already.
int open_pid(pid_t pid);

/// Children of a process, of all its threads.
std::vector<pid_t> children_of(pid_t pid);
/// From the environment that a process was started with; "" when it cannot be read.
std::string start_environment(pid_t pid, const std::string& name);
/// Not one that only shares the process table (a container, a network namespace).
bool on_this_host(pid_t pid);
/// All processes of this host that were started with NAME=value.
std::vector<pid_t> processes_with(const std::string& name, const std::string& value);

struct Output {
    int code = -1;  // 128 + n when ended by signal n; -1: it took longer than it may
    std::string out, err;
};
/// Runs commands side by side to their ends, at most `seconds` long, then SIGKILL.
std::vector<Output> run_all(const std::vector<SpawnOptions>& commands, double seconds);

/// Processes that the kernel has ended for want of memory since boot.
std::int64_t oom_kill_count();

}  // namespace stoa
