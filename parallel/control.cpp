#include "parallel/control.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <ctime>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "kernels/core/error.h"
#include "kernels/core/log.h"
#include "parallel/beat.h"
#include "parallel/board.h"
#include "parallel/line_socket.h"
#include "parallel/mpi_session.h"
#include "parallel/stack_dump.h"

extern char** environ;

namespace stoa {
namespace {

using nlohmann::json;

constexpr double kBeatSeconds = 0.25;
constexpr double kDoubtSeconds = 2.0;    // without an answer: try another connection
constexpr double kConnectSeconds = 0.5;  // for one try
constexpr double kStalledSeconds = 1.0;  // without progress: send all stamps
constexpr double kSilentFence = 1.2;     // see fence_s

double seconds_now() { return 1e-9 * static_cast<double>(monotonic_ns()); }

double unix_time() {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch())
        .count();
}

/// Ends `pid` half a second from now, when this process has left: whoever started us should see
/// our exit code first.
void kill_soon(int pid) {
    const std::string line = fmt::format("sleep 0.5; kill -KILL {}", pid);
    const char* const args[] = {"sh", "-c", line.c_str(), nullptr};
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    posix_spawn_file_actions_init(&files);
    posix_spawnattr_init(&attributes);
    for (int fd = 0; fd < 3; ++fd)
        posix_spawn_file_actions_addopen(&files, fd, "/dev/null", O_RDWR, 0);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID);
    pid_t child = 0;
    posix_spawn(&child, "/bin/sh", &files, &attributes, const_cast<char* const*>(args), environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&files);
}

/// Open MPI's shared segments that this process has mapped: nobody else removes them when a job
/// ends without MPI_Finalize.
void remove_shared_segments() {
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
        const std::size_t at = line.find("/dev/shm/vader_segment.");
        if (at != std::string::npos) unlink(line.c_str() + at);
    }
}

void write_to_log(const std::string& text) {
    const int fd = log_fd();
    const std::time_t now = std::time(nullptr);
    std::tm utc{};
    gmtime_r(&now, &utc);
    char time[32];
    std::strftime(time, sizeof time, "%Y-%m-%dT%H:%M:%SZ", &utc);
    const std::string line = fmt::format("{} watchdog: {}\n", time, text);
    if (write(fd, line.data(), line.size()) < 0) return;
}

}  // namespace

void leave_now(int code, const std::string& why,
               const std::function<void(int, const std::string&)>& on_leave) {
    static std::atomic<bool> leaving{false};
    if (leaving.exchange(true))
        for (;;)  // another thread is about to end the process
            pause();
    write_to_log(fmt::format("leaving with {}: {}", code, why));
    dump_stacks(log_fd());
    if (on_leave) on_leave(code, why);
    remove_shared_segments();
    _exit(code);
}

struct ControlThread::State {
    ControlOptions options;
    int wake = -1;  // eventfd
    std::atomic<bool> closing{false};
    std::mutex mutex;
    std::vector<std::string> events;  // lines to be sent
    LineSocket socket;
    double heard_at = 0.0, last_try = 0.0, gone_since = 0.0;
    std::uint64_t sent_steps = 0;
    std::thread thread;

    std::string hello() const {
        return json{
            {"t", "hello"},         {"token", options.token}, {"generation", options.generation},
            {"rank", options.rank}, {"world", options.world}, {"host", host_name()},
            {"pid", getpid()},      {"board", board_path()},  {"time", unix_time()}}
            .dump();
    }

    void connect(double now) {
        last_try = now;
        LineSocket fresh = connect_to_first(options.addresses, kConnectSeconds);
        if (!fresh.open()) return;
        socket.close();
        socket = std::move(fresh);
        socket.send(hello());
        sent_steps = 0;
    }

    void send_beat() {
        const std::int64_t now = monotonic_ns();
        const BoardView board = read_board();
        const bool stalled =
            1e-9 * static_cast<double>(now - board.progress_ns) > kStalledSeconds ||
            !board.trouble.empty();
        const std::uint64_t steps = board.steps_done;
        if (socket.send(beat_of(board, now, stalled, sent_steps).dump())) sent_steps = steps;
    }

    void send_events() {
        const std::scoped_lock lock(mutex);
        std::size_t sent = 0;
        while (sent < events.size() && socket.send(events[sent]))
            ++sent;
        events.erase(events.begin(), events.begin() + static_cast<long>(sent));
    }

    void obey(const json& message) {
        const std::string what = message.value("t", "");
        if (what == "drain" && options.on_drain)
            options.on_drain(message.value("how", "preempted"));
        if (what == "dump") {
            write_to_log("stacks were asked for");
            dump_stacks(log_fd());
        }
        if (what == "refused")
            leave_now(static_cast<int>(ExitCode::fenced),
                      "the monitor refuses this rank: " + message.value("why", ""),
                      options.on_leave);
        if (what == "quit") {
            for (const json& peer : message.value("kill", json::array()))
                if (peer.value("host", "") == host_name() && peer.value("pid", 0) > 0)
                    kill_soon(peer.value("pid", 0));
            leave_now(message.value("code", static_cast<int>(ExitCode::peer_lost)),
                      message.value("why", ""), options.on_leave);
        }
    }

    void receive(double now) {
        std::vector<std::string> lines;
        socket.receive(lines);
        for (const std::string& line : lines) {
            const json message = json::parse(line, nullptr, /*allow_exceptions=*/false);
            if (!message.is_object()) continue;
            heard_at = now;
            gone_since = 0.0;
            obey(message);
        }
    }

    void fence_or_go_on(double now) {
        if (!socket.open() && gone_since == 0.0) gone_since = now;
        const double silent = now - heard_at;
        const bool gone = gone_since > 0.0 && now - gone_since > options.fence_s;
        if (!gone && silent <= kSilentFence * options.fence_s) return;
        if (options.monitor_pid > 0 && options.monitor_host == host_name() && socket.open())
            kill_soon(options.monitor_pid);
        const std::string why =
            fmt::format("no answer from the monitor at {} for {:.1f} s", options.addresses, silent);
        if (options.rank <= 1)  // the first that is left speaks for all
            fmt::print(stderr, "error: rank {} on {}: {}\n", options.rank, host_name(), why);
        leave_now(static_cast<int>(ExitCode::fenced), why, options.on_leave);
    }

    void work() {
        pthread_setname_np(pthread_self(), "stoa-control");
        sigset_t all;
        sigfillset(&all);
        sigdelset(&all, stack_dump_signal());
        pthread_sigmask(SIG_BLOCK, &all, nullptr);
        double now = seconds_now(), next_beat = now;
        heard_at = now;
        last_try = now - kDoubtSeconds;
        bool trouble_sent = false;
        while (!closing.load()) {
            // This process itself was stopped, or its machine: nobody could be heard.
            const double gap = seconds_now() - now;
            if (gap > kDoubtSeconds) heard_at += gap;
            if (gap > kDoubtSeconds && gone_since > 0.0) gone_since += gap;
            now = seconds_now();
            const double retry = socket.open() ? 1.0 : kBeatSeconds;
            if ((!socket.open() || now - heard_at > kDoubtSeconds) && now - last_try >= retry)
                connect(now);
            const bool trouble = !trouble_sent && !read_board().trouble.empty();
            if (now >= next_beat || trouble) {
                trouble_sent = trouble_sent || trouble;
                next_beat = now + kBeatSeconds;
                send_beat();
            }
            send_events();
            pollfd fds[2] = {
                {.fd = wake, .events = POLLIN, .revents = 0},
                {.fd = socket.fd(),
                 .events = static_cast<short>(POLLIN | (socket.wants_to_write() ? POLLOUT : 0)),
                 .revents = 0}};
            const double left = std::max(0.0, next_beat - seconds_now());
            ::poll(fds, 2, static_cast<int>(1e3 * left) + 1);
            std::uint64_t woken = 0;
            if (fds[0].revents != 0 && read(wake, &woken, sizeof woken) < 0) woken = 0;
            socket.flush();
            const double heard = seconds_now();
            receive(heard);
            if (heard - now < kDoubtSeconds) fence_or_go_on(heard);
        }
        send_events();
        socket.send(json{{"t", "bye"}}.dump());
    }

    void ring() const {
        const std::uint64_t one = 1;
        if (write(wake, &one, sizeof one) < 0) return;
    }
};

ControlThread::ControlThread(ControlOptions options) : state_(std::make_unique<State>()) {
    install_stack_dump();
    state_->options = std::move(options);
    state_->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    set_board_watched(true);
    state_->thread = std::thread([state = state_.get()] { state->work(); });
}

ControlThread::~ControlThread() {
    set_board_watched(false);
    state_->closing.store(true);
    state_->ring();
    state_->thread.join();
    close(state_->wake);
}

void ControlThread::event(const std::string& name, std::int64_t step,
                          const std::map<std::string, std::string>& fields) {
    json line{{"t", "event"}, {"event", name}, {"step", step}, {"fields", fields}};
    {
        const std::scoped_lock lock(state_->mutex);
        state_->events.push_back(line.dump());
    }
    state_->ring();
}

}  // namespace stoa
