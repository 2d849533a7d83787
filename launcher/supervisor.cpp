#include "launcher/supervisor.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "checkpoints/run_identity.h"
#include "launcher/generation.h"
#include "launcher/host_check.h"
#include "launcher/process.h"
#include "launcher/run_journal.h"
#include "launcher/run_lock.h"
#include "launcher/slurm_requeue.h"
#include "parallel/mpi_session.h"

namespace stoa {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr double kHostProbeSeconds = 5.0;  // between two looks for a host that has gone

struct Job {
    const LaunchOptions& options;
    std::string run_dir;  // absolute
    RunLock lock;
    RunStatus status;
    RestartHistory history;
    std::string token;
    Clock::time_point touched = Clock::now();
    SlurmDeadline slurm_end{};
    bool past_slurm_end = false;
};

std::string random_token() {
    std::random_device random;
    return fmt::format("{:08x}{:08x}", random(), random());
}

std::string make_run_directory(const std::string& path) {
    std::error_code error;
    fs::create_directories(path, error);
    if (error)
        throw DataError({.what = "cannot create the run directory",
                         .where = path,
                         .actual = error.message(),
                         .hint = "make it writable or choose another with run.dir=PATH"});
    return fs::canonical(path).string();
}

void say(const std::string& text) {
    fmt::print(stderr, "stoa: {}\n", text);
    std::fflush(stderr);
}

void set_state(Job& job, const std::string& state) {
    job.status.state = state;
    job.lock.touch();
    job.touched = Clock::now();
    write_status(job.run_dir, job.status);
}

// What a supervisor that was killed has left on this host.
void clean_up_before(Job& job) {
    if (!job.lock.stale().empty())
        say("taking over the run directory from a job that has ended: " + job.lock.stale());
    const int ended = end_processes_of(job.run_dir);
    if (ended > 0)
        say(fmt::format("ended {} process{} that it left", ended, ended == 1 ? "" : "es"));
    const std::string prefix = shared_prefix(job.run_dir);
    std::error_code error;
    for (fs::directory_iterator it("/dev/shm", error), end; !error && it != end;
         it.increment(error))
        if (it->path().string().starts_with(prefix)) {
            std::error_code ignored;
            fs::remove_all(it->path(), ignored);
        }
}

// Ranks of a killed supervisor on other hosts leave when they have not heard it for so long.
void wait_for_old_ranks(const Job& job, const RunStatus& before, SignalQueue& signals,
                        StopState& stop) {
    const bool running =
        before.state == "RUN" || before.state == "LAUNCH" || before.state == "DRAIN";
    if (job.lock.stale().empty() || !running || before.hosts.size() < 2) return;
    const double seconds = 1.2 * job.options.fence_s + 1.0;
    say(fmt::format("waiting {:.0f} s for ranks of the former job on other hosts", seconds));
    wait_seconds(seconds, signals, stop, [] {});
}

void add_default(std::vector<std::string>& env, const std::string& name, const std::string& value) {
    if (value_in(env, name).empty()) env.push_back(name + "=" + value);
}

std::vector<std::string> base_environment(const Job& job) {
    const LaunchOptions& o = job.options;
    std::vector<std::string> env = clean_environment();
    std::erase_if(env, [](const std::string& e) {  // of an outer job
        for (const char* name :
             {"STOA_CONTROL", "STOA_GENERATION", "STOA_BOARD_DIR", "STOA_FENCE_S", "STOA_EXIT_DIR",
              "STOA_JOB", "STOA_RESUME_AT_MOST", "STOA_COMMAND"})
            if (e.starts_with(std::string(name) + "=") ||
                e.starts_with(std::string(name) + "_TOKEN="))
                return true;
        return false;
    });
    env.push_back("STOA_COMMAND=" + o.typed);
    env.push_back("STOA_JOB=" + job.run_dir);
    env.push_back("STOA_EXIT_DIR=" + job.run_dir + "/exit");
    if (!o.limits.empty()) {
        std::erase_if(env, [](const std::string& e) { return e.starts_with("STOA_LIMITS="); });
        env.push_back("STOA_LIMITS=" + o.limits);
    }
    // As the environment, so that what the user sets, there or with --mpirun-args, goes first.
    add_default(env, "OMPI_MCA_odls_base_sigkill_timeout", "0");
    add_default(env, "OMPI_MCA_oob_tcp_keepalive_time", std::to_string(o.keepalive_s));
    add_default(env, "OMPI_MCA_oob_tcp_keepalive_intvl", std::to_string(o.keepalive_interval_s));
    add_default(env, "OMPI_MCA_oob_tcp_keepalive_probes", std::to_string(o.keepalive_probes));
    add_default(env, "OMPI_MCA_orte_startup_timeout", "60");
    if (!o.rsh_agent.empty()) add_default(env, "OMPI_MCA_plm_rsh_agent", o.rsh_agent);
    if (!o.interface.empty()) {
        add_default(env, "OMPI_MCA_btl_tcp_if_include", o.interface);
        add_default(env, "OMPI_MCA_oob_tcp_if_include", o.interface);
        env.push_back("STOA_INTERFACE=" + o.interface);
    }
    return env;
}

void add_generation(std::vector<std::string>& env, const std::string& shared_dir) {
    add_default(env, "OMPI_MCA_btl_vader_backing_directory", shared_dir);
    add_default(env, "OMPI_MCA_osc_sm_backing_directory", shared_dir);
    add_default(env, "OMPI_MCA_orte_tmpdir_base", shared_dir);
}

std::string write_hostfile(const std::string& shared_dir, const std::vector<Host>& placed) {
    std::error_code ignored;
    fs::create_directories(shared_dir, ignored);
    const std::string path = shared_dir + "/hosts";
    std::ofstream out(path);
    for (const Host& h : placed)
        out << h.name << " slots=" << h.slots << "\n";
    return path;
}

// -x NAME for what the ranks on other hosts need.
void forward_environment(std::vector<std::string>& command, const std::vector<std::string>& env) {
    std::vector<std::string> flags;
    const auto add = [&](const std::string& name) { flags.insert(flags.end(), {"-x", name}); };
    for (const std::string& e : env)
        if (e.starts_with("STOA_") || e.starts_with("LD_LIBRARY_PATH="))
            add(e.substr(0, e.find('=')));
    for (const char* name : {"STOA_CONTROL", "STOA_CONTROL_TOKEN", "STOA_GENERATION",
                             "STOA_BOARD_DIR", "STOA_FENCE_S"})
        add(name);
    const auto program = std::ranges::find(command, this_program());
    command.insert(program, flags.begin(), flags.end());
}

HostCheck host_check(const Job& job) {
    HostCheck check{.mpirun = {"mpirun", "--bind-to", "none"},
                    .environment = base_environment(job),
                    .run_dir = job.run_dir,
                    .words = job.options.words};
    check.mpirun.insert(check.mpirun.end(), job.options.mpirun_args.begin(),
                        job.options.mpirun_args.end());
    return check;
}

void check_hosts(const Job& job) {
    if (job.options.one_machine) {
        std::error_code error;
        const auto space = fs::space(job.run_dir, error);
        constexpr std::uintmax_t kLittle = std::uintmax_t{256} << 20;
        if (!error && space.available < kLittle)
            say(fmt::format("warning: {} MiB of free disk for {}", space.available >> 20,
                            job.run_dir));
        return;
    }
    for (const std::string& warning :
         judge_hosts(ask_hosts(host_check(job), job.options.hosts), job.run_dir))
        say("warning: " + warning);
}

std::vector<Host> hosts_that_answer(const Job& job) {
    if (job.options.one_machine) return job.options.hosts;
    std::vector<Host> alive;
    HostCheck check = host_check(job);
    check.seconds = kHostProbeSeconds;
    const auto reports = ask_hosts(check, job.options.hosts);
    for (std::size_t i = 0; i < reports.size(); ++i)
        if (reports[i].reached) alive.push_back(job.options.hosts[i]);
    return alive;
}

/// Ranks per host of the next generation: all of them, spares taken in; fewer where that is
/// allowed; empty while neither goes.
std::vector<Host> place_on(const Job& job, const std::vector<Host>& alive) {
    const LaunchOptions& o = job.options;
    const int tp = static_cast<int>(o.config.parallel.tp);
    const int room = capacity(alive, tp, o.allow_tp_across);
    if (room >= o.ranks) return place_ranks(alive, o.ranks, tp, o.allow_tp_across);
    if (o.min_ranks <= 0) return {};
    const int world = choose_world(o.config, room, o.min_ranks);
    return world == 0 ? std::vector<Host>{} : place_ranks(alive, world, tp, o.allow_tp_across);
}

int ranks_in(const std::vector<Host>& placed) {
    int n = 0;
    for (const Host& h : placed)
        n += h.slots;
    return n;
}

GenerationPlan plan_generation(Job& job, const std::vector<Host>& placed,
                               std::optional<std::int64_t> resume_at_most, bool first) {
    LaunchOptions o = job.options;
    const int world = ranks_in(placed);
    if (world != o.ranks && o.config.parallel.dp != 0)
        o.words.push_back(fmt::format("parallel.dp={}", world / o.config.parallel.tp));
    o.fresh = o.fresh && first;
    GenerationPlan plan{
        .number = job.status.generation,
        .placed = placed,
        .shared_dir = fmt::format("{}{:04}", shared_prefix(job.run_dir), job.status.generation),
        .run_dir = job.run_dir,
        .token = job.token,
        .limits = parse_limits(o.limits),
        .fence_s = o.fence_s};
    plan.environment = base_environment(job);
    add_generation(plan.environment, plan.shared_dir);
    if (resume_at_most)
        plan.environment.push_back(fmt::format("STOA_RESUME_AT_MOST={}", *resume_at_most));
    const std::string hostfile = o.one_machine ? "" : write_hostfile(plan.shared_dir, placed);
    plan.command = worker_command(o, placed, hostfile);
    if (!o.one_machine && !o.srun) forward_environment(plan.command, plan.environment);
    return plan;
}

// SLURM's signal may never come: a request of our own, like that one.
void stop_before_slurm_does(Job& job) {
    if (job.past_slurm_end || !job.slurm_end.reached()) return;
    job.past_slurm_end = true;
    say(fmt::format("the SLURM job ends in {:.0f} s", std::max(0.0, job.slurm_end.seconds_left())));
    kill(getpid(), SIGUSR2);
}

void tick(Job& job, std::int64_t step) {
    stop_before_slurm_does(job);
    const bool moved = step > job.status.step;
    job.status.step = std::max(job.status.step, step);
    if (!moved && Clock::now() - job.touched < std::chrono::seconds(5)) return;
    set_state(job, job.status.state == "LAUNCH" ? "RUN" : job.status.state);
}

double unix_now() {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch())
        .count();
}

// Written as soon as it is known, before what is left is ended.
void report_fault(Job& job, Fault& fault, const GenerationEnd& end) {
    double began = 0.0;
    if (!end.records.empty()) began = end.records.front().time;
    if (end.first_dead && (began == 0.0 || end.first_dead->time < began))
        began = end.first_dead->time;
    if (fault.noticed_ms == 0.0 && began > 0.0) fault.noticed_ms = 1e3 * (unix_now() - began);
    job.status.fault = fault.text;
    write_supervisor_event(job.run_dir, "fault", std::max<std::int64_t>(fault.step, 0),
                           fault_fields(fault, job.status.generation));
    if (worth_restarting(fault)) say(fault.text);  // else the last line has it
}

int finish(Job& job, const std::string& state, int code) {
    job.status.exit_code = code;
    set_state(job, state);
    write_supervisor_event(job.run_dir, "end", job.status.step,
                           {{"generation", std::to_string(job.status.generation), true},
                            {"state", state},
                            {"exit_code", std::to_string(code), true},
                            {"restarts", std::to_string(job.history.all_restarts), true}});
    return code;
}

/// The code of a job that was asked to stop.
int finish_stopped(Job& job, const GenerationResult& result, const StopState& stop,
                   const std::optional<Fault>& fault) {
    const int code = result.end.exit_code;
    if (result.at_once)
        return finish(job, "STOPPED", stop.interrupted ? stop.code() : 128 + SIGTERM);
    if (result.past_deadline) return finish(job, "PREEMPTED", stop.code());
    if (code == 0) return finish(job, "DONE", 0);
    // Before they are ready to save, ranks simply end by SIGUSR2: run again is right, too.
    if (code == 128 + SIGUSR2) {
        say("stopped before training began, nothing was saved");
        return finish(job, "PREEMPTED", stop.code());
    }
    if (!fault) return finish(job, "PREEMPTED", stop.code());
    const bool error = fault->code > 0 && fault->code <= static_cast<int>(ExitCode::diverged);
    if (error) return finish(job, "FAILED", fault->code);
    say("the ranks failed while they were to save; the last checkpoint stands");
    return finish(job, "PREEMPTED", stop.code());
}

/// Waits until there are hosts for the job again. Empty: asked to stop.
std::vector<Host> next_placement(Job& job, const std::vector<Host>& last, SignalQueue& signals,
                                 StopState& stop) {
    if (job.options.one_machine) return last;
    for (bool told = false;; told = true) {
        const std::vector<Host> alive = hosts_that_answer(job);
        const std::vector<Host> placed = place_on(job, alive);
        if (!placed.empty()) return placed;
        if (!told) {
            const int room = capacity(alive, static_cast<int>(job.options.config.parallel.tp),
                                      job.options.allow_tp_across);
            say(fmt::format(
                "waiting for hosts: {} of {} ranks have a place{}", room, job.options.ranks,
                job.options.min_ranks > 0 ? fmt::format(" (--min-ranks {})", job.options.min_ranks)
                                          : ""));
            set_state(job, "WAIT_HOSTS");
            write_supervisor_event(job.run_dir, "wait_hosts", job.status.step,
                                   {{"room", std::to_string(room), true},
                                    {"ranks", std::to_string(job.options.ranks), true}});
        }
        if (!wait_seconds(kHostProbeSeconds, signals, stop, [&] { tick(job, 0); })) return {};
    }
}

int run_job(Job& job, SignalQueue& signals, StopState& stop) {
    std::vector<Host> placed =
        place_ranks(job.options.hosts, job.options.ranks,
                    static_cast<int>(job.options.config.parallel.tp), job.options.allow_tp_across);
    std::optional<std::int64_t> resume_at_most;
    for (bool first = true;; first = false) {
        ++job.status.generation;
        job.status.ranks = ranks_in(placed);
        job.status.hosts = placed;
        job.status.restarts = job.history.all_restarts;
        const GenerationPlan plan = plan_generation(job, placed, resume_at_most, first);
        job.status.shared_dir = plan.shared_dir;
        write_generation(job.run_dir, plan.number);  // from here on older ranks commit nothing
        set_state(job, "LAUNCH");
        write_supervisor_event(job.run_dir, "launch", job.status.step,
                               {{"generation", std::to_string(plan.number), true},
                                {"ranks", std::to_string(job.status.ranks), true},
                                {"hosts", std::to_string(placed.size()), true}});
        std::optional<Fault> fault;
        const GenerationResult result = run_generation(
            plan, signals, stop,
            {.tick =
                 [&](std::int64_t step) {
                     if (stop.asked()) job.status.state = "DRAIN";
                     tick(job, step);
                 },
             .ended =
                 [&](const GenerationEnd& end) {
                     if (stop.urgent >= 2) return;
                     fault = classify(end);
                     const bool too_early = stop.asked() && end.exit_code == 128 + SIGUSR2;
                     if (fault && !too_early) report_fault(job, *fault, end);
                 }});
        tick(job, result.step);
        if (stop.asked()) return finish_stopped(job, result, stop, fault);
        if (!fault) {
            const bool done = result.end.exit_code == 0;
            return finish(job, done ? "DONE" : "PREEMPTED", result.end.exit_code);
        }
        set_state(job, "FAILED");
        const RestartDecision d = decide_restart(job.history, *fault, checkpoint_steps(job.run_dir),
                                                 job.options.restarts);
        if (d.action != RestartDecision::Action::restart) {
            const bool gave_up = d.action == RestartDecision::Action::give_up;
            say(fmt::format("{}{}; first cause: {}: {}", gave_up ? "gave up: " : "", d.why,
                            cause_name(fault->cause), fault->text));
            return finish(job, gave_up ? "GAVE_UP" : "FAILED", d.exit_code);
        }
        resume_at_most = d.resume_at_most;
        if (!d.why.empty()) say(d.why);
        say(fmt::format("restart {} of {} {}", job.history.restarts,
                        job.options.restarts.max_restarts,
                        d.delay_s > 0.0 ? fmt::format("in {:.0f} s", d.delay_s) : "now"));
        set_state(job, "BACKOFF");
        const bool go_on = wait_seconds(d.delay_s, signals, stop, [&] { tick(job, 0); });
        if (go_on) placed = next_placement(job, placed, signals, stop);
        if (!go_on || placed.empty()) {
            say("stopped between two starts; the last checkpoint stands");
            return finish(job, "PREEMPTED", stop.code());
        }
        write_supervisor_event(job.run_dir, "restart", job.status.step,
                               {{"generation", std::to_string(plan.number + 1), true},
                                {"restart", std::to_string(job.history.restarts), true},
                                {"delay_s", fmt::format("{}", d.delay_s), true},
                                {"why", d.why}});
    }
}

}  // namespace

std::string shared_prefix(const std::string& run_dir) {
    std::uint64_t h = 14695981039346656037ull;  // FNV-1a
    for (const unsigned char c : run_dir)
        h = (h ^ c) * 1099511628211ull;
    return fmt::format("/dev/shm/stoa-{}-{:012x}-g", getuid(), h >> 16);
}

std::vector<std::string> worker_command(const LaunchOptions& o, const std::vector<Host>& placed,
                                        const std::string& hostfile) {
    const std::string n = std::to_string(ranks_in(placed));
    std::vector<std::string> command;
    if (o.srun) {
        std::string names;
        for (const Host& h : placed)
            names += (names.empty() ? "" : ",") + h.name;
        command = {"srun",
                   "--mpi=pmix",
                   "-n",
                   n,
                   "-N",
                   std::to_string(placed.size()),
                   "-w",
                   names,
                   "--kill-on-bad-exit=1",
                   "--cpu-bind=none",
                   "--distribution=block"};
    } else {
        // -q: the exit code is ours to explain, not mpirun's. Ranks share cores freely, and on one
        // machine there may be more of them than cores.
        command = {"mpirun", "-q", "-n", n, "--bind-to", "none"};
        if (o.one_machine) command.emplace_back("--oversubscribe");
        if (!hostfile.empty()) command.insert(command.end(), {"--hostfile", hostfile});
    }
    command.insert(command.end(), o.mpirun_args.begin(), o.mpirun_args.end());
    command.push_back(this_program());
    command.emplace_back("train");
    command.insert(command.end(), o.words.begin(), o.words.end());
    if (o.fresh) command.emplace_back("--fresh");
    return command;
}

int supervise(const LaunchOptions& options) {
    SignalQueue signals;
    StopState stop{.term_grace_s = options.term_grace_s};
    Job job{.options = options,
            .run_dir = make_run_directory(options.config.run_dir()),
            .lock = {},
            .status = {},
            .history = {},
            .token = random_token()};
    job.lock = RunLock(job.run_dir, "stoa launch");
    const RunStatus before = read_status(job.run_dir);
    job.status.generation =
        std::max(before.generation, static_cast<int>(read_generation(job.run_dir)));
    job.status.step = before.step;
    if (const auto slurm = slurm_job()) {
        write_slurm_event(job.run_dir, "slurm_job", *slurm);
        job.slurm_end = SlurmDeadline(*slurm, options.stop_before_s);
    }
    clean_up_before(job);
    wait_for_old_ranks(job, before, signals, stop);
    check_hosts(job);
    const std::vector<std::int64_t> checkpoints = checkpoint_steps(job.run_dir);
    job.history.best_step = checkpoints.empty() ? -1 : checkpoints.back();
    return run_job(job, signals, stop);
}

}  // namespace stoa
