// A run that lasts and is not left in peace: about every two minutes something happens to a rank,
// to mpirun, to the supervisor or to the newest checkpoint. What the faults cost is kept in a
// ledger; the weights at the end are those of the run that nobody disturbed.
//   soak [--quick] [--minutes M] [--every SECONDS]      60 minutes (quick: half a one, a fault
//   every 10 s)
// A step is made to last 100 ms (STOA_PACE_MS), most of it asleep: what is tried is the machinery,
// and the undisturbed run need not take another hour. goodput: time in steps that were kept / time
// from the first start to the end.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <future>
#include <thread>

#include "checkpoints/checkpoint.h"
#include "kernels/core/philox.h"
#include "tests/support/supervised.h"

using namespace stoa;
using namespace stoa::test;

namespace {

constexpr double kStepSeconds = 0.1;

enum class Blow {
    kill_rank,
    stop_rank,
    segv_rank,
    pause_rank,
    kill_mpirun,
    term_supervisor,
    kill_supervisor,
    flip_and_kill,
    cut_manifest_and_kill
};
constexpr const char* kNames[] = {"kill -9 a rank",
                                  "stop a rank",
                                  "SIGSEGV to a rank",
                                  "stop a rank for a second",
                                  "kill -9 mpirun",
                                  "SIGTERM to the supervisor, started again",
                                  "kill -9 the supervisor, started again",
                                  "flip a bit of the newest checkpoint, kill -9 a rank",
                                  "cut the newest manifest, kill -9 a rank"};
constexpr std::size_t kBlows = std::size(kNames);

struct Soak {
    std::string dir, run_dir;
    Draws draws{mix_key(2026, 11), 5};
    std::unique_ptr<Launch> launch;
    int launches = 0;
    bool ended = false;
    int exit_code = -1;

    void start() {
        const int tp = draws.below(2) == 0 ? 1 : 2;  // the sums have one order on both meshes
        launch = std::make_unique<Launch>(
            fmt::format("--ranks 2 --tp {} --limit step=2s {}/run.yaml run.name=soaked "
                        "'parallel.determinism=elastic 2x2' 'checkpoint.every=50 steps'",
                        tp, dir),
            "STOA_PACE_MS=100", fmt::format("{}/launch-{:03}.log", dir, launches++));
    }
    /// Starts it again when it was asked to stop; notes its end otherwise.
    void look_after() {
        const auto code = launch->wait(0.0);
        if (!code || ended) return;
        if (*code == 75 || *code == 128 + SIGKILL) return start();
        ended = true;
        exit_code = *code;
    }
    /// Live processes of the run whose name is `name`, without the supervisor.
    std::vector<int> processes(const std::string& name, const std::string& verb) const {
        std::vector<int> found;
        for (const int pid : processes_of(run_dir)) {
            std::string words = read_text("/proc/" + std::to_string(pid) + "/cmdline");
            std::ranges::replace(words, '\0', ' ');
            const std::string first = words.substr(0, words.find(' '));
            if (first.ends_with(name) && words.find(verb) != std::string::npos)
                found.push_back(pid);
        }
        return found;
    }
    int some_rank() {
        const auto ranks = processes("stoa", " train ");
        return ranks.empty() ? 0 : ranks[draws.below(static_cast<std::uint32_t>(ranks.size()))];
    }
    bool damage_newest(bool manifest) {
        const auto all = list_checkpoints(run_dir);
        if (all.empty()) return false;
        std::vector<std::string> files;
        for (const auto& entry : fs::directory_iterator(all.back()))
            files.push_back(entry.path().string());
        std::ranges::sort(files);
        const std::string file = manifest
                                     ? all.back() + "/manifest.json"
                                     : files[draws.below(static_cast<std::uint32_t>(files.size()))];
        std::string bytes = read_text(file);
        if (bytes.empty()) return false;
        const auto at = draws.below(static_cast<std::uint32_t>(bytes.size()));
        if (manifest)
            bytes.resize(at);
        else
            bytes[at] = static_cast<char>(bytes[at] ^ (1 << draws.below(8)));
        write_text(file, bytes);
        return true;
    }
    /// False where there was nothing to do it to.
    bool inject(Blow fault) {
        const int rank = some_rank();
        if (rank == 0) return false;
        switch (fault) {
            case Blow::kill_rank:
                return kill(rank, SIGKILL) == 0;
            case Blow::stop_rank:
                return kill(rank, SIGSTOP) == 0;
            case Blow::segv_rank:
                return kill(rank, SIGSEGV) == 0;
            case Blow::pause_rank:
                if (kill(rank, SIGSTOP) != 0) return false;
                std::this_thread::sleep_for(std::chrono::seconds(1));
                return kill(rank, SIGCONT) == 0;
            case Blow::kill_mpirun: {
                const auto found = processes("mpirun", " train ");
                return !found.empty() && kill(found.front(), SIGKILL) == 0;
            }
            case Blow::term_supervisor:
                launch->send(SIGTERM);
                return true;
            case Blow::kill_supervisor:
                launch->send(SIGKILL);
                return true;
            case Blow::flip_and_kill:
                return damage_newest(false) && kill(rank, SIGKILL) == 0;
            case Blow::cut_manifest_and_kill:
                return damage_newest(true) && kill(rank, SIGKILL) == 0;
        }
        return false;
    }
};

std::string number(const char* name, int argc, char** argv, const std::string& otherwise) {
    for (int i = 1; i + 1 < argc; ++i)
        if (std::strcmp(argv[i], name) == 0) return argv[i + 1];
    return otherwise;
}

}  // namespace

int main(int argc, char** argv) {
    const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
    const double minutes = std::atof(number("--minutes", argc, argv, quick ? "0.5" : "60").c_str());
    const double every = std::atof(number("--every", argc, argv, quick ? "10" : "120").c_str());
    const TempDir dir;
    const auto steps = static_cast<std::int64_t>(60.0 * minutes / kStepSeconds);
    const Outcome built = make_tiny_project(dir.path, steps / 2);
    if (built.code != 0) {
        fmt::print(stderr, "{}\n", built.output);
        return 1;
    }
    const auto before = temporary_names();
    Soak soak{.dir = dir.path, .run_dir = dir / "runs/soaked"};
    auto undisturbed = std::async(std::launch::async, [&] {  // without pace: minutes
        return run_shell(train_command(
            dir.path, 1, "run.name=whole 'parallel.determinism=elastic 2x2' checkpoint.every=0"));
    });
    const auto begin = SteadyClock::now();
    soak.start();
    Json ledger = Json::array();
    double cost_s = 0.0;
    std::size_t turn = 0;
    std::vector<std::size_t> order(kBlows);
    for (double next = every; !soak.ended;) {
        soak.look_after();
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        if (seconds_since(begin) < next) continue;
        next += every * (0.8 + 0.4 * soak.draws.below(1000) / 1000.0);
        if (turn % kBlows == 0) {  // each once, in another order every time
            for (std::size_t i = 0; i < kBlows; ++i)
                order[i] = i;
            for (std::size_t i = kBlows - 1; i > 0; --i)
                std::swap(order[i], order[soak.draws.below(static_cast<std::uint32_t>(i + 1))]);
        }
        const auto fault = static_cast<Blow>(order[turn % kBlows]);
        const std::int64_t reached = last_step(soak.run_dir);
        const auto hit = SteadyClock::now();
        if (!soak.inject(fault)) continue;
        ++turn;
        // Until the run is further: a step or two may still have been on their way.
        while (!soak.ended && last_step(soak.run_dir) < reached + 3 && seconds_since(hit) < 120.0) {
            soak.look_after();
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
        }
        const double cost = seconds_since(hit);
        cost_s += cost;
        next = std::max(next, seconds_since(begin) + every / 2);
        ledger.push_back({{"at_s", std::round(10 * seconds_since(begin)) / 10},
                          {"fault", kNames[static_cast<std::size_t>(fault)]},
                          {"step", reached},
                          {"until_regained_s", std::round(100 * cost) / 100}});
        fmt::print("{}\n", ledger.back().dump());
        std::fflush(stdout);
    }
    const double wall = seconds_since(begin);
    double kept_s = 0.0;
    std::vector<double> step_s;
    for (const Json& line : json_lines(soak.run_dir + "/metrics.jsonl")) {
        step_s.push_back(1e-3 * line.value("step_ms", 0.0));
        kept_s += step_s.back();
    }
    std::ranges::sort(step_s);
    const double median_s = step_s.empty() ? 0.0 : step_s[step_s.size() / 2];
    const std::string left = leftovers(soak.run_dir, before);
    const bool once = each_step_once(soak.run_dir, steps / 2 * 2);

    const Outcome whole = undisturbed.get();
    const auto want = last_state(dir / "runs/whole"), got = last_state(soak.run_dir);
    const bool same = whole.code == 0 && !want.empty() && want == got;
    const double goodput = kept_s / wall, bar = quick ? 0.4 : 0.9;
    const bool holds = soak.exit_code == 0 && same && once && left.empty() && goodput >= bar &&
                       turn > 0 && (quick || wall >= 3600.0);
    if (soak.exit_code != 0)
        fmt::print(stderr, "{}\n",
                   read_text(fmt::format("{}/launch-{:03}.log", dir.path, soak.launches - 1)));
    fmt::print("{}\n", Json{{"wall_s", wall},
                            {"steps", steps / 2 * 2},
                            {"faults", turn},
                            {"launches", soak.launches},
                            {"faults_seen_by_supervisors", events_of(soak.run_dir, "fault").size()},
                            {"goodput", goodput},
                            {"goodput_bar", bar},
                            {"kept_steps_x_median_step_over_wall",
                             static_cast<double>(step_s.size()) * median_s / wall},
                            {"cost_s", cost_s},
                            {"same_bits", same},
                            {"each_step_once", once},
                            {"left_behind", left},
                            {"exit_code", soak.exit_code},
                            {"ledger", ledger},
                            {"holds", holds}}
                           .dump());
    return holds ? 0 : 1;
}
