#include "launcher/fault_policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <csignal>
#include <cstring>
#include <utility>

namespace stoa {
namespace {

constexpr int kLostDaemon = 205;  // mpirun: the connection to another host's daemon has ended

std::string signal_name(int signal) {
    const char* name = sigabbrev_np(signal);
    return name == nullptr ? fmt::format("signal {}", signal) : std::string("SIG") + name;
}

Cause cause_of_code(int code) {
    switch (static_cast<ExitCode>(code)) {
        case ExitCode::config:
            return Cause::config;
        case ExitCode::data:
            return Cause::data;
        case ExitCode::memory:
            return Cause::memory;
        case ExitCode::device:
            return Cause::communication;
        case ExitCode::checkpoint:
            return Cause::checkpoint;
        case ExitCode::diverged:
            return Cause::diverged;
        case ExitCode::preempted:
        case ExitCode::interrupted:
            return Cause::preempted;
        case ExitCode::hang:
            return Cause::hang;
        default:
            return Cause::crash;
    }
}

// Ranks that left because something else had happened before.
bool is_consequence(const ExitRecord& r) {
    return r.code == static_cast<int>(ExitCode::peer_lost) ||
           r.code == static_cast<int>(ExitCode::fenced);
}

std::string who(int rank, const std::string& host, int pid) {
    if (rank < 0) return "a rank";
    std::string text = fmt::format("rank {}", rank);
    if (!host.empty()) text += " on " + host;
    if (pid > 0) text += fmt::format(" (pid {})", pid);
    return text;
}

std::string when(const std::string& phase, std::int64_t step) {
    if (phase.empty() && step < 0) return "";
    if (step < 0) return " in phase " + phase;
    return fmt::format(" {} step {}", phase.empty() || phase == "step" ? "in" : "in " + phase + ",",
                       step);
}

Fault from_verdict(const Verdict& v) {
    Fault f;
    f.kind = verdict_name(v.kind);
    const std::string cause = verdict_cause(v.kind);
    f.cause = cause == "lost_host" ? Cause::lost_host
              : cause == "hang"    ? Cause::hang
                                   : Cause::communication;
    f.code = static_cast<int>(ExitCode::hang);
    f.rank = v.rank;
    f.host = v.host;
    f.phase = phase_name(v.phase);
    f.step = v.step;
    f.site = v.site;
    f.waiting = v.waiting;
    f.text = v.text;
    f.noticed_ms = 1e3 * v.since_s;
    return f;
}

Fault from_record(const ExitRecord& r) {
    Fault f;
    f.cause = cause_of_code(r.code);
    f.kind = r.kind;
    f.code = r.code;
    f.rank = r.rank;
    f.host = r.host;
    f.pid = r.pid;
    f.phase = r.phase;
    f.step = r.step;
    f.site = r.site;
    std::string what = r.what.substr(0, r.what.find('\n'));
    if (!r.where.empty() && what.find(r.where) == std::string::npos)
        what = r.where.substr(0, r.where.find('\n')) + ": " + what;
    f.text = fmt::format("{}{}: {}", who(r.rank, r.host, r.pid), when(r.phase, r.step), what);
    return f;
}

// No record: the rank had no chance to write one, or never began.
Fault from_exit_code(const GenerationEnd& end) {
    Fault f;
    f.code = end.exit_code;
    if (end.first_dead) {
        f.rank = end.first_dead->rank;
        f.host = end.first_dead->host;
        f.pid = end.first_dead->pid;
        f.phase = end.first_dead->phase;
        f.step = end.first_dead->step;
    }
    const std::string subject = who(f.rank, f.host, f.pid), at = when(f.phase, f.step);
    if (end.runner_killed) {
        f.kind = end.runner + " " + signal_name(end.exit_code - 128);
        f.rank = -1;
        f.text =
            fmt::format("{} was ended by {}{}", end.runner, signal_name(end.exit_code - 128), at);
        return f;
    }
    if (end.exit_code == kLostDaemon) {
        f.cause = Cause::lost_host;
        f.kind = "lost daemon";
        f.text = end.runner + " has lost the daemon of " +
                 (f.host.empty() ? "another host" : "host " + f.host);
        return f;
    }
    if (end.exit_code > 128 && end.exit_code < 128 + NSIG) {
        const int signal = end.exit_code - 128;
        f.kind = signal_name(signal);
        if (signal == SIGKILL && end.oom_kills > 0) {
            f.cause = Cause::memory;
            f.kind = "out of memory (kernel)";
            f.text = fmt::format("{} was ended by the kernel for want of memory{}", subject, at);
        } else {
            f.cause = Cause::crash;
            f.text = fmt::format("{} was ended by {}{}", subject, f.kind, at);
        }
        return f;
    }
    if (!end.ranks_came) {
        f.cause = Cause::communication;
        f.kind = "start";
        f.text =
            fmt::format("{} ended with {} before any rank was there", end.runner, end.exit_code);
        return f;
    }
    f.cause = cause_of_code(end.exit_code);
    if (end.exit_code == 1 && end.first_dead) {
        f.cause = Cause::crash;
        f.kind = "exit without closing MPI";
        f.text = fmt::format("{} left without closing MPI{}", subject, at);
    } else {
        f.kind = fmt::format("exit {}", end.exit_code);
        f.text = fmt::format("{} left with exit code {}{}", subject, end.exit_code, at);
    }
    return f;
}

// mpirun, or a rank that waited for one there, gave the host up before the monitor would have.
Fault lost_before_its_limit(const GenerationEnd& end) {
    return {.cause = Cause::lost_host,
            .kind = "lost connection",
            .code = end.exit_code,
            .host = end.silent_host,
            .text = fmt::format("host {} is lost: {} ended with {} while nothing was heard of it",
                                end.silent_host, end.runner, end.exit_code)};
}

std::string key_of(const Fault& f) {
    return fmt::format("{} {} rank {} {} step {}", cause_name(f.cause), f.kind, f.rank, f.phase,
                       f.step);
}

}  // namespace

const char* cause_name(Cause cause) {
    constexpr std::array names{"config",        "data",       "memory",   "hardware",
                               "communication", "checkpoint", "diverged", "preempted",
                               "crash",         "hang",       "lost_host"};
    return names.at(static_cast<std::size_t>(cause));
}

std::optional<Fault> classify(const GenerationEnd& end) {
    if (end.verdict) {
        Fault f = from_verdict(*end.verdict);
        f.pid = end.verdict_pid;
        return f;
    }
    const auto code = static_cast<ExitCode>(end.exit_code);
    if (code == ExitCode::ok || code == ExitCode::preempted || code == ExitCode::interrupted)
        return {};
    if (!end.silent_host.empty() && !end.runner_killed) return lost_before_its_limit(end);
    const auto first = std::ranges::find_if_not(end.records, is_consequence);
    if (first == end.records.end()) return from_exit_code(end);
    // A rank that vanished before another one had an error to report is the cause of both.
    const bool died_before = end.first_dead && end.first_dead->rank != first->rank &&
                             end.first_dead->time < first->time && end.exit_code > 128;
    return died_before ? from_exit_code(end) : from_record(*first);
}

double backoff_seconds(int restarts) {
    if (restarts <= 0) return 0.0;
    return std::min(60.0, std::exp2(restarts - 1));
}

bool worth_restarting(const Fault& f) {
    const bool training = f.phase != "start" && f.phase != "restore" && !f.phase.empty();
    switch (f.cause) {
        case Cause::config:
        case Cause::data:
        case Cause::diverged:
            return false;
        case Cause::memory:  // a plan that does not fit never will
            return training || f.kind != "error";
        case Cause::checkpoint:  // none that could be used; one that cannot be written may be later
            return training;
        default:
            return true;
    }
}

RestartDecision decide_restart(RestartHistory& h, const Fault& fault,
                               const std::vector<std::int64_t>& checkpoints,
                               const RestartPolicy& policy) {
    using Action = RestartDecision::Action;
    const std::int64_t newest = checkpoints.empty() ? -1 : checkpoints.back();
    const bool progress = newest > h.best_step;
    if (progress) {
        h.best_step = newest;
        h.restarts = 0;
    }
    // Before the first step the step says nothing: a crash loop, which the budget ends.
    const bool at_a_step = fault.step >= 0 && fault.phase != "start" && fault.phase != "restore";
    const std::string key = key_of(fault);
    h.same_fault = at_a_step && key == h.last_fault ? h.same_fault + 1 : 1;
    h.last_fault = at_a_step ? key : "";

    if (!worth_restarting(fault))
        return {
            .action = Action::stop,
            .exit_code = fault.code,
            .why = fmt::format("not restarted: a {} fault comes again", cause_name(fault.cause))};
    if (policy.max_restarts <= 0)
        return {.action = Action::stop, .exit_code = fault.code, .why = "not restarted"};
    if (h.same_fault >= 3)
        return {
            .action = Action::give_up,
            .exit_code = static_cast<int>(ExitCode::gave_up),
            .why = fmt::format("the same fault at step {} three times, from an older checkpoint, "
                               "too",
                               fault.step)};
    if (h.restarts >= policy.max_restarts)
        return {.action = Action::give_up,
                .exit_code = static_cast<int>(ExitCode::gave_up),
                .why = fmt::format("{} restart{} without a newer checkpoint", h.restarts,
                                   h.restarts == 1 ? "" : "s")};
    RestartDecision d{.delay_s = backoff_seconds(h.restarts)};
    if (h.same_fault == 2) {
        d.resume_at_most = newest < 0 ? 0 : newest - 1;
        d.why =
            fmt::format("the same fault at step {} twice: from one checkpoint earlier", fault.step);
    }
    ++h.restarts;
    ++h.all_restarts;
    return d;
}

}  // namespace stoa
