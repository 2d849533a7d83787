// `stoa launch` when things go wrong: the first cause is named once, training goes on from the
// newest checkpoint to the same bits, and nothing is left behind. No time is asserted here
// (tests/acceptance/fault_matrix.cpp does that).
#include "tests/support/catch.h"
#include "tests/support/supervised.h"

using namespace stoa;
using namespace stoa::test;

namespace {

constexpr std::int64_t kSteps = 20;  // a checkpoint every 5
constexpr double kPatience = 120.0;

const std::string& project() {
    static const TempDir dir;
    static const bool made = [] {
        const Outcome o = make_tiny_project(dir.path, kSteps / 2);
        INFO(o.output);
        REQUIRE(o.code == 0);
        return true;
    }();
    (void)made;
    return dir.path;
}

std::string run_dir(const std::string& name) { return project() + "/runs/" + name; }

const std::map<std::string, std::string>& undisturbed() {
    static const std::map<std::string, std::string> state = [] {
        const Outcome o =
            run_shell(train_command(project(), 2, "run.name=undisturbed stages.0.tokens=10240"));
        INFO(o.output);
        REQUIRE(o.code == 0);
        return last_state(run_dir("undisturbed"));
    }();
    return state;
}

std::string words(const std::string& name, const std::string& more = "") {
    return "--ranks 2 " + project() + "/run.yaml run.name=" + name + " " + more;
}

void check_whole(const std::string& name) {
    CHECK(last_state(run_dir(name)) == undisturbed());
    CHECK(each_step_once(run_dir(name), kSteps));
}

Json one_fault(const std::string& name) {
    const auto faults = events_of(run_dir(name), "fault");
    REQUIRE(faults.size() == 1);
    CHECK(faults[0].value("source", "") == "supervisor");
    return faults[0];
}

/// A launch with STOA_FAULT, to its end.
struct Faulty {
    int code = -1;
    std::string output;
};
Faulty run_with(const std::string& name, const std::string& fault, const std::string& more = "") {
    Launch launch(words(name, more), "STOA_FAULT='" + fault + "'", project() + "/" + name + ".log");
    const auto code = launch.wait(kPatience);
    return {code.value_or(-1), launch.output()};
}

}  // namespace

TEST_CASE("a rank that dies is named, and training goes on to the same bits", "[fault]") {
    struct Case {
        const char *fault, *cause, *kind;
    };
    const Case cases[] = {{"kill@13:1", "crash", "SIGKILL"},
                          {"segv@7:0", "crash", "SIGSEGV"},
                          {"abort@12:1", "crash", "SIGABRT"},
                          {"exit0@7:1", "crash", "exit without closing MPI"},
                          {"oom@12:0", "memory", "bad_alloc"}};
    for (const Case& c : cases) {
        CAPTURE(c.fault);
        const auto before = temporary_names();
        const std::string name = std::string("dies-") + std::string(c.fault).substr(0, 3);
        const Faulty f = run_with(name, c.fault);
        INFO(f.output);
        CHECK(f.code == 0);
        const Json fault = one_fault(name);
        CHECK(fault["cause"] == c.cause);
        CHECK(fault["kind"] == c.kind);
        CHECK(fault["rank"] ==
              std::atoi(std::string(c.fault).substr(std::string(c.fault).find(':') + 1).c_str()));
        check_whole(name);
        CHECK(leftovers(run_dir(name), before).empty());
    }
}

TEST_CASE("an exception on one rank, in every phase", "[fault]") {
    for (const std::string phase : {"start", "step", "evaluate", "save"}) {
        CAPTURE(phase);
        const std::string name = "throws-" + phase;
        const Faulty f = run_with(name, "throw-" + phase + "@5:1");
        INFO(f.output);
        CHECK(f.code == 0);
        const Json fault = one_fault(name);
        CHECK(fault["kind"] == "exception");
        CHECK(fault["rank"] == 1);
        CHECK(fault["phase"] == phase);
        check_whole(name);
    }
}

TEST_CASE("a stopped rank is a hang of that rank", "[fault]") {
    const auto before = temporary_names();
    Launch launch("--limit step=2s " + words("stopped", "stages.0.tokens=10240"), "",
                  project() + "/stopped.log");
    REQUIRE(launch.until([] { return last_step(run_dir("stopped")) >= 3; }, kPatience));
    const int pid = rank_pid(run_dir("stopped"), 0, 1);
    REQUIRE(pid > 0);
    kill(pid, SIGSTOP);
    const auto code = launch.wait(kPatience);
    INFO(launch.output());
    REQUIRE(code == 0);
    const Json fault = one_fault("stopped");
    CHECK(fault["cause"] == "hang");
    CHECK(fault["rank"] == 1);
    check_whole("stopped");
    CHECK(leftovers(run_dir("stopped"), before).empty());
}

TEST_CASE("collectives that do not match are named", "[fault]") {
    for (const std::string kind : {"skip-collective", "swap-collective"}) {
        const Faulty f = run_with(kind, kind + "@7:1", "--limit step=3s");
        INFO(f.output);
        CHECK(f.code == 0);
        const Json fault = one_fault(kind);
        CHECK((fault["cause"] == "communication" || fault["cause"] == "hang"));
        CHECK(fault["rank"] >= 0);  // of two ranks either may be the wrong one
        check_whole(kind);
    }
}

TEST_CASE("a crash loop ends with 69 and its first cause", "[fault]") {
    const Faulty f = run_with("loop", "throw-start@0:1*", "--max-restarts 2");
    INFO(f.output);
    CHECK(f.code == 69);
    CHECK(events_of(run_dir("loop"), "fault").size() == 3);
    CHECK(f.output.find("gave up: 2 restarts without a newer checkpoint; first cause: crash") !=
          std::string::npos);
    CHECK(json_lines(run_dir("loop") + "/state.json")[0]["state"] == "GAVE_UP");
}

TEST_CASE("a step that always fails: one checkpoint earlier, then the end", "[fault]") {
    const Faulty f = run_with("poison", "segv@14:1*", "'checkpoint.every=5 steps blocking'");
    INFO(f.output);
    CHECK(f.code == 69);
    CHECK(events_of(run_dir("poison"), "fault").size() == 3);
    CHECK(f.output.find("the same fault at step 14 twice: from one checkpoint earlier") !=
          std::string::npos);
    const auto resumed = events_of(run_dir("poison"), "resume");
    REQUIRE(resumed.size() == 2);
    CHECK(resumed[0]["step"] == 10);
    CHECK(resumed[1]["step"] == 5);
}

TEST_CASE("what comes again by itself is not restarted", "[fault]") {
    const Faulty f = run_with("no-data", "", "data.sources.web.path=" + project() + "/absent");
    INFO(f.output);
    CHECK(f.code == 3);
    CHECK(one_fault("no-data")["cause"] == "data");
    CHECK(events_of(run_dir("no-data"), "restart").empty());
}

TEST_CASE("a second launch on a run directory leaves with 2", "[fault]") {
    Launch first(words("twice", "stages.0.tokens=4M"), "", project() + "/twice.log");
    REQUIRE(first.until([] { return last_step(run_dir("twice")) >= 2; }, kPatience));
    const Outcome second = run_shell(stoa_binary() + " launch " + words("twice"));
    INFO(second.output);
    CHECK(second.code == 2);
    CHECK(second.output.find("run directory is in use") != std::string::npos);
    CHECK(second.output.find("pid " + std::to_string(first.pid())) != std::string::npos);
    const Outcome bare = run_shell(train_command(project(), 2, "run.name=twice"));
    CHECK(bare.code == 2);
    first.send(SIGTERM);
    CHECK(first.wait(kPatience) == 75);
}

TEST_CASE("a supervisor that is killed leaves no rank, and another one goes on", "[fault]") {
    {
        Launch launch(words("orphans", "stages.0.tokens=10240"), "STOA_FAULT=loop@12:1",
                      project() + "/orphans.log");
        REQUIRE(launch.until([] { return last_step(run_dir("orphans")) >= 12; }, kPatience));
        launch.send(SIGKILL);
        CHECK(launch.wait(kPatience) == 137);
    }
    for (int i = 0; i < 1100 && !processes_of(run_dir("orphans")).empty(); ++i)
        usleep(10'000);
    CHECK(processes_of(run_dir("orphans")).empty());
    const auto before = temporary_names();
    const Faulty f = run_with("orphans", "");
    INFO(f.output);
    CHECK(f.code == 0);
    CHECK(f.output.find("taking over the run directory") != std::string::npos);
    CHECK(last_state(run_dir("orphans")) == undisturbed());
    CHECK(leftovers(run_dir("orphans"), before).empty());
}

TEST_CASE("a drain saves the last finished step", "[fault]") {
    for (const int signal : {SIGTERM, SIGUSR1, SIGUSR2}) {
        const std::string name = "drain-" + std::to_string(signal);
        {
            Launch launch(words(name, "'checkpoint.every=1000 steps'"), "",
                          project() + "/" + name + ".log");
            REQUIRE(launch.until([&] { return last_step(run_dir(name)) >= 3; }, kPatience));
            launch.send(signal);
            const auto code = launch.wait(kPatience);
            INFO(launch.output());
            REQUIRE((code == 75 || code == 0));  // 0: it was faster than the signal
            const auto all = list_checkpoints(run_dir(name));
            REQUIRE(all.size() == 1);
            CHECK(read_checkpoint_info(all.back()).meta.step == last_step(run_dir(name)));
            CHECK(events_of(run_dir(name), "fault").empty());
        }
        CHECK(run_with(name, "").code == 0);
        check_whole(name);
    }
}

TEST_CASE("a wrong hostfile is one message before anything starts", "[fault]") {
    write_text(project() + "/empty-hosts", "# none\n");
    write_text(project() + "/unknown-hosts", "no-such-host.invalid slots=2\n");
    write_text(project() + "/few-slots", "localhost slots=1\n");
    const auto refused = [](const std::string& file, int code, const std::string& part) {
        const Outcome o =
            run_shell(stoa_binary() + " launch --hostfile " + file + " " + words("hosts"));
        INFO(o.output);
        CHECK(o.code == code);
        CHECK(o.output.find("error: ") != std::string::npos);
        CHECK(o.output.find("error: ") == o.output.rfind("error: "));
        CHECK(o.output.find(part) != std::string::npos);
        CHECK(events_of(run_dir("hosts"), "launch").empty());
    };
    refused(project() + "/absent-hosts", 2, "absent-hosts");
    refused(project() + "/empty-hosts", 2, "names no host");
    refused(project() + "/few-slots", 2, "too few slots");
    refused(project() + "/unknown-hosts", 5, "no-such-host.invalid");
}
