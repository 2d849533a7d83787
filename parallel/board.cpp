#include "parallel/board.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <ctime>
#include <exception>
#include <map>
#include <mutex>
#include <new>
#include <optional>
#include <thread>

#include "kernels/core/log.h"
#include "parallel/communicator.h"

namespace stoa {
namespace {

constexpr int kRing = 16, kRows = 40, kSteps = 32;
constexpr std::uint32_t kMagic = 0x53544f41;  // "STOA"

template <class T>
using Atomic = std::atomic<T>;
constexpr auto kRelaxed = std::memory_order_relaxed;

/// A record of 8-byte words that one thread writes and others read.
template <class T>
struct Words {
    static constexpr std::size_t kWords = sizeof(T) / 8;
    Atomic<std::uint64_t> word[kWords];
    void store(const T& value) {
        std::uint64_t copy[kWords];
        std::memcpy(copy, &value, sizeof copy);
        for (std::size_t i = 0; i < kWords; ++i)
            word[i].store(copy[i], kRelaxed);
    }
    T load() const {
        std::uint64_t copy[kWords];
        for (std::size_t i = 0; i < kWords; ++i)
            copy[i] = word[i].load(kRelaxed);
        T value;
        std::memcpy(static_cast<void*>(&value), copy, sizeof copy);
        return value;
    }
};

struct BoardRow {
    Atomic<std::int32_t> ordinal, first, size, lane;
    Atomic<std::uint64_t> sequence;
    char name[16];
};
/// version: odd while the thread writes.
struct BoardLane {
    Atomic<std::uint64_t> version, count;
    Words<Stamp> ring[kRing];
};
/// All of it is plain memory: zeros are an empty board.
struct Board {
    Atomic<std::uint32_t> magic;
    std::int32_t generation, rank, pid;
    char host[64];
    Atomic<std::int32_t> phase, queue_waited_for, watched, rows_made;
    Atomic<std::int64_t> phase_begin_ns, step, step_begin_ns, progress_ns;
    Atomic<std::int64_t> blocked_ns;  // of the main thread, in all
    char trouble[256];
    Atomic<std::int32_t> has_trouble;
    Atomic<std::uint64_t> steps_done;
    Words<StepTime> steps[kSteps];
    Atomic<std::int64_t> took_ns[kPhases];
    Atomic<std::uint64_t> took_count[kPhases];
    BoardRow rows[kRows];
    BoardLane lanes[kBoardLanes];
};

Board own_board{};  // until open_board finds a file
Board* the_board = &own_board;
std::string the_path;
thread_local Lane this_lane = Lane::main;
// Of the main thread only.
std::int64_t blocked_at_step_begin = 0;

BoardLane& lane_of(Board& b, Lane lane) { return b.lanes[static_cast<int>(lane)]; }

template <std::size_t N>
void copy_text(char (&to)[N], const char* from) {
    std::strncpy(to, from, N - 1);
    to[N - 1] = '\0';
}

// "trainer/train_step.cpp": without the folder that the sources were built in.
const char* short_file(const char* file) {
    static const std::size_t root = std::strlen(__FILE__) - std::strlen("parallel/board.cpp");
    return std::strncmp(file, __FILE__, root) == 0 ? file + root : file;
}

template <class Write>
void write_lane(BoardLane& lane, const Write& write) {
    lane.version.fetch_add(1, kRelaxed);
    std::atomic_thread_fence(std::memory_order_release);
    write();
    lane.version.fetch_add(1, std::memory_order_release);
}
// What `read` saw between two writes; the last try counts even when the writer was always there.
template <class Read>
void read_lane(const BoardLane& lane, const Read& read) {
    for (int tries = 0; tries < 1000; ++tries) {
        const std::uint64_t before = lane.version.load(std::memory_order_acquire);
        if (before % 2 == 0 || tries == 999) {
            read();
            std::atomic_thread_fence(std::memory_order_acquire);
            if (lane.version.load(kRelaxed) == before) return;
        }
    }
}

BoardView view_of(const Board& b) {
    BoardView v;
    v.generation = b.generation;
    v.rank = b.rank;
    v.pid = b.pid;
    v.host = b.host;
    v.phase = static_cast<Phase>(b.phase.load(kRelaxed));
    v.phase_begin_ns = b.phase_begin_ns.load(kRelaxed);
    v.step = b.step.load(kRelaxed);
    v.step_begin_ns = b.step_begin_ns.load(kRelaxed);
    v.progress_ns = b.progress_ns.load(kRelaxed);
    v.queue_waited_for = b.queue_waited_for.load(kRelaxed);
    if (b.has_trouble.load(std::memory_order_acquire) != 0) v.trouble = b.trouble;
    for (int p = 0; p < kPhases; ++p) {
        v.took_ns[static_cast<std::size_t>(p)] = b.took_ns[p].load(kRelaxed);
        v.took_count[static_cast<std::size_t>(p)] = b.took_count[p].load(kRelaxed);
    }
    v.steps_done = b.steps_done.load(std::memory_order_acquire);
    for (std::uint64_t i = v.steps_done - std::min<std::uint64_t>(v.steps_done, kSteps - 1);
         i < v.steps_done; ++i)
        v.steps.push_back(b.steps[i % kSteps].load());
    const int rows = std::min(kRows, b.rows_made.load(std::memory_order_acquire));
    for (int l = 0; l < kBoardLanes; ++l) {
        std::vector<Stamp>& stamps = v.lanes[static_cast<std::size_t>(l)];
        std::vector<GroupMark> groups;
        read_lane(b.lanes[l], [&] {
            stamps.clear();
            groups.clear();
            const std::uint64_t count = b.lanes[l].count.load(kRelaxed);
            v.counts[static_cast<std::size_t>(l)] = count;
            for (std::uint64_t i = count - std::min<std::uint64_t>(count, kRing); i < count; ++i)
                stamps.push_back(b.lanes[l].ring[i % kRing].load());
            for (int r = 0; r < rows; ++r) {
                const BoardRow& row = b.rows[r];
                if (row.lane.load(kRelaxed) != l || row.size.load(kRelaxed) < 2) continue;
                GroupMark& mark =
                    groups.emplace_back(GroupMark{.ordinal = row.ordinal.load(kRelaxed),
                                                  .first = row.first.load(kRelaxed),
                                                  .size = row.size.load(kRelaxed),
                                                  .lane = static_cast<Lane>(l),
                                                  .sequence = row.sequence.load(kRelaxed)});
                std::memcpy(mark.name, row.name, sizeof mark.name);
            }
        });
        v.groups.insert(v.groups.end(), groups.begin(), groups.end());
    }
    return v;
}

// The name, and how many of it this process has made: not of all groups, since a rank may be in
// groups that others have none of.
std::int32_t ordinal_of(const std::string& name) {
    static std::mutex mutex;
    static std::map<std::string, std::uint32_t> made;
    std::uint32_t hash = 2166136261u;  // FNV-1a
    for (const char c : name)
        hash = (hash ^ static_cast<unsigned char>(c)) * 16777619u;
    const std::scoped_lock lock(mutex);
    return static_cast<std::int32_t>((hash << 8 | (++made[name] & 255)) & 0x7fffffff);
}

void progress_now() { the_board->progress_ns.store(monotonic_ns(), kRelaxed); }

}  // namespace

const char* phase_name(Phase phase) {
    constexpr const char* kNames[] = {"start", "restore", "step", "evaluate",
                                      "save",  "drain",   "end"};
    return kNames[static_cast<int>(phase)];
}
Phase phase_of(const std::string& name) {
    for (int p = 0; p < kPhases; ++p)
        if (name == phase_name(static_cast<Phase>(p))) return static_cast<Phase>(p);
    return Phase::start;
}
const char* lane_name(Lane lane) {
    return lane == Lane::main ? "main" : lane == Lane::dp_queue ? "dp_queue" : "tp_queue";
}
void set_board_lane(Lane lane) { this_lane = lane; }

const Stamp* BoardView::waits_in() const {
    const auto last_inside = [this](std::size_t lane) -> const Stamp* {
        return !lanes[lane].empty() && lanes[lane].back().inside() ? &lanes[lane].back() : nullptr;
    };
    if (const Stamp* main = last_inside(0)) return main;
    return queue_waited_for == 0 ? nullptr
                                 : last_inside(static_cast<std::size_t>(queue_waited_for));
}

std::int64_t monotonic_ns() {
    timespec t{};
    clock_gettime(CLOCK_MONOTONIC, &t);
    return std::int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

void open_board(int generation, int rank) {
    const char* dir = std::getenv("STOA_BOARD_DIR");
    int fd = -1;
    if (dir != nullptr && *dir != '\0') {
        the_path = fmt::format("{}/rank-{:04}", dir, rank);
        fd = open(the_path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    }
    if (fd < 0) {
        fd = memfd_create("stoa-board", MFD_CLOEXEC);  // stays open: the path leads through it
        the_path = fd < 0 ? "" : fmt::format("/proc/{}/fd/{}", getpid(), fd);
    }
    void* memory = MAP_FAILED;
    if (fd >= 0 && ftruncate(fd, sizeof(Board)) == 0)
        memory =
            mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (memory != MAP_FAILED)
        the_board = static_cast<Board*>(memory);  // zeros: empty
    else
        the_path.clear();
    if (fd >= 0 && !the_path.starts_with("/proc/")) close(fd);
    Board& b = *the_board;
    b.generation = generation;
    b.rank = rank;
    b.pid = getpid();
    gethostname(b.host, sizeof b.host - 1);
    const std::int64_t now = monotonic_ns();
    b.phase_begin_ns.store(now);
    b.step_begin_ns.store(now);
    b.progress_ns.store(now);
    b.magic.store(kMagic, std::memory_order_release);
}

const std::string& board_path() { return the_path; }

BoardView read_board() { return view_of(*the_board); }

BoardView read_board_file(const std::string& path) {
    BoardView nothing{.rank = -1};
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return nothing;
    void* memory = MAP_FAILED;
    if (lseek(fd, 0, SEEK_END) == static_cast<off_t>(sizeof(Board)))
        memory = mmap(nullptr, sizeof(Board), PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (memory == MAP_FAILED) return nothing;
    const auto* b = static_cast<const Board*>(memory);
    const bool whole = b->magic.load(std::memory_order_acquire) == kMagic;
    BoardView v = whole ? view_of(*b) : nothing;
    munmap(memory, sizeof(Board));
    return v;
}

void set_phase(Phase phase) {
    Board& b = *the_board;
    const std::int64_t now = monotonic_ns();
    const int old = b.phase.load(kRelaxed);
    b.took_ns[old].store(now - b.phase_begin_ns.load(kRelaxed), kRelaxed);
    b.took_count[old].fetch_add(1, kRelaxed);
    b.phase_begin_ns.store(now, kRelaxed);
    b.phase.store(static_cast<std::int32_t>(phase), kRelaxed);
    b.progress_ns.store(now, kRelaxed);
}
Phase current_phase() { return static_cast<Phase>(the_board->phase.load(kRelaxed)); }
namespace {
// The innermost phase that an exception is leaving, or has left.
thread_local std::optional<Phase> left_by_exception;
}  // namespace

PhaseScope::PhaseScope(Phase phase) : before_(current_phase()) {
    left_by_exception.reset();
    set_phase(phase);
}
PhaseScope::~PhaseScope() {
    if (std::uncaught_exceptions() > 0 && !left_by_exception) left_by_exception = current_phase();
    set_phase(before_);
}
Phase phase_of_failure() { return left_by_exception.value_or(current_phase()); }

void board_step(std::int64_t step) {
    Board& b = *the_board;
    const std::int64_t now = monotonic_ns();
    blocked_at_step_begin = b.blocked_ns.load(kRelaxed);
    b.step.store(step, kRelaxed);
    b.step_begin_ns.store(now, kRelaxed);
    b.progress_ns.store(now, kRelaxed);
}

void board_step_done() {
    Board& b = *the_board;
    const std::int64_t total = monotonic_ns() - b.step_begin_ns.load(kRelaxed);
    const std::int64_t blocked = b.blocked_ns.load(kRelaxed) - blocked_at_step_begin;
    const std::uint64_t n = b.steps_done.load(kRelaxed);
    b.steps[n % kSteps].store(
        {b.step.load(kRelaxed), total, std::max<std::int64_t>(0, total - blocked)});
    b.steps_done.store(n + 1, std::memory_order_release);
}

void board_pulse() { progress_now(); }

void set_board_watched(bool watched) { the_board->watched.store(watched); }

void board_trouble(const std::string& text, double seconds) {
    Board& b = *the_board;
    if (b.watched.load() == 0) return;
    copy_text(b.trouble, text.c_str());
    b.has_trouble.store(1, std::memory_order_release);
    std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
}

CollectiveScope::CollectiveScope(const char* op, const Communicator& comm, std::int64_t count,
                                 const char* dtype, Site site, const char* how)
    : lane_(this_lane) {
    if (comm.size() == 1 || comm.group().ordinal == 0) return;
    Board& b = *the_board;
    GroupRow& group = comm.group();
    stamp_ = {.sequence = ++group.sequence,
              .count = count,
              .begin_ns = monotonic_ns(),
              .group_ordinal = group.ordinal,
              .group_first = group.first,
              .group_size = group.size,
              .line = site.line};
    copy_text(stamp_.op, op);
    copy_text(stamp_.how, how);
    copy_text(stamp_.group, comm.name().c_str());
    copy_text(stamp_.dtype, dtype);
    copy_text(stamp_.file, short_file(site.file));
    BoardLane& lane = lane_of(b, lane_);
    const std::uint64_t n = lane.count.load(kRelaxed);
    write_lane(lane, [&] {
        lane.ring[n % kRing].store(stamp_);
        lane.count.store(n + 1, kRelaxed);
        if (group.row < 0) return;
        b.rows[group.row].lane.store(static_cast<std::int32_t>(lane_), kRelaxed);
        b.rows[group.row].sequence.store(group.sequence, kRelaxed);
    });
    b.progress_ns.store(stamp_.begin_ns, kRelaxed);
}

CollectiveScope::~CollectiveScope() {
    if (stamp_.sequence == 0) return;
    Board& b = *the_board;
    stamp_.end_ns = monotonic_ns();
    BoardLane& lane = lane_of(b, lane_);
    const std::uint64_t n = lane.count.load(kRelaxed);
    if (n > 0) write_lane(lane, [&] { lane.ring[(n - 1) % kRing].store(stamp_); });
    if (lane_ == Lane::main) b.blocked_ns.fetch_add(stamp_.end_ns - stamp_.begin_ns, kRelaxed);
    b.progress_ns.store(stamp_.end_ns, kRelaxed);
}

QueueWaitScope::QueueWaitScope(Lane queue) : begin_ns_(monotonic_ns()) {
    the_board->queue_waited_for.store(static_cast<std::int32_t>(queue), kRelaxed);
}
QueueWaitScope::~QueueWaitScope() {
    the_board->queue_waited_for.store(0, kRelaxed);
    the_board->blocked_ns.fetch_add(monotonic_ns() - begin_ns_, kRelaxed);
    progress_now();
}

GroupRow open_group(const std::string& name, int first, int size) {
    Board& b = *the_board;
    GroupRow group{.ordinal = ordinal_of(name), .first = first, .size = size};
    if (size < 2) return group;
    int row = 0;
    while (row < kRows && b.rows[row].size.load(kRelaxed) != 0)
        ++row;
    if (row == kRows) return group;  // followed by its stamps only
    BoardRow& r = b.rows[row];
    r.ordinal.store(group.ordinal, kRelaxed);
    r.first.store(first, kRelaxed);
    r.sequence.store(0, kRelaxed);
    r.lane.store(static_cast<std::int32_t>(Lane::main), kRelaxed);
    copy_text(r.name, name.c_str());
    r.size.store(size, std::memory_order_release);
    b.rows_made.store(std::max(b.rows_made.load(kRelaxed), row + 1), std::memory_order_release);
    group.row = row;
    return group;
}
void close_group(GroupRow& group) {
    if (group.row >= 0) the_board->rows[group.row].size.store(0, kRelaxed);
    group.row = -1;
}

}  // namespace stoa
