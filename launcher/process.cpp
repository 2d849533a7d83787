#include "launcher/process.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "kernels/core/error.h"
#include "launcher/bundle/inside.h"

extern char** environ;

namespace stoa {
namespace {

namespace fs = std::filesystem;

std::vector<char*> c_strings(std::vector<std::string>& strings) {
    std::vector<char*> out;
    for (std::string& s : strings)
        out.push_back(s.data());
    out.push_back(nullptr);
    return out;
}

[[noreturn]] void become(SpawnOptions& o, pid_t parent, int error_pipe) {
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, o.without_term ? SIGINT : SIGTERM);
    if (getppid() != parent) _exit(static_cast<int>(ExitCode::preempted));
    const int null = open("/dev/null", O_RDONLY);
    if (null >= 0) dup2(null, STDIN_FILENO);
    if (o.stdout_fd >= 0) dup2(o.stdout_fd, STDOUT_FILENO);
    if (o.stderr_fd >= 0) dup2(o.stderr_fd, STDERR_FILENO);
    for (int s = 1; s < NSIG; ++s)
        if (s != SIGKILL && s != SIGSTOP) std::signal(s, SIG_DFL);
    sigset_t blocked;
    sigemptyset(&blocked);
    if (o.without_term) sigaddset(&blocked, SIGTERM);
    sigprocmask(SIG_SETMASK, &blocked, nullptr);
    auto args = c_strings(o.command), env = c_strings(o.environment);
    execvpe(args[0], args.data(), env.data());
    const int failure = errno;
    (void)!write(error_pipe, &failure, sizeof failure);
    _exit(127);
}

std::vector<pid_t> all_processes() {
    std::vector<pid_t> pids;
    std::error_code error;
    for (fs::directory_iterator it("/proc", error), end; !error && it != end; it.increment(error))
        if (const int pid = std::atoi(it->path().filename().c_str()); pid > 0) pids.push_back(pid);
    return pids;
}

std::string link_of(const std::string& path) {
    char text[256];
    const ssize_t n = readlink(path.c_str(), text, sizeof text);
    return n > 0 ? std::string(text, static_cast<std::size_t>(n)) : "";
}

struct Running {
    pid_t pid = 0;
    int out = -1, err = -1;
};

// Appends what is there; false at the end of the stream.
bool take(int fd, std::string& text) {
    char chunk[4096];
    const ssize_t n = read(fd, chunk, sizeof chunk);
    if (n > 0) text.append(chunk, static_cast<std::size_t>(n));
    return n > 0 || (n < 0 && (errno == EINTR || errno == EAGAIN));
}

}  // namespace

std::string this_program() {
    const std::string path = link_of("/proc/self/exe");
    if (path.empty())
        throw DeviceError(
            {.what = "cannot find the path of this program", .hint = "is /proc mounted?"});
    return started_by(path);
}

std::vector<std::string> clean_environment() {
    std::vector<std::string> out;
    for (char** e = environ; *e; ++e) {
        const std::string entry = *e;
        // OMPI_MCA_* are the user's settings, not the state of a job.
        const bool setting = entry.starts_with("OMPI_MCA_");
        const bool job_state =
            entry.starts_with("OMPI_") || entry.starts_with("PMIX_") || entry.starts_with("PMI_");
        const bool inherited = entry.starts_with("OMPI_MCA_orte_") ||
                               entry.starts_with("OMPI_MCA_ess") ||
                               entry.starts_with("OMPI_MCA_pmix");
        if ((job_state && !setting) || inherited) continue;
        out.push_back(entry);
    }
    // Ranks write to a pseudo-terminal of mpirun's: only the launcher knows where that ends.
    out.push_back(fmt::format("STOA_TTY={}", isatty(STDOUT_FILENO)));
    if (geteuid() == 0) {  // containers; mpirun refuses to run as root without both
        out.emplace_back("OMPI_ALLOW_RUN_AS_ROOT=1");
        out.emplace_back("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1");
    }
    return out;
}

std::string value_in(const std::vector<std::string>& environment, const std::string& name) {
    for (const std::string& e : environment)
        if (e.starts_with(name + "=")) return e.substr(name.size() + 1);
    return "";
}

std::string shell_line(const std::vector<std::string>& words) {
    std::string out;
    for (const std::string& w : words) {
        const bool plain =
            !w.empty() && w.find_first_of(" \t\n'\"\\$`*?[]{}()<>|&;#~!") == std::string::npos;
        std::string q = w;
        for (std::size_t i = 0; !plain && (i = q.find('\'', i)) != std::string::npos; i += 4)
            q.replace(i, 1, "'\\''");
        out += (out.empty() ? "" : " ") + (plain ? w : "'" + q + "'");
    }
    return out;
}

std::vector<std::string> split_words(const std::string& text) {
    std::istringstream in(text);
    std::vector<std::string> words;
    for (std::string w; in >> w;)
        words.push_back(w);
    return words;
}

pid_t spawn(SpawnOptions options, const std::string& hint) {
    int error_pipe[2];
    if (pipe2(error_pipe, O_CLOEXEC) != 0)
        throw DeviceError({.what = std::string("cannot make a pipe: ") + std::strerror(errno)});
    const pid_t parent = getpid();
    std::fflush(nullptr);
    const pid_t child = fork();
    if (child == 0) become(options, parent, error_pipe[1]);
    const int fork_failure = errno;
    close(error_pipe[1]);
    int failure = 0;  // stays 0 when exec closed the pipe
    ssize_t n = 0;
    do
        n = child < 0 ? 0 : read(error_pipe[0], &failure, sizeof failure);
    while (n < 0 && errno == EINTR);
    close(error_pipe[0]);
    if (child < 0)
        throw DeviceError(
            {.what = std::string("cannot start a process: ") + std::strerror(fork_failure)});
    if (failure != 0) {
        waitpid(child, nullptr, 0);
        throw DeviceError({.what = "cannot start " + options.command.at(0),
                           .actual = std::strerror(failure),
                           .hint = hint});
    }
    return child;
}

int open_pid(pid_t pid) {
    const int fd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
    if (fd >= 0) fcntl(fd, F_SETFD, FD_CLOEXEC);
    return fd;
}

std::vector<pid_t> children_of(pid_t pid) {
    std::vector<pid_t> children;
    std::error_code error;
    const std::string tasks = fmt::format("/proc/{}/task", pid);
    for (fs::directory_iterator it(tasks, error), end; !error && it != end; it.increment(error)) {
        std::ifstream in(it->path() / "children");
        for (pid_t child = 0; in >> child;)
            children.push_back(child);
    }
    return children;
}

std::string start_environment(pid_t pid, const std::string& name) {
    std::ifstream in(fmt::format("/proc/{}/environ", pid), std::ios::binary);
    for (std::string entry; std::getline(in, entry, '\0');)
        if (entry.starts_with(name + "=")) return entry.substr(name.size() + 1);
    return "";
}

bool on_this_host(pid_t pid) {
    for (const char* space : {"uts", "net"}) {
        const std::string theirs = link_of(fmt::format("/proc/{}/ns/{}", pid, space));
        if (theirs != link_of(fmt::format("/proc/self/ns/{}", space))) return false;
    }
    return true;
}

std::vector<pid_t> processes_with(const std::string& name, const std::string& value) {
    std::vector<pid_t> found;
    for (const pid_t pid : all_processes())
        if (pid != getpid() && start_environment(pid, name) == value && on_this_host(pid))
            found.push_back(pid);
    return found;
}

std::vector<Output> run_all(const std::vector<SpawnOptions>& commands, double seconds) {
    using Clock = std::chrono::steady_clock;
    const auto end = Clock::now() + std::chrono::duration<double>(seconds);
    std::vector<Output> outputs(commands.size());
    std::vector<Running> running(commands.size());
    for (std::size_t i = 0; i < commands.size(); ++i) {
        int out[2], err[2];
        if (pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0) break;
        SpawnOptions o = commands[i];
        o.stdout_fd = out[1];
        o.stderr_fd = err[1];
        try {
            running[i] = {spawn(o, ""), out[0], err[0]};
        } catch (const Error& e) {
            outputs[i].err = e.what();
            close(out[0]);
            close(err[0]);
        }
        close(out[1]);
        close(err[1]);
    }
    for (;;) {
        std::vector<pollfd> fds;
        std::vector<std::pair<std::size_t, bool>> whose;
        for (std::size_t i = 0; i < running.size(); ++i)
            for (const bool is_err : {false, true})
                if (const int fd = is_err ? running[i].err : running[i].out; fd >= 0) {
                    fds.push_back({fd, POLLIN, 0});
                    whose.emplace_back(i, is_err);
                }
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now());
        if (fds.empty() || left.count() <= 0) break;
        if (poll(fds.data(), fds.size(), static_cast<int>(left.count())) < 0 && errno != EINTR)
            break;
        for (std::size_t k = 0; k < fds.size(); ++k) {
            if (fds[k].revents == 0) continue;
            const auto [i, is_err] = whose[k];
            int& fd = is_err ? running[i].err : running[i].out;
            if (take(fd, is_err ? outputs[i].err : outputs[i].out)) continue;
            close(fd);
            fd = -1;
        }
    }
    for (std::size_t i = 0; i < running.size(); ++i) {
        if (running[i].pid == 0) continue;
        const bool late = running[i].out >= 0 || running[i].err >= 0;
        if (late) kill(-running[i].pid, SIGKILL);
        for (const int fd : {running[i].out, running[i].err})
            if (fd >= 0) close(fd);
        int status = 0;
        while (waitpid(running[i].pid, &status, 0) < 0 && errno == EINTR) {
        }
        outputs[i].code = late                ? -1
                          : WIFEXITED(status) ? WEXITSTATUS(status)
                                              : 128 + WTERMSIG(status);
    }
    return outputs;
}

std::int64_t oom_kill_count() {
    std::ifstream in("/proc/vmstat");
    std::string name;
    for (std::int64_t n = 0; in >> name >> n;)
        if (name == "oom_kill") return n;
    return 0;
}

}  // namespace stoa
