#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <sstream>

#include "configs/load_run_config.h"
#include "launcher/cli.h"
#include "launcher/commands.h"
#include "launcher/slurm_requeue.h"

extern char** environ;

namespace po = boost::program_options;

namespace stoa {
namespace {

struct LaunchPlan {
    std::vector<std::string> command;      // mpirun ...
    std::vector<std::string> environment;  // NAME=value
};

std::string this_program() {
    char path[4096];
    const ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    if (n <= 0)
        throw DeviceError(
            {.what = "cannot find the path of this program", .hint = "is /proc mounted?"});
    return std::string(path, static_cast<std::size_t>(n));
}

/// The environment without what an outer mpirun left (its ranks would be taken for ours).
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

std::vector<std::string> split_words(const std::string& text) {
    std::istringstream in(text);
    std::vector<std::string> words;
    for (std::string w; in >> w;)
        words.push_back(w);
    return words;
}

std::vector<char*> c_strings(std::vector<std::string>& strings) {
    std::vector<char*> out;
    for (std::string& s : strings)
        out.push_back(s.data());
    out.push_back(nullptr);
    return out;
}

/// What the handlers tell the waiting loop. Signal handlers can reach nothing but globals.
volatile sig_atomic_t g_stop_signals = 0;  // how often we were asked to stop
volatile sig_atomic_t g_interrupted = 0;   // by Ctrl-C
volatile sig_atomic_t g_urgent = 0;        // INT and TERM after the first request

void on_stop_signal(int signal) {
    const bool urgent = signal == SIGINT || signal == SIGTERM;
    if (urgent && g_stop_signals > 0) g_urgent = g_urgent + 1;
    if (signal == SIGINT) g_interrupted = 1;
    g_stop_signals = g_stop_signals + 1;
}

/// Blocks the stop signals while it lives and hands them out in wait(), so that none is lost
/// between a look at the counters and the next sleep.
class StopSignals {
public:
    StopSignals() {
        g_stop_signals = 0;
        g_interrupted = 0;
        g_urgent = 0;
        sigemptyset(&blocked_);
        struct sigaction action = {};
        action.sa_handler = on_stop_signal;
        for (std::size_t i = 0; i < std::size(kSignals); ++i) {
            sigaddset(&blocked_, kSignals[i]);
            sigaction(kSignals[i], &action, &old_[i]);
        }
        action.sa_handler = [](int) {};
        sigaddset(&blocked_, SIGCHLD);
        sigaction(SIGCHLD, &action, &old_child_);
        sigprocmask(SIG_BLOCK, &blocked_, &mask_);
    }
    ~StopSignals() {
        for (std::size_t i = 0; i < std::size(kSignals); ++i)
            sigaction(kSignals[i], &old_[i], nullptr);
        sigaction(SIGCHLD, &old_child_, nullptr);
        sigprocmask(SIG_SETMASK, &mask_, nullptr);
    }
    StopSignals(const StopSignals&) = delete;
    StopSignals& operator=(const StopSignals&) = delete;
    /// Sleeps until a signal came, at most `seconds`. Returns true when the time was up.
    bool wait(int seconds) const {
        const timespec limit{seconds, 0};
        return ppoll(nullptr, 0, &limit, &mask_) == 0;
    }
    /// For the child, before exec: the signals as they were.
    void restore_in_child() const {
        for (const int s : kSignals)
            std::signal(s, SIG_DFL);
        std::signal(SIGCHLD, SIG_DFL);
        sigprocmask(SIG_SETMASK, &mask_, nullptr);
    }

private:
    static constexpr int kSignals[] = {SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
    sigset_t blocked_{}, mask_{};
    struct sigaction old_[std::size(kSignals)] = {}, old_child_ = {};
};

/// In the child: a process group of its own (Ctrl-C reaches only the launcher, which asks for a
/// save), an empty stdin, and SIGTERM should the launcher be killed.
[[noreturn]] void become_mpirun(LaunchPlan& plan, pid_t launcher, int error_pipe,
                                const StopSignals& signals) {
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != launcher) _exit(static_cast<int>(ExitCode::preempted));
    const int null = open("/dev/null", O_RDONLY);
    if (null >= 0) dup2(null, STDIN_FILENO);
    signals.restore_in_child();
    auto args = c_strings(plan.command), env = c_strings(plan.environment);
    execvpe(args[0], args.data(), env.data());
    const int failure = errno;
    (void)!write(error_pipe, &failure, sizeof failure);
    _exit(127);
}

/// First request: SIGUSR2, which mpirun passes to every rank (SIGINT and SIGTERM would make it kill
/// them). A second SIGINT or SIGTERM: SIGTERM, on which mpirun ends its ranks within a second. A
/// third: SIGKILL.
void pass_on_requests(pid_t child, int& passed) {
    if (g_stop_signals > 0 && passed == 0) {
        kill(child, SIGUSR2);
        passed = 1;
        fmt::print(stderr,
                   "stoa: stopping after this step and saving; Ctrl-C again stops at once\n");
    }
    for (; passed > 0 && passed <= g_urgent; ++passed) {
        if (passed == 1) fmt::print(stderr, "stoa: stopped at once, nothing was saved\n");
        passed == 1 ? kill(child, SIGTERM) : kill(-child, SIGKILL);
    }
}

int wait_for_mpirun(pid_t child, const StopSignals& signals, SlurmDeadline deadline) {
    int passed = 0, status = 0, waited = 0;
    for (;;) {
        const pid_t done = waitpid(child, &status, WNOHANG);
        if (done == child) break;
        if (done < 0 && errno != EINTR)
            throw DeviceError({.what = std::string("lost mpirun: ") + std::strerror(errno)});
        if (g_stop_signals == 0 && deadline.reached()) {
            fmt::print(stderr, "stoa: the SLURM job ends in {:.0f} s\n", deadline.seconds_left());
            on_stop_signal(SIGUSR2);
        }
        pass_on_requests(child, passed);
        // A request that reaches mpirun before its ranks exist is lost: ask again until it is gone.
        constexpr int kAskAgainSeconds = 10;
        waited = signals.wait(1) ? waited + 1 : 0;
        if (waited > 0 && waited % kAskAgainSeconds == 0 && passed == 1) kill(child, SIGUSR2);
    }
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    constexpr int kSaved = static_cast<int>(ExitCode::preempted);
    if (passed >= 2) return g_interrupted ? static_cast<int>(ExitCode::interrupted) : 128 + SIGTERM;
    // Before they are ready to save, ranks (or mpirun) simply end by SIGUSR2: run again is right,
    // too.
    const bool too_early = passed == 1 && code == 128 + SIGUSR2;
    if (too_early) fmt::print(stderr, "stoa: stopped before training began, nothing was saved\n");
    if (code != kSaved && !too_early) return code;
    return g_interrupted ? static_cast<int>(ExitCode::interrupted) : kSaved;
}

int run_mpirun(LaunchPlan& plan, double stop_before_s) {
    const auto job = slurm_job();
    int error_pipe[2];
    if (pipe2(error_pipe, O_CLOEXEC) != 0)
        throw DeviceError({.what = std::string("cannot make a pipe: ") + std::strerror(errno)});
    const StopSignals signals;
    const pid_t launcher = getpid();
    std::fflush(nullptr);
    const pid_t child = fork();
    if (child == 0) become_mpirun(plan, launcher, error_pipe[1], signals);
    close(error_pipe[1]);
    if (child < 0) {
        close(error_pipe[0]);
        throw DeviceError({.what = std::string("cannot start a process: ") + std::strerror(errno)});
    }
    int failure = 0;  // stays 0 when exec closed the pipe
    ssize_t n = 0;
    do
        n = read(error_pipe[0], &failure, sizeof failure);
    while (n < 0 && errno == EINTR);
    close(error_pipe[0]);
    if (failure != 0) {
        waitpid(child, nullptr, 0);
        throw DeviceError(
            {.what = "cannot start mpirun",
             .actual = std::strerror(failure),
             .hint = "install Open MPI (Debian: apt install openmpi-bin), or train in one process "
                     "with `stoa train`"});
    }
    return wait_for_mpirun(child, signals,
                           job ? SlurmDeadline(*job, stop_before_s) : SlurmDeadline());
}

LaunchPlan plan_launch(int ranks, const std::vector<std::string>& extra,
                       const std::vector<std::string>& words) {
    LaunchPlan plan;
    // Ranks share cores freely (--bind-to none), and may be more than the cores of a laptop. -q:
    // the exit code is ours to explain, not mpirun's.
    plan.command = {"mpirun",         "-q", "-n", std::to_string(ranks), "--bind-to", "none",
                    "--oversubscribe"};
    plan.command.insert(plan.command.end(), extra.begin(), extra.end());
    plan.command.push_back(this_program());
    plan.command.emplace_back("train");
    plan.command.insert(plan.command.end(), words.begin(), words.end());
    plan.environment = clean_environment();
    return plan;
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

}  // namespace

int command_launch(const Args& args) {
    CommandLine line;
    line.usage = "stoa launch --ranks N [--tp T] CONFIG [key=value ...]";
    line.examples =
        "  stoa launch --ranks 2 configs/tiny.yaml\n"
        "  stoa launch --ranks 4 --tp 2 configs/tiny.yaml run.name=mesh\n"
        "  stoa launch --ranks 4 configs/tiny.yaml --dry-run\n";
    line.about =
        "Starts `stoa train CONFIG` on N ranks of this machine through mpirun. Ctrl-C, SIGTERM, "
        "SIGUSR1 and\n"
        "SIGUSR2 ask the ranks to save and leave; a second Ctrl-C or SIGTERM stops at once. The "
        "exit code is\n"
        "that of the ranks.";
    line.options.add_options()("config", po::value<std::vector<std::string>>()->required(), "")(
        "ranks", po::value<int>()->required(), "number of ranks")(
        "tp", po::value<int>(), "same as parallel.tp=T")("fresh", po::bool_switch(),
                                                         "refuse to start where checkpoints exist")(
        "dry-run", po::bool_switch(), "print the command instead of running it")(
        "mpirun-args", po::value<std::string>()->default_value(""),
        "further arguments of mpirun, in one word")(
        "requeue", po::bool_switch(), "in a SLURM job: into the queue again after a stop (75)")(
        "stop-before", po::value<double>()->default_value(0.0),
        "in a SLURM job: save and leave when it ends in less than this many seconds");
    line.positional.add("config", -1);
    const auto values = parse_command_line(line, args);
    if (!values) return 0;
    const int ranks = (*values)["ranks"].as<int>();
    if (ranks < 1)
        throw ConfigError(
            {.what = "--ranks", .expected = "at least 1", .actual = std::to_string(ranks)});
    auto words = (*values)["config"].as<std::vector<std::string>>();
    if (values->contains("tp"))
        words.push_back(fmt::format("parallel.tp={}", (*values)["tp"].as<int>()));
    // One report here instead of one per rank.
    const std::string run_dir =
        resolve_for_world(load_run_config(words[0], {words.begin() + 1, words.end()}).config, ranks)
            .run_dir();
    if ((*values)["fresh"].as<bool>()) words.emplace_back("--fresh");
    LaunchPlan plan =
        plan_launch(ranks, split_words((*values)["mpirun-args"].as<std::string>()), words);
    // What the ranks print as the command that resumes the run.
    std::vector<std::string> typed = {this_program(), "launch"};
    typed.insert(typed.end(), args.begin(), args.end());
    plan.environment.push_back("STOA_COMMAND=" + shell_line(typed));
    if ((*values)["dry-run"].as<bool>()) {
        fmt::print("{}\n", shell_line(plan.command));
        return 0;
    }
    const auto job = slurm_job();
    if (job) write_slurm_event(run_dir, "slurm_job", *job);
    const int code = run_mpirun(plan, (*values)["stop-before"].as<double>());
    if (job && code == static_cast<int>(ExitCode::preempted) && (*values)["requeue"].as<bool>()) {
        std::signal(SIGTERM, SIG_IGN);  // SLURM's, to everything in a job that it requeues
        const RequeueResult again = requeue_slurm_job(*job);
        write_slurm_event(run_dir, again.requeued ? "requeue" : "no_requeue", *job, again.text);
        fmt::print(stderr, "stoa: {}\n", again.text);
    }
    return code;
}

}  // namespace stoa
