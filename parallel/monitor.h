#pragma once
// Who watches a job: one connection per rank (parallel/control.h), what each rank last said, and
// the verdict. Lives in the supervisor; without one, on a thread of rank 0 (launcher/watch.h).
#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "parallel/board.h"

namespace stoa {

/// Seconds without progress after which a rank hangs, by phase, and without a heartbeat after which
/// it is silent. Those of step, evaluate and save are floors: the limit is the longer one of it
/// and `factor` times the median that this run has shown.
struct Limits {
    double start = 60, restore = 300, first_step = 60, step = 10, evaluate = 60, save = 60,
           drain = 60;
    double silent = 10;  // one rank of a host whose other ranks, or whose monitor, are heard
    double host = 12;    // all ranks of another host
    double factor = 5;
};
/// "step=2s,save=30s,host=5s": changes to the defaults; units ms, s, min. step also sets first_step
/// and silent, unless those are given.     errors: ConfigError with the part that is wrong
Limits parse_limits(const std::string& text);

/// What is known of one rank. Times are seconds on the monitor's clock.
struct RankReport {
    int rank = 0;
    bool known = false;      // has said hello
    bool connected = false;  // its connection is open
    bool finished = false;   // has said goodbye: not judged
    bool local = false;      // on the monitor's host
    std::string host;
    int pid = 0;
    std::string board;         // a file of its host
    char process_state = '?';  // of /proc/PID/stat where it is local and silent: T = stopped
    double heard_at = 0.0;     // its last message; before the first: when watching began
    Phase phase = Phase::start;
    double phase_begin = 0.0, progress_at = 0.0;
    std::int64_t step = 0;
    int queue_waited_for = 0;
    std::string trouble;  // an error in a collective that a peer's mistake may explain
    std::vector<GroupMark> groups;
    std::array<std::vector<Stamp>, kBoardLanes> lanes;  // the last ones; times in ns of this clock
    std::vector<StepTime> steps;                        // the last 32
    std::array<std::vector<double>, kPhases> took_s;    // the last 16 times in each phase
    std::array<std::uint64_t, kPhases> took_count{};
    const Stamp* waits_in() const;  // null: it waits for nobody
};

struct Verdict {
    enum class Kind { hang, silent_rank, lost_host, mismatched_collective, communication };
    Kind kind = Kind::hang;
    int rank = -1;  // the culprit; -1: no single one
    std::string host;
    Phase phase = Phase::start;
    std::int64_t step = 0;
    std::string site;          // where it stands, or last was: "all_reduce(dp) #481 at file:line"
    std::string waiting;       // "ranks 0,2,3 wait in all_reduce(dp) #1234, 4.2M fp32, file:line"
    std::string text;          // one line with all of that
    double since_s = 0.0;      // how long the fault was there before it was noticed
    std::vector<int> stopped;  // ranks that cannot leave by themselves
};
const char* verdict_name(Verdict::Kind kind);
/// The class of cause that events and the supervisor use: "hang", "lost_host", "communication".
const char* verdict_cause(Verdict::Kind kind);

/// The limits that hold now: floors, and `factor` times the medians of what the ranks report.
Limits learned_limits(const Limits& floors, const std::vector<RankReport>& reports);
/// Of a phase, from limits already learned.
double limit_of(Phase phase, const Limits& limits);

/// The first of: collectives that do not match (at once), a rank or host without heartbeat, a rank
/// without progress that others wait for, all ranks waiting. `limits` are the learned ones. A slow
/// rank is none of these. Pure: the same reports give the same verdict.
std::optional<Verdict> judge(const std::vector<RankReport>& reports, const Limits& limits,
                             double now);

/// A rank whose own part of a step takes >= 1.5 times the ranks' median, over the last 20 steps.
struct Straggler {
    int rank = 0;
    double ratio = 1.0, own_ms = 0.0, median_ms = 0.0;
};
std::vector<Straggler> find_stragglers(const std::vector<RankReport>& reports);

/// "ranks 0,2-5", "rank 3"
std::string rank_list(const std::vector<int>& ranks);

struct MonitorOptions {
    int world = 1, generation = 0;
    std::string token;
    Limits limits;
    std::function<double()> clock;  // seconds; the steady clock where empty
};

/// Something to put into the events file: "hello", "bye", what a rank reports ("committed"), and
/// "straggler".
struct MonitorEvent {
    std::string event;
    int rank = 0;
    std::int64_t step = 0;
    std::map<std::string, std::string> fields;
};

class Monitor {
public:
    /// Listens from here on.     errors: DeviceError when there is no port to listen on
    explicit Monitor(MonitorOptions options);
    ~Monitor();
    Monitor(const Monitor&) = delete;
    Monitor& operator=(const Monitor&) = delete;

    /// Readable when poll() has something to do; poll() also wants to be called every 100 ms.
    int fd() const;
    /// Where workers reach it: "host:port" of every interface, for $STOA_CONTROL joined by commas.
    std::vector<std::string> addresses() const;
    /// Takes in what has come, answers, and never waits.
    void poll();

    /// Asks every rank to save and leave at the next step: how = "preempted" or "interrupted".
    /// Ranks that come later are asked, too.
    void drain(const std::string& how);
    /// Tells every rank to leave with `code` after writing its stacks. `kill`: ranks that must be
    /// ended by another process of their host (stopped ones).
    void quit(int code, const std::string& why, const std::vector<int>& kill = {});
    /// Every rank writes its stacks to its log and goes on.
    void dump();

    std::optional<Verdict> verdict();
    const RankReport& rank(int r) const;
    const std::vector<RankReport>& ranks() const;
    /// Every rank has said goodbye or has gone.
    bool all_gone() const;
    double now() const;
    std::vector<MonitorEvent> take_events();

private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace stoa
