#include "parallel/monitor.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/core/error.h"
#include "kernels/core/log.h"
#include "parallel/beat.h"
#include "parallel/line_socket.h"
#include "parallel/mpi_session.h"

namespace stoa {
namespace {

using nlohmann::json;

constexpr double kStoppedClock = 1.0;  // between two polls: this process stood still itself
constexpr double kQuietSeconds = 1.0;  // without a heartbeat: look at the process
// So long without a heartbeat, and then there again: the network was away, or the whole machine.
constexpr double kFlapSeconds = 2.0;
constexpr std::int64_t kStragglerAgain = 100;  // steps until a straggler is named again

double steady_seconds() { return 1e-9 * static_cast<double>(monotonic_ns()); }

// 'T' of "4711 (stoa) T ...": what the kernel says of a process of this host; 'X' where it is gone.
char state_of_process(int pid) {
    std::ifstream in(fmt::format("/proc/{}/stat", pid));
    std::string text;
    std::getline(in, text);
    const std::size_t paren = text.rfind(')');
    return paren == std::string::npos || paren + 2 >= text.size() ? 'X' : text[paren + 2];
}

}  // namespace

struct Monitor::State {
    struct Connection {
        LineSocket socket;
        int rank = -1;  // before hello
    };
    MonitorOptions options;
    int epoll = -1, listener = -1, port = 0;
    std::map<int, Connection> connections;  // by file descriptor
    std::vector<int> connection_of;         // by rank; -1
    std::vector<RankReport> reports;
    std::vector<MonitorEvent> events;
    std::vector<std::int64_t> straggler_named;  // by rank: at which step
    std::string draining;
    double last_poll = 0.0;
    double calm_since = 0.0;  // stalls before that had a reason outside the ranks
    std::int64_t straggler_step = 0;

    double now() const { return options.clock ? options.clock() : steady_seconds(); }

    void watch(int fd) const {
        epoll_event event{};
        event.events = EPOLLIN;
        event.data.fd = fd;
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    }

    void accept_all() {
        for (;;) {
            const int fd = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
            if (fd < 0) return;
            connections[fd].socket = LineSocket(fd);
            watch(fd);
        }
    }

    void refuse(Connection& c, const std::string& why) {
        c.socket.send(json{{"t", "refused"}, {"why", why}}.dump());
        drop(c.socket.fd());
    }

    void drop(int fd) {
        const auto found = connections.find(fd);
        if (found == connections.end()) return;
        const int rank = found->second.rank;
        if (rank >= 0 && connection_of[static_cast<std::size_t>(rank)] == fd) {
            connection_of[static_cast<std::size_t>(rank)] = -1;
            reports[static_cast<std::size_t>(rank)].connected = false;
        }
        connections.erase(found);
    }

    bool greet(Connection& c, const json& m) {
        const int rank = m.value("rank", -1);
        std::string why;
        if (m.value("token", "") != options.token) why = "another job's token";
        if (m.value("generation", -1) != options.generation)
            why = fmt::format("generation {} is over, this is {}", m.value("generation", -1),
                              options.generation);
        if (rank < 0 || rank >= options.world) why = fmt::format("no rank {} here", rank);
        if (!why.empty()) {
            refuse(c, why);
            return false;
        }
        const auto r = static_cast<std::size_t>(rank);
        if (connection_of[r] >= 0 && connection_of[r] != c.socket.fd()) drop(connection_of[r]);
        connection_of[r] = c.socket.fd();
        c.rank = rank;
        RankReport& report = reports[r];
        const bool first = !report.known;
        report.known = report.connected = true;
        report.host = m.value("host", "");
        report.pid = m.value("pid", 0);
        report.board = m.value("board", "");
        report.local = report.host == host_name();
        if (first)
            events.push_back(
                {.event = "hello",
                 .rank = rank,
                 .fields = {{"host", report.host}, {"pid", std::to_string(report.pid)}}});
        if (!draining.empty()) c.socket.send(json{{"t", "drain"}, {"how", draining}}.dump());
        return true;
    }

    // False when the connection was dropped.
    bool hear(Connection& c, const std::string& line, double at) {
        const json m = json::parse(line, nullptr, /*allow_exceptions=*/false);
        if (!m.is_object()) return true;
        const std::string what = m.value("t", "");
        if (what == "hello" && !greet(c, m)) return false;
        if (c.rank < 0) return true;  // says something before hello
        RankReport& report = reports[static_cast<std::size_t>(c.rank)];
        if (at - report.heard_at > kFlapSeconds && !report.steps.empty()) calm_since = at;
        report.heard_at = at;
        if (what == "beat") take_beat(m, at, report);
        if (what == "event")
            events.push_back({.event = m.value("event", ""),
                              .rank = c.rank,
                              .step = m.value("step", std::int64_t{0}),
                              .fields = m.value("fields", std::map<std::string, std::string>{})});
        if (what == "bye") {
            report.finished = true;
            events.push_back({.event = "bye", .rank = c.rank, .step = report.step});
        }
        return c.socket.send(json{{"t", "ack"}}.dump());
    }

    void read_from(int fd, double at) {
        std::vector<std::string> lines;
        const auto found = connections.find(fd);
        if (found == connections.end()) return;
        const bool lives = found->second.socket.receive(lines);
        for (const std::string& line : lines) {
            const auto still = connections.find(fd);
            if (still == connections.end()) return;
            try {
                if (!hear(still->second, line, at)) return drop(fd);
            } catch (const json::exception&) {  // not one of our workers
                return drop(fd);
            }
        }
        if (!lives) drop(fd);
    }

    void send_to_all(const json& message) {
        const std::string line = message.dump();
        for (auto& [fd, c] : connections)
            if (c.rank >= 0) c.socket.send(line);
    }

    void name_stragglers() {
        std::int64_t step = 0;
        for (const RankReport& r : reports)
            if (!r.steps.empty()) step = std::max(step, r.steps.back().step);
        if (step == straggler_step) return;
        straggler_step = step;
        for (const Straggler& s : find_stragglers(reports)) {
            std::int64_t& named = straggler_named[static_cast<std::size_t>(s.rank)];
            if (named >= 0 && step - named < kStragglerAgain) continue;
            named = step;
            const RankReport& r = reports[static_cast<std::size_t>(s.rank)];
            events.push_back({.event = "straggler",
                              .rank = s.rank,
                              .step = step,
                              .fields = {{"host", r.host},
                                         {"ratio", fmt::format("{:.2f}", s.ratio)},
                                         {"own_ms", fmt::format("{:.1f}", s.own_ms)},
                                         {"median_ms", fmt::format("{:.1f}", s.median_ms)}}});
        }
    }
};

Monitor::Monitor(MonitorOptions options) : state_(std::make_unique<State>()) {
    State& s = *state_;
    s.options = std::move(options);
    s.listener = listen_on_any_port(&s.port);
    s.epoll = epoll_create1(EPOLL_CLOEXEC);
    if (s.listener < 0 || s.epoll < 0)
        throw DeviceError({.what = "cannot listen for the ranks' heartbeats",
                           .where = host_name(),
                           .hint = "is the network of this machine configured?"});
    s.watch(s.listener);
    s.last_poll = s.calm_since = s.now();
    const auto world = static_cast<std::size_t>(s.options.world);
    s.connection_of.assign(world, -1);
    s.straggler_named.assign(world, -1);
    s.reports.resize(world);
    for (std::size_t r = 0; r < world; ++r) {
        s.reports[r].rank = static_cast<int>(r);
        s.reports[r].heard_at = s.reports[r].progress_at = s.last_poll;
    }
}

Monitor::~Monitor() {
    state_->connections.clear();
    if (state_->listener >= 0) close(state_->listener);
    if (state_->epoll >= 0) close(state_->epoll);
}

int Monitor::fd() const { return state_->epoll; }

std::vector<std::string> Monitor::addresses() const {
    std::vector<std::string> all;
    for (const std::string& a : own_addresses())
        all.push_back(fmt::format("{}:{}", a, state_->port));
    return all;
}

void Monitor::poll() {
    State& s = *state_;
    const double now = s.now();
    if (now - s.last_poll > kStoppedClock) {  // they could not be heard
        for (RankReport& r : s.reports)
            r.heard_at += now - s.last_poll;
        s.calm_since = now;
    }
    s.last_poll = now;
    for (;;) {
        epoll_event ready[64];
        const int n = epoll_wait(s.epoll, ready, 64, 0);
        for (int i = 0; i < n; ++i)
            ready[i].data.fd == s.listener ? s.accept_all() : s.read_from(ready[i].data.fd, now);
        if (n < 64) break;
    }
    std::vector<int> lost;
    for (auto& [fd, c] : s.connections)
        if (c.socket.wants_to_write() && !c.socket.flush()) lost.push_back(fd);
    for (const int fd : lost)
        s.drop(fd);
    s.name_stragglers();
}

void Monitor::drain(const std::string& how) {
    state_->draining = how;
    state_->send_to_all({{"t", "drain"}, {"how", how}});
}

void Monitor::quit(int code, const std::string& why, const std::vector<int>& kill) {
    json peers = json::array();
    for (const int r : kill)
        peers.push_back({{"host", rank(r).host}, {"pid", rank(r).pid}});
    state_->send_to_all({{"t", "quit"}, {"code", code}, {"why", why}, {"kill", peers}});
}

void Monitor::dump() { state_->send_to_all({{"t", "dump"}}); }

std::optional<Verdict> Monitor::verdict() {
    State& s = *state_;
    const double now = s.now();
    std::vector<RankReport> reports = s.reports;
    for (RankReport& r : reports) {
        r.progress_at = std::max(r.progress_at, s.calm_since);
        if (!r.known || !r.local || r.finished || now - r.heard_at <= kQuietSeconds) continue;
        r.process_state = state_of_process(r.pid);
        // What it did after its last heartbeat, if its memory is still there.
        const BoardView board = read_board_file(r.board);
        if (board.rank < 0 || board.pid != r.pid) continue;
        r.steps.clear();
        take_beat(beat_of(board, monotonic_ns(), /*all_stamps=*/true, 0), now, r);
    }
    return judge(reports, learned_limits(s.options.limits, reports), now);
}

const RankReport& Monitor::rank(int r) const {
    return state_->reports.at(static_cast<std::size_t>(r));
}
const std::vector<RankReport>& Monitor::ranks() const { return state_->reports; }

bool Monitor::all_gone() const {
    return std::ranges::all_of(state_->reports,
                               [](const RankReport& r) { return r.finished || !r.connected; });
}

double Monitor::now() const { return state_->now(); }

std::vector<MonitorEvent> Monitor::take_events() { return std::exchange(state_->events, {}); }

}  // namespace stoa
