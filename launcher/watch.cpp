#include "launcher/watch.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "kernels/core/log.h"
#include "parallel/board.h"
#include "parallel/collectives.h"
#include "parallel/control.h"
#include "parallel/exit_record.h"
#include "parallel/monitor.h"
#include "parallel/mpi_session.h"
#include "parallel/stack_dump.h"
#include "trainer/stop_signal.h"

namespace stoa {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

std::string env_text(const char* name, const std::string& otherwise = "") {
    const char* text = std::getenv(name);
    return text == nullptr || *text == '\0' ? otherwise : text;
}
double env_number(const char* name, double otherwise) {
    const char* text = std::getenv(name);
    const double value = text == nullptr ? 0.0 : std::atof(text);
    return value > 0.0 ? value : otherwise;
}

// Known before MPI is: what mpirun or srun has set.
int rank_before_mpi() {
    for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"})
        if (const std::string text = env_text(name); !text.empty()) return std::atoi(text.c_str());
    return 0;
}

std::string random_token() {
    std::random_device device;
    return fmt::format("{:08x}{:08x}", device(), device());
}

/// The run's events file, once there is a run.
class Records {
public:
    void open(const std::string& run_dir) {
        const std::scoped_lock lock(mutex_);
        run_dir_ = run_dir;
    }
    // Beside the lines of rank 0's main thread (trainer/metrics.h), so in one write. A full disk is
    // no reason not to go on.
    void write(const std::string& event, std::int64_t step, const ordered_json& fields) {
        const std::scoped_lock lock(mutex_);
        if (run_dir_.empty()) return;
        const std::time_t now = std::time(nullptr);
        std::tm utc{};
        gmtime_r(&now, &utc);
        char time[32];
        std::strftime(time, sizeof time, "%Y-%m-%dT%H:%M:%SZ", &utc);
        ordered_json line{
            {"v", 1}, {"event", event}, {"step", step}, {"time", time}, {"source", "monitor"}};
        line.update(fields);
        const std::string text =
            line.dump(-1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
        const int fd = ::open((run_dir_ + "/events.jsonl").c_str(),
                              O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
        if (fd < 0 || ::write(fd, text.data(), text.size()) < 0)
            log_warn("events.jsonl: not written");
        if (fd >= 0) ::close(fd);
    }

private:
    std::mutex mutex_;
    std::string run_dir_;
};

ordered_json fault_fields(const Verdict& v, int generation) {
    return {{"generation", generation},
            {"rank", v.rank},
            {"host", v.host},
            {"cause", verdict_cause(v.kind)},
            {"kind", verdict_name(v.kind)},
            {"phase", phase_name(v.phase)},
            {"site", v.site},
            {"waiting", v.waiting},
            {"noticed_ms", std::llround(1e3 * v.since_s)},
            {"text", v.text}};
}

/// A thread of rank 0 that is the monitor of a job without a supervisor.
class MonitorThread {
public:
    MonitorThread(MonitorOptions options, Records& records)
        : generation_(options.generation), records_(records), monitor_(std::move(options)) {
        thread_ = std::thread([this] { work(); });
    }
    ~MonitorThread() {
        closing_.store(true);
        thread_.join();
    }
    MonitorThread(const MonitorThread&) = delete;
    MonitorThread& operator=(const MonitorThread&) = delete;
    std::vector<std::string> addresses() const { return monitor_.addresses(); }

private:
    static constexpr int kTickMs = 50;

    void tick() {
        pollfd ready{.fd = monitor_.fd(), .events = POLLIN, .revents = 0};
        ::poll(&ready, 1, kTickMs);
        monitor_.poll();
    }

    void work() {
        pthread_setname_np(pthread_self(), "stoa-monitor");
        sigset_t all;
        sigfillset(&all);
        sigdelset(&all, stack_dump_signal());
        pthread_sigmask(SIG_BLOCK, &all, nullptr);
        while (!closing_.load()) {
            tick();
            for (const MonitorEvent& e : monitor_.take_events())
                if (e.event == "straggler") tell_straggler(e);
            if (const auto v = monitor_.verdict()) end_job(*v);
        }
        // Goodbyes of ranks that are a little later, so that they do not see a lost monitor.
        const double end = monitor_.now() + 2.0;
        while (!monitor_.all_gone() && monitor_.now() < end)
            tick();
    }

    void tell_straggler(const MonitorEvent& e) {
        const auto& f = e.fields;
        records_.write("straggler", e.step,
                       {{"rank", e.rank},
                        {"host", f.at("host")},
                        {"ratio", std::stod(f.at("ratio"))},
                        {"own_ms", std::stod(f.at("own_ms"))},
                        {"median_ms", std::stod(f.at("median_ms"))}});
        log_warn("rank {} on {} is slow: {} ms of its own per step, {} times the others' {} ms",
                 e.rank, f.at("host"), f.at("own_ms"), f.at("ratio"), f.at("median_ms"));
    }

    [[noreturn]] void end_job(const Verdict& v) {
        constexpr int kCode = static_cast<int>(ExitCode::hang);
        log_error("{}\n  hint: each rank's stacks are in logs/rank-*.log of the run", v.text);
        records_.write("fault", v.step, fault_fields(v, generation_));
        monitor_.quit(kCode, v.text, v.stopped);
        const double end = monitor_.now() + 1.0;  // this rank's own control thread hears it, too
        while (monitor_.now() < end)
            tick();
        leave_now(kCode, v.text, {});
    }

    int generation_;
    Records& records_;
    Monitor monitor_;
    std::atomic<bool> closing_{false};
    std::thread thread_;
};

}  // namespace

struct Watch::State {
    int generation = 0, rank = 0;
    bool supervised = false;
    Records records;
    std::unique_ptr<MonitorThread> monitor;
    std::unique_ptr<ControlThread> control;

    void leave(int code, const std::string& why) {
        const BoardView board = read_board();
        const Stamp* const waits = board.waits_in();
        write_exit_record(
            {.rank = rank,
             .code = code,
             .kind = code == static_cast<int>(ExitCode::hang)     ? "hang"
                     : code == static_cast<int>(ExitCode::fenced) ? "fenced"
                                                                  : "peer_lost",
             .what = why,
             .phase = phase_name(board.phase),
             .step = board.step,
             .site = waits == nullptr ? "" : fmt::format("{}:{}", waits->file, waits->line)});
        // A monitor that is gone or stopped cannot write why: the first of the others does.
        if (!supervised && code == static_cast<int>(ExitCode::fenced) && rank == 1)
            records.write(
                "fault", read_board().step,
                fault_fields({.kind = Verdict::Kind::silent_rank,
                              .rank = 0,
                              .host = host_name(),
                              .phase = current_phase(),
                              .text = "rank 0, the monitor, is silent: " + why,
                              .since_s = env_number("STOA_FENCE_S", ControlOptions{}.fence_s)},
                             generation));
    }

    void report_to(ControlOptions options) {
        options.generation = generation;
        options.rank = rank;
        options.fence_s = env_number("STOA_FENCE_S", options.fence_s);
        options.on_drain = [](const std::string& how) {
            request_stop(how == "interrupted" ? StopRequest::interrupted : StopRequest::preempted);
        };
        options.on_leave = [this](int code, const std::string& why) { leave(code, why); };
        control = std::make_unique<ControlThread>(std::move(options));
    }
};

Watch::Watch() : state_(std::make_unique<State>()) {
    State& s = *state_;
    s.generation = std::atoi(env_text("STOA_GENERATION", "0").c_str());
    s.rank = rank_before_mpi();
    open_board(s.generation, s.rank);
    if (const std::string addresses = env_text("STOA_CONTROL"); !addresses.empty()) {
        s.supervised = true;
        s.report_to({.addresses = addresses, .token = env_text("STOA_CONTROL_TOKEN")});
    }
}

Watch::~Watch() { end(); }

void Watch::begin(const Communicator& world) {
    State& s = *state_;
    if (s.supervised || world.size() == 1 || env_text("STOA_WATCHDOG") == "off") return;
    s.rank = world.rank();  // mpirun may number them otherwise: parallel/node_map.h
    // One message: {"a": addresses, "t": token, "p": pid, "h": host}, or the error of rank 0.
    json where;
    if (world.rank() == 0) {
        try {
            const std::string token = random_token();
            s.monitor = std::make_unique<MonitorThread>(
                MonitorOptions{.world = world.size(),
                               .generation = s.generation,
                               .token = token,
                               .limits = parse_limits(env_text("STOA_LIMITS"))},
                s.records);
            where = {{"a", fmt::format("{}", fmt::join(s.monitor->addresses(), ","))},
                     {"t", token},
                     {"p", getpid()},
                     {"h", host_name()}};
        } catch (const Error& e) {
            where = {{"what", e.fields().what},
                     {"where", "STOA_LIMITS: " + e.fields().where},
                     {"expected", e.fields().expected},
                     {"hint", e.fields().hint}};
        }
    }
    where = json::parse(broadcast(where.dump(), 0, world));
    if (where.contains("what"))
        throw ConfigError({.what = where["what"],
                           .where = where["where"],
                           .expected = where["expected"],
                           .hint = where["hint"]});
    s.report_to({.addresses = where["a"],
                 .token = where["t"],
                 .world = world.size(),
                 .monitor_pid = world.rank() == 0 ? 0 : where["p"].get<int>(),
                 .monitor_host = where["h"]});
}

void Watch::records_in(const std::string& run_dir) { state_->records.open(run_dir); }

void Watch::record(const std::string& event, std::int64_t step,
                   const std::map<std::string, std::string>& fields) {
    state_->records.write(event, step, ordered_json(fields));
}

void Watch::event(const std::string& name, std::int64_t step,
                  const std::map<std::string, std::string>& fields) {
    if (state_->supervised) state_->control->event(name, step, fields);
}

void Watch::end() {
    state_->control.reset();
    state_->monitor.reset();
}

}  // namespace stoa
