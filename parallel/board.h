#pragma once
// The board of a process: what it does right now, where others can see it. The threads that work
// publish (a few stores each time, no lock); the control thread, a supervisor that maps the file,
// and a stack dump only read. So a stuck step cannot hide behind a live thread.
#include <array>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

namespace stoa {

class Communicator;

/// Where a call stands in the source: the default argument of everything that communicates.
struct Site {
    const char* file;
    int line;
    // NOLINTNEXTLINE(google-explicit-constructor): `Site site = {}` is the use
    constexpr Site(const char* f = __builtin_FILE(), int l = __builtin_LINE()) : file(f), line(l) {}
};

/// What a rank is at. drain: asked to stop, on its way to the last save.
enum class Phase : std::int32_t { start, restore, step, evaluate, save, drain, end };
constexpr int kPhases = 7;
const char* phase_name(Phase phase);
/// errors: none; Phase::start for a name that is none
Phase phase_of(const std::string& name);

/// The threads of a rank that communicate.
enum class Lane : std::int32_t { main, dp_queue, tp_queue };
constexpr int kBoardLanes = 3;
const char* lane_name(Lane lane);
/// What this thread's collectives are from now on; Lane::main unless told.
void set_board_lane(Lane lane);

/// One collective. Ranks of a group give the same `sequence` to the same call.
struct Stamp {
    std::uint64_t sequence = 0;             // 1, 2, ... in its group
    std::int64_t count = 0;                 // elements; -1: not known alike on all ranks
    std::int64_t begin_ns = 0, end_ns = 0;  // CLOCK_MONOTONIC; end 0: inside
    std::int32_t group_ordinal = 0;  // its name, and which of that name: alike on all its ranks
    std::int32_t group_first = 0;    // world rank of the group's first member
    std::int32_t group_size = 0;
    std::int32_t line = 0;
    char op[16] = {}, how[8] = {};  // "all_reduce", "max"
    char group[16] = {}, dtype[8] = {}, file[56] = {};
    bool inside() const { return sequence != 0 && end_ns == 0; }
};
static_assert(std::is_trivially_copyable_v<Stamp> && sizeof(Stamp) % 8 == 0);

/// How far this rank is in one of its groups.
struct GroupMark {
    std::int32_t ordinal = 0, first = 0, size = 0;
    Lane lane = Lane::main;  // the thread that used it last
    std::uint64_t sequence = 0;
    char name[16] = {};
};

/// A finished step. own: not inside a collective nor waiting for a queue.
struct StepTime {
    std::int64_t step = 0, total_ns = 0, own_ns = 0;
};

/// A copy of the board for reading.
struct BoardView {
    std::int32_t generation = 0, rank = 0, pid = 0;
    std::string host;
    Phase phase = Phase::start;
    std::int64_t phase_begin_ns = 0, step = 0, step_begin_ns = 0;
    std::int64_t progress_ns = 0;  // when something last went on
    int queue_waited_for = 0;      // Lane that the main thread waits for; 0: none
    std::string trouble;           // an error that a peer's mistake may explain
    std::vector<GroupMark> groups;
    std::array<std::vector<Stamp>, kBoardLanes> lanes;  // the last ones, oldest first
    std::array<std::uint64_t, kBoardLanes> counts{};    // of all
    std::vector<StepTime> steps;                        // the last ones, oldest first
    std::uint64_t steps_done = 0;
    std::array<std::int64_t, kPhases> took_ns{};  // the last time in each phase
    std::array<std::uint64_t, kPhases> took_count{};
    /// The collective that this rank waits in, or null.
    const Stamp* waits_in() const;
};

std::int64_t monotonic_ns();

/// Places the board of this process in $STOA_BOARD_DIR/rank-NNNN where that is set and can be
/// written (it stays readable when the process is gone), else in a file that only /proc knows.
/// Before other threads begin.
void open_board(int generation, int rank);
/// Where other processes of this host read it; empty: nowhere.
const std::string& board_path();
/// What this process has published.
BoardView read_board();
/// A board file of another process.     errors: none; rank -1 where it cannot be read
BoardView read_board_file(const std::string& path);

/// Phase for as long as it lives; then the former one.
class PhaseScope {
public:
    explicit PhaseScope(Phase phase);
    ~PhaseScope();
    PhaseScope(const PhaseScope&) = delete;
    PhaseScope& operator=(const PhaseScope&) = delete;

private:
    Phase before_;
};
/// For the rest of the process.
void set_phase(Phase phase);
Phase current_phase();
/// Where an exception that this thread has just caught began; else the current one.
Phase phase_of_failure();
/// A step begins: `step` are done before it.
void board_step(std::int64_t step);
/// That step is done: publishes its time, and how much of it this rank computed.
void board_step_done();
/// Something went on that is no collective: a block, a file.
void board_pulse();
/// Publishes an error met in a collective and waits up to `seconds` for a verdict on its cause,
/// which then ends the process; returns where nobody watches or no verdict comes.
void board_trouble(const std::string& text, double seconds);
/// Says that verdicts reach this process (parallel/control.h).
void set_board_watched(bool watched);

/// Around every collective of several ranks; nothing in a group of one. `count` elements of `dtype`
/// ("fp32", "int64", "bytes"), `how`: the reduction or order, where there are several.
class CollectiveScope {
public:
    CollectiveScope(const char* op, const Communicator& comm, std::int64_t count, const char* dtype,
                    Site site, const char* how = "");
    ~CollectiveScope();
    CollectiveScope(const CollectiveScope&) = delete;
    CollectiveScope& operator=(const CollectiveScope&) = delete;

private:
    Lane lane_;
    Stamp stamp_;
};

/// Around the main thread's wait for a queue.
class QueueWaitScope {
public:
    explicit QueueWaitScope(Lane queue);
    ~QueueWaitScope();
    QueueWaitScope(const QueueWaitScope&) = delete;
    QueueWaitScope& operator=(const QueueWaitScope&) = delete;

private:
    std::int64_t begin_ns_;
};

/// A group's row on the board: which group this is for all its ranks, and how far this rank is.
/// Held by its Communicator.
struct GroupRow {
    std::int32_t ordinal = 0, first = 0, size = 1;
    std::uint64_t sequence = 0;  // of its last collective
    int row = -1;                // on the board; -1: none free
};
/// comm: none; the members of a group make those of its name in the same order
GroupRow open_group(const std::string& name, int first, int size);
void close_group(GroupRow& row);

}  // namespace stoa
