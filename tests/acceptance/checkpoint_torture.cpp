// 500 kills at random moments of saving and 500 flipped bits: never a wrong load, never a crash,
// never a hand that has to help, at most one save lost.
//   checkpoint_torture [--quick]
// Kills (SIGKILL to all ranks, or to one of them): a loop of saves on 2 to 4 tensor-parallel ranks
// and in one process, whose saver says in shared memory which phase it is in, so that kills can be
// aimed at each phase; and `stoa train` itself at any moment. Flips: one bit of one file of the
// newest checkpoint (rank files, state.h5, manifest.json; half of them in HDF5's metadata at the
// front), each looked at by a process of its own.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstring>
#include <map>
#include <new>
#include <nlohmann/json.hpp>
#include <thread>

#include "checkpoints/rank_file.h"
#include "checkpoints/run_directory.h"
#include "checkpoints/run_identity.h"
#include "checkpoints/saver.h"
#include "kernels/core/philox.h"
#include "parallel/collectives.h"
#include "parallel/mpi_session.h"
#include "tests/support/checkpoints.h"
#include "tests/support/tiny_project.h"

using namespace stoa;
using namespace stoa::test;
using nlohmann::json;
using Clock = std::chrono::steady_clock;

namespace {

constexpr int kMostRanks = 4;
constexpr std::int64_t kInterval = 3;  // steps between saves
const char* const kPhases[] = {"idle",   "snapshot", "prepare", "write",
                               "gather", "manifest", "rename",  "prune"};
constexpr int kPhaseCount = 8;

/// What the ranks tell the killer, in a mapped file.
struct Board {
    std::atomic<int> phase[kMostRanks];
    std::atomic<int> pid[kMostRanks];
    std::atomic<std::int64_t> step, started, committed;  // of rank 0; 0: none yet
    std::atomic<int> wrong;                              // a rank met wrong bits
};
Board* map_board(const std::string& path) {
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT, 0644);
    if (fd < 0 || ::ftruncate(fd, sizeof(Board)) != 0) throw std::runtime_error(path);
    void* p = ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    ::close(fd);
    if (p == MAP_FAILED) throw std::runtime_error("mmap " + path);
    return static_cast<Board*>(p);
}

int number_of(const char* phase) {
    for (int i = 0; i < kPhaseCount; ++i)
        if (std::strcmp(phase, kPhases[i]) == 0) return i;
    return 0;
}

/// A run of nothing but saves: goes on from the newest checkpoint, for ever.
void save_for_ever(const std::string& run_dir, Board& board, const Mesh& mesh) {
    const int rank = mesh.world.rank();
    board.pid[rank] = static_cast<int>(::getpid());
    std::filesystem::create_directories(run_dir);
    const RunIdentity me = claim_run(run_dir, mesh.world);
    if (rank == 0) clean_run_directory(run_dir, me.generation);
    barrier(mesh.world);
    const FoundCheckpoint found = find_newest(run_dir, mesh, me.run_id);
    if (rank == 0) set_aside(found.refused);
    barrier(mesh.world);
    State state = make_state(mesh.tp_rank(), mesh.tp_size());
    std::int64_t step = 0;
    if (!found.dir.empty()) {
        step = load_checkpoint(found.dir, state.shards, mesh).step;
        if (count_wrong(state, static_cast<std::uint64_t>(step)) != 0) board.wrong = 1;
    }
    Buffer memory(snapshot_bytes(state.shards, mesh.tp_rank(), mesh.dp_rank()) + 64);
    const TensorView snapshot{memory.data(), DType::int32, {memory.bytes() / 4}, {}};
    CheckpointSaver saver(run_dir, {.generation = me.generation,
                                    .keep = {2, 50 * kInterval},
                                    .read_back = true,
                                    .entered = [&](const char* phase) {
                                        board.phase[rank] = number_of(phase);
                                        // Long enough to be met: some take a microsecond.
                                        std::this_thread::sleep_for(std::chrono::microseconds(150));
                                    }});
    for (;;) {
        ++step;
        fill(state, static_cast<std::uint64_t>(step));
        if (rank == 0) board.step = step;
        const SaveWords mine = saver.words();
        std::int32_t words[2] = {mine.busy, mine.failed};
        all_reduce({reinterpret_cast<std::byte*>(words), DType::int32, {2}, {}}, ReduceOp::max,
                   mesh.world, {});
        const auto note = [&](const SaveReport& r) {
            if (r.failure) throw Error(*r.failure);
            if (rank == 0) board.committed = r.step;
        };
        if (const auto report = saver.advance({words[0], words[1]}, mesh)) note(*report);
        if (step % kInterval == 0) {
            if (saver.saving()) note(saver.finish(mesh));
            if (rank == 0) board.started = step;
            CheckpointMeta meta = make_meta(step);
            meta.run_id = me.run_id;
            saver.start(meta, state.shards, snapshot, mesh);
        }
        std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
}

// argv: --rank RUN_DIR BOARD
int rank_main(int argc, char** argv) {
    MpiSession session(argc, argv);
    const Mesh mesh = make_mesh(1, session.size());
    try {
        save_for_ever(argv[2], *map_board(argv[3]), mesh);
    } catch (const Error& e) {
        fmt::print(stderr, "rank {}: {}\n", session.rank(), e.what());
        MpiSession::abort(static_cast<int>(e.code()));
    }
    return 0;
}

// argv: --make RUN_DIR: two checkpoints, for the flips.
int make_main(int argc, char** argv) {
    MpiSession session(argc, argv);
    Mesh mesh = make_mesh(1, session.size());
    State state = make_state(mesh.tp_rank(), mesh.tp_size());
    for (const std::int64_t step : {1, 2}) {
        fill(state, static_cast<std::uint64_t>(step));
        save_checkpoint(argv[2], make_meta(step), state.shards, mesh);
    }
    close_mesh(mesh);
    session.close();
    return 0;
}

/// The step of the newest checkpoint whose every bit is right; 0: none, -1: wrong bits.
std::int64_t newest_right_step(const std::string& run_dir) {
    const std::string dir = find_checkpoint(run_dir, Mesh{});
    if (dir.empty()) return 0;
    State back = make_state(0, 1);
    const CheckpointMeta meta = load_checkpoint(dir, back.shards, Mesh{});
    return count_wrong(back, static_cast<std::uint64_t>(meta.step)) == 0 ? meta.step : -1;
}

struct Tally {
    int kills = 0, in_save = 0, wrong = 0, lost_too_much = 0, no_start = 0, torn = 0;
    std::int64_t worst_lost_steps = 0;
    std::map<std::string, int> phases;
};

pid_t spawn(const std::vector<std::string>& command, const std::string& output) {
    const pid_t pid = ::fork();
    if (pid != 0) return pid;
    ::setsid();
    const int fd = ::open(output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    ::dup2(fd, 1);
    ::dup2(fd, 2);
    std::vector<char*> words;
    for (const std::string& w : command)
        words.push_back(const_cast<char*>(w.c_str()));
    words.push_back(nullptr);
    ::execvp(words[0], words.data());
    ::_exit(127);
}

/// One life of a run of saves and its end. `ranks` 1: a process without mpirun.
void kill_once(const char* self, const std::string& run, int ranks, Draws& draws, Tally& tally) {
    const std::string path = run + ".board";
    std::filesystem::remove(path);
    Board& board = *map_board(path);
    pid_t child = 0;
    if (ranks == 1) {
        child = ::fork();
        if (child == 0) {
            try {
                save_for_ever(run, board, Mesh{});
            } catch (const std::exception& e) {
                fmt::print(stderr, "{}\n", e.what());
            }
            ::_exit(1);
        }
    } else {
        child = spawn({"mpirun", "-q", "--mca", "odls_base_sigkill_timeout", "0", "-n",
                       std::to_string(ranks), self, "--rank", run, path},
                      run + ".log");
    }
    const auto target = static_cast<int>(draws.below(kPhaseCount));
    const auto watched = target == number_of("write")
                             ? static_cast<int>(draws.below(static_cast<std::uint32_t>(ranks)))
                             : 0;
    const bool all = draws.below(3) != 0;
    const auto victim = static_cast<int>(draws.below(static_cast<std::uint32_t>(ranks)));
    const auto saves = static_cast<std::int64_t>(draws.below(4));  // committed before
    const auto delay = std::chrono::microseconds(draws.between(0, 300));
    const auto begin = Clock::now();
    const auto waited = [&] { return std::chrono::duration<double>(Clock::now() - begin).count(); };
    while (board.started == 0 && waited() < 60.0)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const double until = waited() + 2.0;  // or at whatever moment it then is
    while (waited() < until &&
           (board.committed < saves * kInterval || board.phase[watched] != target))
        std::this_thread::sleep_for(std::chrono::microseconds(20));
    std::this_thread::sleep_for(delay);
    const int phase = board.phase[watched];
    for (int r = 0; r < ranks; ++r)
        if ((all || r == victim) && board.pid[r] > 0) ::kill(board.pid[r], SIGKILL);
    const bool started = board.started > 0;
    if (!started) ::kill(-child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    ++tally.kills;
    ++tally.phases[kPhases[phase]];
    tally.in_save += phase != 0;
    tally.no_start += !started;
    tally.wrong += board.wrong;
    for (const auto& entry : std::filesystem::directory_iterator(run + "/ckpt"))
        tally.torn += entry.path().filename().string().starts_with(".");
    std::int64_t step = -1;
    try {
        step = newest_right_step(run);
    } catch (const Error& e) {
        fmt::print(stderr, "no checkpoint after a kill in {}: {}\n", kPhases[phase], e.what());
    }
    tally.wrong += step < 0;
    // Nothing committed is lost, so at most the one save that was being written.
    const std::int64_t lost = board.step - step;
    tally.worst_lost_steps = std::max(tally.worst_lost_steps, lost);
    if (step < board.committed || step < board.started - kInterval) {
        ++tally.lost_too_much;
        fmt::print(stderr, "step {}: started {}, committed {}, found {}\n", board.step.load(),
                   board.started.load(), board.committed.load(), step);
    }
    ::munmap(&board, sizeof(Board));
}

std::map<std::string, std::string> final_state(const std::string& run_dir) {
    std::map<std::string, std::string> state;
    const auto all = list_checkpoints(run_dir);
    if (all.empty()) return state;
    for (const CheckpointTensor& t : read_checkpoint_info(all.back()).tensors)
        state[t.name] = t.xxh3;
    return state;
}

/// Real runs, killed at any moment; returns whether the end is that of an undisturbed run.
bool kill_training(int kills, Draws& draws, Tally& tally) {
    const TempDir dir;
    const std::int64_t stage_steps = kills <= 10 ? 40 : 600;
    if (make_tiny_project(dir.path, stage_steps).code != 0) return false;
    const auto command = [&](const std::string& name) {
        return std::vector<std::string>{"mpirun",
                                        "-q",
                                        "-n",
                                        "2",
                                        stoa_binary(),
                                        "train",
                                        dir / "run.yaml",
                                        "run.name=" + name,
                                        "checkpoint.every=5 steps"};
    };
    const auto finish = [&](const std::string& name) {
        int status = 0;
        ::waitpid(spawn(command(name), dir / (name + ".log")), &status, 0);
        return WIFEXITED(status) && WEXITSTATUS(status) == 0;
    };
    if (!finish("whole")) return false;
    const std::string run = dir / "runs/killed";
    for (int k = 0; k < kills; ++k) {
        const std::size_t before = read_text(run + "/metrics.jsonl").size();
        const pid_t child = spawn(command("killed"), dir / "killed.log");
        for (int i = 0; i < 3000 && read_text(run + "/metrics.jsonl").size() <= before &&
                        ::waitpid(child, nullptr, WNOHANG) == 0;
             ++i)
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
        std::this_thread::sleep_for(std::chrono::microseconds(draws.between(0, 60000)));
        run_shell(fmt::format("pkill -KILL -s {}", child));
        int status = 0;
        ::waitpid(child, &status, 0);
        ++tally.kills;
        ++tally.phases["stoa train, any"];
        const auto all = list_checkpoints(run);
        try {
            if (!all.empty()) verify_checkpoint(find_checkpoint(run, Mesh{}));
        } catch (const Error& e) {
            fmt::print(stderr, "{}\n", e.what());
            ++tally.wrong;
        }
    }
    const bool ended = finish("killed");
    if (!ended) fmt::print(stderr, "{}\n", read_text(dir / "killed.log"));
    return ended && final_state(run) == final_state(dir / "runs/whole");
}

/// What a start does with a damaged newest checkpoint, in a process of its own: 0 as it should be.
int look_at_damage(const std::string& run, const std::string& damaged, bool go_on) {
    State back = make_state(0, 1);
    try {  // without looking first: damage that no tensor touches may pass, other bits may not
        load_checkpoint(damaged, back.shards, Mesh{});
        if (count_wrong(back, 2) != 0) return 1;
    } catch (const Error& e) {
        if (e.code() != ExitCode::checkpoint) return 2;
    }
    const FoundCheckpoint found = find_newest(run, Mesh{});
    back = make_state(0, 1);
    if (load_checkpoint(found.dir, back.shards, Mesh{}).step != 1 || count_wrong(back, 1) != 0)
        return 3;
    if (!go_on) return 0;
    set_aside(found.refused);  // and the run saves the same step once more
    fill(back, 2);
    save_checkpoint(run, make_meta(2), back.shards, Mesh{});
    return list_refused(run).size() == 1 && newest_right_step(run) == 2 ? 0 : 4;
}

json flip_bits(const char* self, int flips, Draws& draws) {
    namespace fs = std::filesystem;
    const TempDir dir;
    const std::string run = dir / "run";
    const Outcome made = run_shell(fmt::format("mpirun -q -n 4 {} --make {}", self, run));
    if (made.code != 0) fmt::print(stderr, "{}\n", made.output);
    const std::string newest = committed_dir(run, 2);
    std::vector<std::string> files;
    for (const auto& entry : fs::directory_iterator(newest))
        files.push_back(entry.path().filename().string());
    std::ranges::sort(files);
    int wrong = 0, crashes = 0;
    std::map<std::string, int> by_file;
    for (int i = 0; i < flips && made.code == 0; ++i) {
        const std::string name = files[static_cast<std::size_t>(i) % files.size()];
        const std::string path = newest + "/" + name, whole = slurp(path);
        const bool front = draws.below(2) == 0;
        const std::size_t span = front ? std::min<std::size_t>(whole.size(), 2048) : whole.size();
        const std::size_t at = draws.below(static_cast<std::uint32_t>(span));
        std::string bytes = whole;
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << draws.below(8)));
        const bool go_on = i % 10 == 9;
        const std::string here = go_on ? dir / "copy" : run;
        spill(path, bytes);
        if (go_on) fs::copy(run, here, fs::copy_options::recursive);
        const pid_t child = ::fork();
        if (child == 0) {
            const int null = ::open("/dev/null", O_WRONLY);
            ::dup2(null, 2);
            int rc = 5;
            try {
                rc = look_at_damage(here, committed_dir(here, 2), go_on);
            } catch (const std::exception&) {
            }
            ::_exit(rc);
        }
        int status = 0;
        ::waitpid(child, &status, 0);
        if (!WIFEXITED(status)) ++crashes;
        if (WIFEXITED(status) && WEXITSTATUS(status) != 0) ++wrong;
        if (status != 0) fmt::print(stderr, "flip of {} at {}: status {:#x}\n", name, at, status);
        ++by_file[name];
        spill(path, whole);
        if (go_on) fs::remove_all(here);
    }
    return {{"flips", made.code == 0 ? flips : 0},
            {"wrong_loads", wrong},
            {"crashes", crashes},
            {"by_file", by_file}};
}

}  // namespace

int main(int argc, char** argv) {
    if (argc > 3 && std::strcmp(argv[1], "--rank") == 0) return rank_main(argc, argv);
    if (argc > 2 && std::strcmp(argv[1], "--make") == 0) return make_main(argc, argv);
    const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
    for (const char* name : {"OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM",
                             "OMPI_MCA_rmaps_base_oversubscribe"})
        ::setenv(name, "1", 1);
    ::setenv("OMPI_MCA_hwloc_base_binding_policy", "none", 1);
    const int alone = quick ? 30 : 180, together = quick ? 9 : 300, training = quick ? 2 : 20;
    const int flips = quick ? 60 : 500;
    Draws draws(mix_key(5, 77), 0);
    const auto begin = Clock::now();
    const auto so_far = [&](const char* what) {
        fmt::print("{}: {:.1f} s\n", what,
                   std::chrono::duration<double>(Clock::now() - begin).count());
        std::fflush(stdout);
    };
    const json flipped = flip_bits(argv[0], flips, draws);
    so_far("flips");
    Tally tally;
    {
        const TempDir dir;
        for (int i = 0; i < alone; ++i)
            kill_once(argv[0], dir / "alone", 1, draws, tally);
        so_far("kills of one process");
        for (int i = 0; i < together; ++i) {
            const int ranks = i % 3 == 2 ? 4 : i % 3 == 1 ? 3 : 2;
            kill_once(argv[0], dir / "together", ranks, draws, tally);
        }
        so_far("kills under mpirun");
    }
    const bool same_end = kill_training(training, draws, tally);
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    const bool holds = flipped["flips"] == flips && flipped["wrong_loads"] == 0 &&
                       flipped["crashes"] == 0 && tally.wrong == 0 && tally.no_start == 0 &&
                       tally.lost_too_much == 0 && same_end && tally.torn > 0;
    fmt::print("{}\n", json{{"kills", tally.kills},
                            {"kills_by_phase", tally.phases},
                            {"kills_that_left_something_half_done", tally.torn},
                            {"kills_without_a_start", tally.no_start},
                            {"wrong_or_no_load", tally.wrong},
                            {"lost_more_than_the_save_in_flight", tally.lost_too_much},
                            {"save_interval_steps", kInterval},
                            {"worst_lost_steps", tally.worst_lost_steps},
                            {"training_ends_with_the_same_bits", same_end},
                            {"bit_flips", flipped},
                            {"seconds", seconds},
                            {"holds", holds}}
                           .dump());
    return holds ? 0 : 1;
}
