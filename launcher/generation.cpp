#include "launcher/generation.h"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <map>
#include <set>

#include "launcher/process.h"
#include "launcher/run_journal.h"
#include "parallel/monitor.h"
#include "parallel/mpi_session.h"

namespace stoa {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr int kTickMs = 100;                  // how often the monitor wants to be looked at
constexpr double kAskAgainSeconds = 10;       // a request that came before the ranks were there
constexpr double kRunnerLeavesSeconds = 2.0;  // mpirun, after one of its ranks has died

double unix_now() {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch())
        .count();
}

double since(SteadyTime t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

// Steps of ending a generation that does not end by itself, in this order.
enum class Ending { no, told, terminated, killed };

struct Generation {
    const GenerationPlan& plan;
    Monitor monitor;
    pid_t runner = 0;
    int epoll = -1;
    std::map<int, int> rank_of_fd;  // pidfds of local ranks
    std::set<int> seen_ranks, dead_ranks;
    std::optional<DeadRank> first_dead;
    std::string silent_host;    // when the first rank died
    std::optional<int> status;  // of the runner, when it is gone
    std::optional<Verdict> verdict;
    Ending ending = Ending::no;
    SteadyTime ending_since{};
    bool drained = false;
    SteadyTime asked_at{};
    bool ranks_announced = false;

    explicit Generation(const GenerationPlan& p)
        : plan(p),
          monitor({.world = world_of(p),
                   .generation = p.number,
                   .token = p.token,
                   .limits = p.limits}) {
        epoll = epoll_create1(EPOLL_CLOEXEC);
    }
    ~Generation() {
        for (const auto& [fd, rank] : rank_of_fd)
            close(fd);
        close(epoll);
    }
    static int world_of(const GenerationPlan& p) {
        int n = 0;
        for (const Host& h : p.placed)
            n += h.slots;
        return n;
    }
    int world() const { return world_of(plan); }
};

void watch(int epoll, int fd) {
    epoll_event event{.events = EPOLLIN, .data = {.fd = fd}};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

// Another host whose ranks are all silent over connections that nobody has closed; "": none.
std::string silent_host(const Generation& g) {
    constexpr double kSilent = 1.5;  // seconds: several heartbeats
    std::map<std::string, bool> silent;
    for (const RankReport& r : g.monitor.ranks()) {
        if (!r.known || r.local || r.finished) continue;
        const bool quiet = r.connected && g.monitor.now() - r.heard_at > kSilent;
        silent[r.host] = silent.try_emplace(r.host, true).first->second && quiet;
    }
    for (const auto& [host, yes] : silent)
        if (yes) return host;
    return "";
}

void note_death(Generation& g, int rank) {
    if (!g.dead_ranks.insert(rank).second) return;
    const RankReport& r = g.monitor.rank(rank);
    if (r.finished || g.first_dead || g.ending != Ending::no) return;
    g.first_dead = DeadRank{.rank = rank,
                            .pid = r.pid,
                            .host = r.host,
                            .phase = phase_name(r.phase),
                            .step = r.step,
                            .time = unix_now()};
    g.silent_host = silent_host(g);  // before mpirun, who gives it up, has ended the others
    if (!r.local) return;            // its board outlives it, and is ahead of its last heartbeat
    const BoardView board = read_board_file(fmt::format("{}/rank-{:04}", g.plan.shared_dir, rank));
    if (board.rank != rank || board.generation != g.plan.number) return;
    g.first_dead->phase = phase_name(board.phase);
    g.first_dead->step = board.step;
}

// A rank has said hello: where its end will be seen.
void meet_rank(Generation& g, int rank) {
    if (!g.seen_ranks.insert(rank).second) return;
    const RankReport& r = g.monitor.rank(rank);
    if (!r.local || r.pid <= 0) return;
    const int fd = open_pid(r.pid);
    if (fd < 0) return note_death(g, rank);
    g.rank_of_fd[fd] = rank;
    watch(g.epoll, fd);
}

void announce_ranks(Generation& g) {
    if (g.ranks_announced || static_cast<int>(g.seen_ranks.size()) < g.world()) return;
    g.ranks_announced = true;
    std::string list = "[";
    for (const RankReport& r : g.monitor.ranks())
        list += fmt::format("{}{{\"rank\":{},\"host\":\"{}\",\"pid\":{}}}",
                            list.size() > 1 ? "," : "", r.rank, r.host, r.pid);
    write_supervisor_event(
        g.plan.run_dir, "ranks", 0,
        {{"generation", std::to_string(g.plan.number), true}, {"ranks", list + "]", true}});
}

void take_monitor_events(Generation& g) {
    for (const MonitorEvent& e : g.monitor.take_events()) {
        if (e.event == "hello") meet_rank(g, e.rank);
        if (e.event == "hello" || e.event == "bye" || e.event == "committed") continue;
        std::vector<EventField> fields{{"generation", std::to_string(g.plan.number), true},
                                       {"rank", std::to_string(e.rank), true}};
        for (const auto& [key, value] : e.fields)
            fields.push_back({key, value});
        write_supervisor_event(g.plan.run_dir, e.event, e.step, fields);
    }
    announce_ranks(g);
}

void reap(Generation& g) {
    int status = 0;
    for (pid_t pid = 0; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
        if (pid == g.runner) g.status = status;
}

bool under_mpirun(const GenerationPlan& plan) { return plan.command.at(0) == "mpirun"; }

void begin_ending(Generation& g, Ending how) {
    if (g.ending >= how) return;
    if (g.ending == Ending::no) g.ending_since = Clock::now();
    g.ending = how;
    if (how == Ending::terminated) kill(g.runner, under_mpirun(g.plan) ? SIGINT : SIGTERM);
    if (how == Ending::killed) kill(-g.runner, SIGKILL);
}

// Told to leave, ranks write their stacks first; then mpirun ends them, then we do.
void go_on_ending(Generation& g) {
    const double t = since(g.ending_since);
    if (g.ending == Ending::told && g.verdict && t > 0.5)
        for (const int rank : g.verdict->stopped)
            if (const RankReport& r = g.monitor.rank(rank); r.local && r.pid > 0)
                kill(r.pid, SIGKILL);
    if (g.ending == Ending::told && t > 1.0) begin_ending(g, Ending::terminated);
    if (g.ending == Ending::terminated && t > 2.0) begin_ending(g, Ending::killed);
}

void look_for_verdict(Generation& g) {
    // A rank that has died is the cause; that others now wait for it is not news.
    if (g.ending != Ending::no || g.first_dead) return;
    g.verdict = g.monitor.verdict();
    if (!g.verdict) return;
    begin_ending(g, Ending::told);
    g.monitor.quit(static_cast<int>(ExitCode::hang), g.verdict->text, g.verdict->stopped);
}

bool all_connected(const Generation& g) {
    return std::ranges::all_of(g.monitor.ranks(), [](const RankReport& r) { return r.connected; });
}

// Over the control connections; SIGUSR2, which mpirun passes to every rank, where some have none.
void pass_on_requests(Generation& g, StopState& stop, GenerationResult& result) {
    if (!stop.asked() || g.ending != Ending::no) return;
    if (!g.drained) {
        g.drained = true;
        g.asked_at = Clock::now();
        g.monitor.drain(stop.interrupted ? "interrupted" : "preempted");
        if (!all_connected(g)) kill(g.runner, SIGUSR2);
    } else if (since(g.asked_at) > kAskAgainSeconds) {
        g.asked_at = Clock::now();
        kill(g.runner, SIGUSR2);
    }
    result.at_once = stop.urgent >= 2;
    result.past_deadline = !result.at_once && Clock::now() >= stop.deadline;
    if (result.at_once) fmt::print(stderr, "stoa: stopped at once, nothing was saved\n");
    if (result.past_deadline)
        fmt::print(stderr, "stoa: the time to save is over; the last checkpoint stands\n");
    if (result.at_once || result.past_deadline) begin_ending(g, Ending::terminated);
}

std::int64_t furthest_step(const Generation& g) {
    std::int64_t step = 0;
    for (const RankReport& r : g.monitor.ranks())
        step = std::max(step, r.step);
    return step;
}

void wait_for_events(Generation& g) {
    epoll_event events[64];
    const int n = epoll_wait(g.epoll, events, 64, kTickMs);
    std::vector<int> died;  // in the order in which they became ready
    for (int i = 0; i < n; ++i)
        if (const auto it = g.rank_of_fd.find(events[i].data.fd); it != g.rank_of_fd.end())
            died.push_back(it->first);
    g.monitor.poll();  // a goodbye may have come before the end
    take_monitor_events(g);
    for (const int fd : died) {
        note_death(g, g.rank_of_fd.at(fd));
        g.rank_of_fd.erase(fd);
        close(fd);
    }
}

// Ranks of other hosts, of which only their connections are seen.
void note_lost_connections(Generation& g) {
    for (const RankReport& r : g.monitor.ranks())
        if (r.known && !r.local && !r.connected && !r.finished) note_death(g, r.rank);
}

void end_local_processes(Generation& g) {
    for (int i = 0; i < 300; ++i) {
        bool any = false;
        for (const pid_t child : children_of(getpid())) {
            if (start_environment(child, "STOA_JOB") != g.plan.run_dir || !on_this_host(child))
                continue;
            any = true;
            kill(child, SIGKILL);
        }
        reap(g);
        if (!any) return;
        usleep(10'000);
    }
}

// Ranks of other hosts leave by themselves: at the latest when they have lost us for so long.
void wait_for_fence(Generation& g, SignalQueue& signals, StopState& stop) {
    const double silence = 1.2 * g.plan.fence_s + 1.0;
    const auto begin = Clock::now();
    const auto gone = [&](const RankReport& r) {
        return !r.known || r.local || r.finished || !r.connected ||
               g.monitor.now() - r.heard_at > silence;
    };
    while (!std::ranges::all_of(g.monitor.ranks(), gone) && since(begin) < silence &&
           stop.urgent < 2) {
        wait_for_events(g);
        signals.take(stop);
        reap(g);
    }
}

std::vector<std::string> environment_of(const Generation& g) {
    std::vector<std::string> env = g.plan.environment;
    std::string addresses;
    for (const std::string& a : g.monitor.addresses())
        addresses += (addresses.empty() ? "" : ",") + a;
    env.push_back("STOA_CONTROL=" + addresses);
    env.push_back("STOA_CONTROL_TOKEN=" + g.plan.token);
    env.push_back(fmt::format("STOA_GENERATION={}", g.plan.number));
    env.push_back("STOA_BOARD_DIR=" + g.plan.shared_dir);
    env.push_back(fmt::format("STOA_FENCE_S={}", g.plan.fence_s));
    return env;
}

}  // namespace

int StopState::code() const {
    return static_cast<int>(interrupted ? ExitCode::interrupted : ExitCode::preempted);
}

SignalQueue::SignalQueue() {
    sigset_t set;
    sigemptyset(&set);
    for (const int s : {SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGHUP, SIGCHLD}) {
        std::signal(s, SIG_DFL);  // one that is ignored never reaches the descriptor
        sigaddset(&set, s);
    }
    sigprocmask(SIG_BLOCK, &set, nullptr);
    std::signal(SIGPIPE, SIG_IGN);
    fd_ = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

SignalQueue::~SignalQueue() {
    close(fd_);
    sigset_t set;
    sigemptyset(&set);
    for (const int s : {SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGHUP, SIGCHLD})
        sigaddset(&set, s);
    sigprocmask(SIG_UNBLOCK, &set, nullptr);
}

bool SignalQueue::take(StopState& stop) {
    bool any = false;
    signalfd_siginfo info{};
    while (read(fd_, &info, sizeof info) == sizeof info) {
        const int s = static_cast<int>(info.ssi_signo);
        if (s == SIGCHLD || s == SIGHUP)
            continue;  // a terminal that goes away is no reason to stop
        any = true;
        const bool urgent = s == SIGINT || s == SIGTERM;
        if (s == SIGINT) stop.interrupted = true;
        if (urgent) ++stop.urgent;
        if (urgent && stop.term_grace_s > 0.0 && stop.deadline == SteadyTime::max())
            stop.deadline = Clock::now() + milliseconds(static_cast<long>(1e3 * stop.term_grace_s));
        if (stop.requests++ == 0)
            fmt::print(stderr,
                       "stoa: stopping after this step and saving; Ctrl-C again stops at once\n");
    }
    return any;
}

bool wait_seconds(double seconds, SignalQueue& signals, StopState& stop,
                  const std::function<void()>& tick) {
    const auto begin = Clock::now();
    while (since(begin) < seconds) {
        signals.take(stop);
        if (stop.asked()) return false;
        tick();
        usleep(static_cast<useconds_t>(1e6 * std::clamp(seconds - since(begin), 0.0, 0.1)));
    }
    return !stop.asked();
}

int end_processes_of(const std::string& run_dir) {
    int ended = 0;
    for (int i = 0; i < 300; ++i) {
        const std::vector<pid_t> alive = processes_with("STOA_JOB", run_dir);
        if (alive.empty()) break;
        if (i == 0) ended = static_cast<int>(alive.size());
        for (const pid_t pid : alive)
            kill(pid, SIGKILL);
        while (waitpid(-1, nullptr, WNOHANG) > 0) {
        }
        usleep(10'000);
    }
    return ended;
}

GenerationResult run_generation(const GenerationPlan& plan, SignalQueue& signals, StopState& stop,
                                const GenerationCalls& calls) {
    prctl(PR_SET_CHILD_SUBREAPER, 1);  // ranks whose mpirun has died come to us
    std::error_code error;
    fs::create_directories(plan.shared_dir, error);
    if (error)
        throw DeviceError({.what = "cannot make a folder in shared memory",
                           .where = plan.shared_dir,
                           .actual = error.message()});
    GenerationResult result;
    result.end.runner = plan.command.at(0);
    const std::int64_t oom_before = oom_kill_count();
    {
        Generation g(plan);
        watch(g.epoll, signals.fd());
        watch(g.epoll, g.monitor.fd());
        try {
            g.runner = spawn({.command = plan.command,
                              .environment = environment_of(g),
                              .without_term = under_mpirun(plan)},
                             "install Open MPI (Debian: apt install openmpi-bin), or train in one "
                             "process with `stoa train`");
        } catch (const Error&) {
            fs::remove_all(plan.shared_dir, error);
            throw;
        }
        auto last_tick = Clock::now() - std::chrono::seconds(1);
        auto dead_since = SteadyTime::max();
        while (!g.status) {
            wait_for_events(g);
            signals.take(stop);
            reap(g);
            if (g.status) break;
            note_lost_connections(g);
            look_for_verdict(g);
            if (g.verdict && !result.end.verdict) {
                result.end.verdict = g.verdict;
                if (g.verdict->rank >= 0)
                    result.end.verdict_pid = g.monitor.rank(g.verdict->rank).pid;
                calls.ended(result.end);
            }
            pass_on_requests(g, stop, result);
            if (g.first_dead && dead_since == SteadyTime::max()) dead_since = Clock::now();
            if (dead_since != SteadyTime::max() && since(dead_since) > kRunnerLeavesSeconds)
                begin_ending(g, Ending::terminated);
            go_on_ending(g);
            if (since(last_tick) >= 1.0) {
                last_tick = Clock::now();
                calls.tick(furthest_step(g));
            }
        }
        wait_for_events(g);  // goodbyes and ends that came with the last one
        if (*g.status != 0) note_lost_connections(g);
        result.end.exit_code =
            WIFEXITED(*g.status) ? WEXITSTATUS(*g.status) : 128 + WTERMSIG(*g.status);
        result.end.runner_killed = WIFSIGNALED(*g.status) && g.ending == Ending::no;
        result.end.first_dead = g.first_dead;
        result.end.silent_host = g.first_dead ? g.silent_host : silent_host(g);
        result.end.ranks_came = !g.seen_ranks.empty();
        result.end.oom_kills = oom_kill_count() - oom_before;
        result.step = furthest_step(g);
        result.end.records = read_exit_records(plan.run_dir + "/exit", plan.number);
        if (!g.verdict) calls.ended(result.end);
        end_local_processes(g);
        if (result.end.exit_code != 0) wait_for_fence(g, signals, stop);
    }
    fs::remove_all(plan.shared_dir, error);
    return result;
}

}  // namespace stoa
