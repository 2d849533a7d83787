// Every fault of the table in docs/launcher.md that one machine can make, against `stoa launch`
// with four ranks: how long until it is noticed and until training goes on, whether the first cause
// is named once, and whether the end is that of the run that nobody disturbed.
//   fault_matrix [--quick] [row ...]      5 repeats a row, 200 of SIGTERM and SIGUSR2 (quick: 1,
//   and fewer rows)
// Times are those of an idle machine, times CI_SLACK. Prints one JSON object last.
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>

#include "tests/support/supervised.h"

using namespace stoa;
using namespace stoa::test;

namespace {

constexpr std::int64_t kStageSteps = 20, kSteps = 2 * kStageSteps;
constexpr double kPatience = 180.0;
constexpr int kRanks = 4;

struct Place {
    TempDir dir;
    std::map<std::string, std::string> undisturbed;
    std::string run_dir(const std::string& name) const { return dir.path + "/runs/" + name; }
    std::string words(const std::string& name, const std::string& more) const {
        return fmt::format(
            "--ranks {} {}/run.yaml run.name={} model.n_kv_heads=4 eval.problems=1 "
            "eval.sequences=1 {}",
            kRanks, dir.path, name, more);
    }
};

/// One fault, once.
struct Trial {
    bool holds = true;
    std::string why;            // not
    double noticed_s = -1.0;    // from the fault to its event
    double recovered_s = -1.0;  // from the fault to the first step of the next generation
    void require(bool ok, const std::string& what) {
        if (ok || !holds) return;
        holds = false;
        why = what;
    }
};

struct Row {
    std::string name;
    std::string cause, kind;  // of the fault event; "" any
    int rank = 1;
    double noticed_limit = 0.5, recovered_limit = 3.0;  // seconds
    std::string fault;                                  // STOA_FAULT
    std::string options;                                // of stoa launch
    int signal = 0;                                     // to the rank, from outside
    std::int64_t at_step = 12;
};

double modified(const std::string& path) {
    struct stat s {};
    if (stat(path.c_str(), &s) != 0) return 0.0;
    return static_cast<double>(s.st_mtim.tv_sec) + 1e-9 * static_cast<double>(s.st_mtim.tv_nsec);
}

// What holds after every fault: the same bits, each step once, one first cause, nothing left.
void require_whole(Trial& t, const Place& place, const std::string& name, int faults,
                   const std::set<std::string>& before) {
    const std::string dir = place.run_dir(name);
    t.require(last_state(dir) == place.undisturbed, "other bits or counters at the end");
    t.require(each_step_once(dir, kSteps), "a step is missing or doubled in metrics.jsonl");
    const auto seen = events_of(dir, "fault").size();
    t.require(static_cast<int>(seen) == faults, fmt::format("{} fault events", seen));
    const std::string left = leftovers(dir, before);
    t.require(left.empty(), "left behind: " + left);
}

std::size_t begins(const std::string& dir) {  // of generations, as rank 0 sees them
    return events_of(dir, "start").size() + events_of(dir, "resume").size();
}

/// Seconds since 1970 when the first step after `before` beginnings was done; -1: never.
double first_step_after(const std::string& dir, Launch& launch, std::size_t before) {
    if (!launch.until([&] { return begins(dir) > before; }, kPatience)) return -1.0;
    const std::string path = dir + "/metrics.jsonl";
    const double at_resume = modified(path);  // it was cut just before
    launch.until([&] { return modified(path) > at_resume; }, kPatience);
    return modified(path);
}

Trial run_trial(const Place& place, const Row& row, const std::string& name) {
    Trial t;
    const auto before = temporary_names();
    const std::string dir = place.run_dir(name);
    Launch launch(place.words(name, row.options),
                  row.fault.empty() ? "" : "STOA_FAULT='" + row.fault + "'",
                  place.dir.path + "/" + name + ".log");
    double struck = 0.0;  // when the fault happened
    if (row.signal != 0) {
        launch.until(
            [&] { return last_step(dir) >= row.at_step && rank_pid(dir, 0, row.rank) > 0; },
            kPatience);
        const int pid = rank_pid(dir, 0, row.rank);
        t.require(pid > 0, "no rank to send a signal to");
        struck = unix_now();
        if (pid > 0) kill(pid, row.signal);
    }
    launch.until([&] { return !events_of(dir, "fault").empty(); }, kPatience);
    const std::size_t begun = begins(dir);
    const double seen = unix_now();
    const auto faults = events_of(dir, "fault");
    t.require(!faults.empty(), "no fault event");
    if (!faults.empty()) {
        const Json& f = faults[0];
        const double event_time = unix_time(f.value("time", ""));
        // By a hook: the rank's last sign of life before, which is the step before the fault.
        if (struck == 0.0) struck = event_time - 1e-3 * f.value("noticed_ms", 0.0);
        t.noticed_s = std::max(0.0, std::min(event_time, seen) - struck);
        t.require(row.cause.empty() || f.value("cause", "") == row.cause,
                  "cause " + f.value("cause", ""));
        t.require(row.kind.empty() || f.value("kind", "") == row.kind,
                  "kind " + f.value("kind", ""));
        t.require(f.value("rank", -2) == row.rank, fmt::format("rank {}", f.value("rank", -2)));
        const double again = first_step_after(dir, launch, begun);
        if (again > 0.0) t.recovered_s = again - struck;
    }
    const auto code = launch.wait(kPatience);
    t.require(code == 0, fmt::format("exit code {}", code.value_or(-1)));
    require_whole(t, place, name, 1, before);
    const double slack = ci_slack();
    t.require(t.noticed_s <= row.noticed_limit * slack,
              fmt::format("noticed after {:.2f} s", t.noticed_s));
    t.require(t.recovered_s >= 0.0 && t.recovered_s <= row.recovered_limit * slack,
              fmt::format("training again after {:.2f} s", t.recovered_s));
    if (!t.holds) fmt::print(stderr, "{}: {}\n{}\n", name, t.why, launch.output());
    return t;
}

double median(std::vector<double> v) {
    if (v.empty()) return -1.0;
    std::ranges::sort(v);
    return v[v.size() / 2];
}

Json summary(const std::string& name, const std::vector<Trial>& trials) {
    std::vector<double> noticed, recovered;
    bool holds = !trials.empty();
    std::string why;
    for (const Trial& t : trials) {
        if (t.noticed_s >= 0.0) noticed.push_back(t.noticed_s);
        if (t.recovered_s >= 0.0) recovered.push_back(t.recovered_s);
        holds = holds && t.holds;
        if (!t.holds) why = t.why;
    }
    const auto figures = [](const std::vector<double>& v) {
        return v.empty() ? Json()
                         : Json{{"median", median(v)}, {"worst", *std::ranges::max_element(v)}};
    };
    Json row{{"row", name},
             {"trials", trials.size()},
             {"noticed_s", figures(noticed)},
             {"recovered_s", figures(recovered)},
             {"holds", holds}};
    if (!holds) row["why"] = why;
    return row;
}

// Row 4: the last finished step is saved; the same command ends with the same bits.
Trial drain(const Place& place, int signal, const std::string& name) {
    Trial t;
    const auto before = temporary_names();
    const std::string dir = place.run_dir(name);
    {
        Launch launch(place.words(name, "'checkpoint.every=1000 steps'"), "",
                      place.dir.path + "/" + name + ".log");
        launch.until([&] { return last_step(dir) >= 5; }, kPatience);
        const double asked = unix_now();
        launch.send(signal);
        const auto code = launch.wait(kPatience);
        t.noticed_s = unix_now() - asked;
        t.require(code == 75, fmt::format("exit code {}", code.value_or(-1)));
        t.require(t.noticed_s <= 2.0 * ci_slack(), fmt::format("took {:.2f} s", t.noticed_s));
        const auto all = list_checkpoints(dir);
        t.require(all.size() == 1 && read_checkpoint_info(all.back()).meta.step == last_step(dir),
                  "the last finished step is not in a checkpoint");
    }
    Launch again(place.words(name, ""), "", place.dir.path + "/" + name + ".log");
    t.require(again.wait(kPatience) == 0, "the second launch failed");
    require_whole(t, place, name, 0, before);
    return t;
}

// Row 15.
Trial crash_loop(const Place& place) {
    Trial t;
    const auto before = temporary_names();
    const auto begin = SteadyClock::now();
    Launch launch(place.words("crash-loop", "--max-restarts 3"), "STOA_FAULT='throw-start@0:1*'",
                  place.dir.path + "/crash-loop.log");
    t.require(launch.wait(kPatience) == 69, "exit code is not 69");
    t.recovered_s = seconds_since(begin);
    t.require(t.recovered_s <= (0 + 1 + 2 + 5) * ci_slack(),
              fmt::format("gave up after {:.1f} s", t.recovered_s));
    t.require(events_of(place.run_dir("crash-loop"), "fault").size() == 4, "not 4 faults");
    t.require(leftovers(place.run_dir("crash-loop"), before).empty(), "left something");
    t.require(launch.output().find("first cause: crash") != std::string::npos,
              "the last line does not name the cause");
    return t;
}

// Row 16.
Trial two_launches(const Place& place, const std::string& name) {
    Trial t;
    Launch first(place.words(name, "stages.0.tokens=4M"), "", place.dir.path + "/" + name + ".log");
    first.until([&] { return last_step(place.run_dir(name)) >= 2; }, kPatience);
    const auto begin = SteadyClock::now();
    const Outcome second = run_shell(stoa_binary() + " launch " + place.words(name, ""));
    t.noticed_s = seconds_since(begin);
    t.require(second.code == 2, fmt::format("exit code {}", second.code));
    t.require(second.output.find(fmt::format("pid {}", first.pid())) != std::string::npos,
              "the owner is not named");
    t.require(t.noticed_s <= 1.0 * ci_slack(), fmt::format("after {:.2f} s", t.noticed_s));
    first.send(SIGTERM);
    t.require(first.wait(kPatience) == 75, "the first one was disturbed");
    return t;
}

// Row 17.
Trial supervisor_killed(const Place& place, const std::string& name) {
    Trial t;
    const auto before = temporary_names();
    const std::string dir = place.run_dir(name);
    const auto struck = [&] {
        Launch launch(place.words(name, ""), "STOA_FAULT='loop@12:1'",
                      place.dir.path + "/" + name + ".log");
        launch.until([&] { return last_step(dir) >= 12; }, kPatience);
        launch.send(SIGKILL);
        launch.wait(kPatience);
        return SteadyClock::now();
    }();
    while (!processes_of(dir).empty() && seconds_since(struck) < 60.0)
        usleep(10'000);
    t.noticed_s = seconds_since(struck);
    t.require(t.noticed_s <= 11.0 * ci_slack(), fmt::format("ranks for {:.1f} s", t.noticed_s));
    Launch again(place.words(name, ""), "", place.dir.path + "/" + name + ".log");
    t.require(again.wait(kPatience) == 0, "the next launch failed");
    require_whole(t, place, name, 0, before);
    return t;
}

// Row 9: named within 20 steps, and no restart.
Trial straggler(const Place& place) {
    Trial t;
    const auto before = temporary_names();
    Launch launch(place.words("straggler", ""), "STOA_FAULT='slow@2:1'",
                  place.dir.path + "/straggler.log");
    t.require(launch.wait(kPatience) == 0, "exit code");
    const auto events = events_of(place.run_dir("straggler"), "straggler");
    t.require(!events.empty() && events[0].value("rank", -1) == 1, "rank 1 is not named");
    if (!events.empty())
        t.require(events[0].value("step", 99) <= 2 + 21,
                  fmt::format("named at step {}", events[0].value("step", 99)));
    require_whole(t, place, "straggler", 0, before);
    return t;
}

// A manifest of another run is refused by name, before training.
Trial foreign_manifest(const Place& place) {
    Trial t;
    Launch other(place.words("foreign", "model.d_ff=128"), "STOA_FAULT='kill@7:1'",
                 place.dir.path + "/foreign.log");
    t.require(other.wait(kPatience) == 0, "the other run failed");
    Launch launch(place.words("foreign", ""), "", place.dir.path + "/foreign.log");
    t.require(launch.wait(kPatience) == 2, "not refused with 2");
    t.require(launch.output().find("model.d_ff") != std::string::npos, "the key is not named");
    t.require(events_of(place.run_dir("foreign"), "restart").size() == 1, "restarted");
    return t;
}

bool wanted(int argc, char** argv, const std::string& name) {
    bool any = false;
    for (int i = 1; i < argc; ++i) {
        if (argv[i][0] == '-') continue;
        any = true;
        if (name == argv[i]) return true;
    }
    return !any;
}

std::vector<Row> rows() {
    std::vector<Row> all = {
        {.name = "1 kill -9", .cause = "crash", .kind = "SIGKILL", .signal = SIGKILL},
        {.name = "2 segv", .cause = "crash", .kind = "SIGSEGV", .fault = "segv@12:1"},
        {.name = "2 abort", .cause = "crash", .kind = "SIGABRT", .fault = "abort@12:1"},
        {.name = "2 exit 0",
         .cause = "crash",
         .kind = "exit without closing MPI",
         .fault = "exit0@12:1"},
        {.name = "2 bad_alloc", .cause = "memory", .kind = "bad_alloc", .fault = "oom@12:1"},
        {.name = "3 stopped",
         .cause = "hang",
         .noticed_limit = 2.5,
         .recovered_limit = 5.5,
         .options = "--limit step=2s",
         .signal = SIGSTOP},
        {.name = "3 endless loop",
         .cause = "hang",
         .noticed_limit = 2.5,
         .recovered_limit = 5.5,
         .fault = "loop@12:1",
         .options = "--limit step=2s"},
        {.name = "mismatched order",
         .noticed_limit = 2.5,
         .recovered_limit = 5.5,
         .fault = "skip-collective@12:1",
         .options = "--limit step=2s"},
        {.name = "mismatched count",
         .noticed_limit = 2.5,
         .recovered_limit = 5.5,
         .fault = "swap-collective@12:1",
         .options = "--limit step=2s"},
    };
    for (const std::string phase : {"start", "restore", "step", "evaluate", "save"})
        all.push_back({.name = "throw in " + phase,
                       .cause = "crash",
                       .kind = "exception",
                       .fault = "throw-" + phase + "@12:1"});
    return all;
}

}  // namespace

int main(int argc, char** argv) {
    const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
    const int repeats = quick ? 1 : 5;
    Place place;
    const Outcome built = make_tiny_project(place.dir.path, kStageSteps);
    const Outcome whole =
        built.code != 0 ? built : run_shell(stoa_binary() + " launch " + place.words("whole", ""));
    if (whole.code != 0) {
        fmt::print(stderr, "{}\n", whole.output);
        return 1;
    }
    place.undisturbed = last_state(place.run_dir("whole"));
    Json result = Json::array();
    bool holds = true;
    const auto add = [&](const std::string& name, int times, const auto& trial) {
        if (times == 0 || !wanted(argc, argv, name)) return;
        std::vector<Trial> trials;
        for (int i = 0; i < times; ++i)
            trials.push_back(trial(i));
        const Json row = summary(name, trials);
        holds = holds && row["holds"].get<bool>();
        fmt::print(stderr, "{}\n", row.dump());
        result.push_back(row);
    };
    const std::set<std::string> in_quick = {"1 kill -9", "2 segv",           "2 bad_alloc",
                                            "3 stopped", "mismatched count", "throw in save"};
    for (const Row& row : rows()) {
        if (quick && !in_quick.contains(row.name)) continue;
        std::string name = row.name;
        std::ranges::replace(name, ' ', '-');
        add(row.name, repeats,
            [&](int i) { return run_trial(place, row, fmt::format("{}-{}", name, i)); });
    }
    add("4 SIGTERM", quick ? 1 : 20 * repeats,
        [&](int i) { return drain(place, SIGTERM, fmt::format("term-{}", i)); });
    add("4 SIGUSR2", quick ? 0 : 20 * repeats,
        [&](int i) { return drain(place, SIGUSR2, fmt::format("usr2-{}", i)); });
    add("9 slow rank", 1, [&](int) { return straggler(place); });
    add("15 crash loop", 1, [&](int) { return crash_loop(place); });
    add("16 two supervisors", repeats,
        [&](int i) { return two_launches(place, fmt::format("two-{}", i)); });
    add("17 supervisor killed", repeats,
        [&](int i) { return supervisor_killed(place, fmt::format("orphans-{}", i)); });
    if (!quick) add("manifest of another run", 1, [&](int) { return foreign_manifest(place); });
    const Json elsewhere{{"5", "checkpoint_torture"}, {"6", "checkpoint_torture"},
                         {"7", "checkpoint_torture"}, {"8", "fault_test_train_faults"},
                         {"10", "two_hosts"},         {"11", "two_hosts"},
                         {"12", "slurm_run"},         {"13", "slurm_run"},
                         {"14", "slurm_run"}};
    fmt::print("{}\n", Json{{"ranks", kRanks},
                            {"slack", ci_slack()},
                            {"rows", result},
                            {"shown_by_other_programs", elsewhere},
                            {"holds", holds}}
                           .dump());
    return holds ? 0 : 1;
}
