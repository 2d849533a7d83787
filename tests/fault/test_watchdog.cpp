// Ranks that stand still, without a supervisor: `mpirun -n 4 stoa train` ends by itself with 81,
// one line that names the rank, one fault event, the stacks of every rank that can write them, and
// no process left.
#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/support/catch.h"
#include "tests/support/tiny_project.h"

using namespace stoa;
using namespace stoa::test;
using nlohmann::json;

namespace {

// Corpus and tokenizer are made once; every test case trains under its own run.name.
const std::string& project() {
    static const TempDir dir;
    static const bool made = [] {
        const Outcome o = make_tiny_project(dir.path, 10);
        INFO(o.output);
        REQUIRE(o.code == 0);
        return true;
    }();
    (void)made;
    return dir.path;
}

std::string run_dir(const std::string& name) { return project() + "/runs/" + name; }

// A short evaluation: the faults are in the steps.
Outcome train(const std::string& name, const std::string& before, const std::string& overrides = "",
              int ranks = 4) {
    return run_shell(before + " " +
                     train_command(project(), ranks,
                                   "run.name=" + name + " eval.problems=0 eval.sequences=0 " +
                                       "'parallel.device=cpu 1' " + overrides));
}

int count(const std::string& text, const std::string& what) {
    int n = 0;
    for (auto at = text.find(what); at != std::string::npos; at = text.find(what, at + 1))
        ++n;
    return n;
}

std::vector<json> events(const std::string& name, const std::string& kind) {
    std::vector<json> found;
    std::istringstream lines(read_text(run_dir(name) + "/events.jsonl"));
    for (std::string line; std::getline(lines, line);)
        if (const json j = json::parse(line, nullptr, false);
            j.is_object() && j.value("event", "") == kind)
            found.push_back(j);
    return found;
}

std::string log_of(const std::string& name, int rank) {
    return read_text(run_dir(name) + "/logs/rank-00" + std::to_string(rank) + ".log");
}

// Processes whose command line names the run.
std::string processes_of(const std::string& name) {
    return run_shell(
               "sleep 1; for p in /proc/[0-9]*; do cat $p/cmdline 2>/dev/null | tr '\\0' ' ' | "
               "grep -q 'run[.]name=" +
               name + " ' && ! grep -q 'State:.Z' $p/status 2>/dev/null && echo $p; done; true")
        .output;
}

struct Wanted {
    int code = 81;
    int rank = 2;
    std::string kind = "hang", cause = "hang";
    double limit_s = 2.0;
};

json check_verdict(const Outcome& o, const std::string& name, const Wanted& w) {
    INFO(o.output);
    CHECK(o.code == w.code);
    const auto faults = events(name, "fault");
    REQUIRE(faults.size() == 1);
    const json& f = faults[0];
    INFO(f.dump());
    CHECK(f.at("rank") == w.rank);
    if (!w.kind.empty()) CHECK(f.at("kind") == w.kind);
    CHECK(f.at("cause") == w.cause);
    CHECK(f.at("source") == "monitor");
    CHECK_FALSE(f.at("host").get<std::string>().empty());
    const char* slack = std::getenv("CI_SLACK");
    CHECK(f.at("noticed_ms").get<double>() <=
          1e3 * (w.limit_s + 0.5) * (slack == nullptr ? 3.0 : std::atof(slack)));
    CHECK(count(o.output, "error: ") == 1);
    CHECK(o.output.find(f.at("text").get<std::string>()) != std::string::npos);
    CHECK(processes_of(name) == "");
    return f;
}

const char* const kLimits = "STOA_LIMITS=step=2s";

}  // namespace

TEST_CASE("a stopped rank is named, ended and the job with it", "[fault]") {
    const Outcome o = train("stop", std::string(kLimits) + " STOA_FAULT=stop@3:2");
    const json f = check_verdict(o, "stop", {.kind = "silent_rank"});
    CHECK(f.at("step") == 3);
    CHECK(f.at("text").get<std::string>().find("is stopped (SIGSTOP)") != std::string::npos);
    CHECK(f.at("waiting").get<std::string>().find("ranks 0,1,3 wait in ") == 0);
    for (const int r : {0, 1, 3})
        CHECK(log_of("stop", r).find("stacks of all threads") != std::string::npos);
}

TEST_CASE("an endless loop is named, with the stack of the thread that loops", "[fault]") {
    const Outcome o = train("loop", std::string(kLimits) + " STOA_FAULT=loop@3:2");
    const json f = check_verdict(o, "loop", {});
    CHECK(f.at("phase") == "step");
    CHECK(f.at("text").get<std::string>().find("no progress for") != std::string::npos);
    CHECK(f.at("waiting").get<std::string>().find("ranks 0,1,3 wait in ") == 0);
    CHECK(log_of("loop", 2).find("train_loop") != std::string::npos);
    CHECK(log_of("loop", 2).find("end of stacks") != std::string::npos);
}

TEST_CASE("a loop on the monitor's own rank is named as well", "[fault]") {
    const Outcome o = train("loop-0", std::string(kLimits) + " STOA_FAULT=loop@3:0");
    check_verdict(o, "loop-0", {.rank = 0});
}

TEST_CASE("a collective left out is named by its rank and place", "[fault]") {
    const Outcome o =
        train("skip", std::string(kLimits) + " STOA_FAULT=skip-collective@3:1", "parallel.tp=2");
    const json f = check_verdict(o, "skip", {.rank = 1, .kind = ""});  // which: a matter of moments
    CHECK(f.at("waiting").get<std::string>().find("trainer/train_step.cpp:") != std::string::npos);
}

TEST_CASE("a collective of another count is named by its rank and place", "[fault]") {
    const Outcome o = train("swap", std::string(kLimits) + " STOA_FAULT=swap-collective@3:3");
    const json f = check_verdict(o, "swap", {.rank = 3, .kind = "mismatched_collective"});
    CHECK(f.at("site").get<std::string>().find("trainer/train_step.cpp:") != std::string::npos);
}

TEST_CASE("when rank 0 is stopped, which is the monitor, the others leave fenced", "[fault]") {
    const Outcome o = train("stop-0", std::string(kLimits) + " STOA_FENCE_S=3 STOA_FAULT=stop@3:0");
    INFO(o.output);
    CHECK(o.code == 82);
    REQUIRE(events("stop-0", "fault").size() == 1);
    CHECK(events("stop-0", "fault")[0].at("rank") == 0);
    CHECK(processes_of("stop-0") == "");
}

TEST_CASE("a slow rank is named in an event, and the run ends as ever", "[fault]") {
    const Outcome o = train("slow", std::string(kLimits) + " STOA_FAULT=slow@0:3");
    INFO(o.output);
    CHECK(o.code == 0);
    CHECK(events("slow", "fault").empty());
    const auto slow = events("slow", "straggler");
    REQUIRE_FALSE(slow.empty());
    // On a busy machine others may be slow, too: rank 3 is among them.
    const auto named = std::ranges::find(slow, json(3), [](const json& s) { return s.at("rank"); });
    REQUIRE(named != slow.end());
    CHECK(named->at("ratio").get<double>() >= 1.5);
    CHECK(named->at("step").get<int>() <= 20);
    const auto pre_flight = events("slow", "pre_flight");
    REQUIRE_FALSE(pre_flight.empty());
    CHECK(pre_flight[0].at("who") == "rank 3");
    CHECK(pre_flight[0].at("what") == "matrix product");
    SECTION("not looked for where that is off") {
        REQUIRE(
            train("slow-off", "STOA_PREFLIGHT=off STOA_WATCHDOG=off STOA_FAULT=slow@0:3").code ==
            0);
        CHECK(events("slow-off", "pre_flight").empty());
        CHECK(events("slow-off", "straggler").empty());
    }
}

TEST_CASE("no false alarm in a run with long evaluations and saves at a short step limit",
          "[fault]") {
    const Outcome o = run_shell("STOA_LIMITS=step=1s " +
                                train_command(project(), 4,
                                              "run.name=calm parallel.tp=2 'parallel.device=cpu 1' "
                                              "'checkpoint.every=1 steps' 'eval.every=5 steps'"));
    INFO(o.output);
    CHECK(o.code == 0);
    CHECK(events("calm", "fault").empty());
}

TEST_CASE("an exception on one rank, in every phase, ends all with one report", "[fault]") {
    for (const std::string phase : {"start", "restore", "step", "evaluate", "save"}) {
        const Outcome o = train("throw-" + phase, "STOA_FAULT=throw-" + phase + "@2:1",
                                phase == "evaluate" ? "'eval.every=2 steps' eval.sequences=4" : "");
        INFO(phase << ": " << o.output);
        CHECK(o.code == 70);
        CHECK(count(o.output, "error: ") == 1);
        CHECK(o.output.find("rank 1 on ") != std::string::npos);
    }
    const Outcome o = train("oom", "STOA_FAULT=oom@2:1");
    INFO(o.output);
    CHECK(o.code == 4);
    CHECK(o.output.find("out of memory") != std::string::npos);
}

TEST_CASE("a limit that is none is refused before training", "[fault]") {
    const Outcome o = train("limits", "STOA_LIMITS=stp=2s");
    INFO(o.output);
    CHECK(o.code == 2);
    CHECK(count(o.output, "error: ") == 1);
    CHECK(o.output.find("STOA_LIMITS") != std::string::npos);
}
