#include "tests/support/catch.h"
#include "tests/support/quality_verdict.h"

using namespace stoa::test;
using nlohmann::json;

namespace {

// Three seeds of a task: dense and tree solve it, window does not.
std::vector<json> solved_runs() {
    std::vector<json> runs;
    for (const int seed : {1, 2, 3})
        for (const auto& [kind, right] :
             {std::pair{"dense", 0.995}, std::pair{"tree", 0.99}, std::pair{"window", 0.02}}) {
            json run{{"task", "recall"}, {"kind", kind}, {"seed", seed}};
            for (const char* times : {"1x", "2x", "4x", "8x"})
                run["accuracy"][times] = run["decoded"][times] = right;
            runs.push_back(run);
        }
    return runs;
}

bool holds(const std::vector<json>& runs) { return task_verdict(runs, "recall", {})["holds"]; }

// solved_runs with one figure of one run (of the second seed) changed.
bool holds_with(const char* kind, const char* figure, const char* times, double value) {
    std::vector<json> runs = solved_runs();
    for (json& run : runs)
        if (run["kind"] == kind && run["seed"] == 2) run[figure][times] = value;
    return holds(runs);
}

}  // namespace

TEST_CASE("a task holds while every line of its verdict does", "[quality]") {
    CHECK(holds(solved_runs()));
    CHECK(holds_with("tree", "accuracy", "1x", 0.976));
    CHECK_FALSE(holds_with("tree", "accuracy", "1x", 0.974));    // 2.1 points below, one seed
    CHECK_FALSE(holds_with("tree", "accuracy", "8x", 0.91));     // 3.2 in the mean
    CHECK_FALSE(holds_with("tree", "decoded", "1x", 0.94));      // 2.2 in the mean
    CHECK_FALSE(holds_with("dense", "accuracy", "1x", 0.979));   // a seed that dense does not solve
    CHECK_FALSE(holds_with("window", "accuracy", "1x", 2.365));  // a window is enough: 19.3 below
}

TEST_CASE("a run that is missing, or beside the protocol, does not count", "[quality]") {
    for (const char* kind : {"dense", "tree", "window"}) {
        std::vector<json> runs = solved_runs();
        std::erase_if(runs, [&](const json& r) { return r["kind"] == kind && r["seed"] == 3; });
        CAPTURE(kind);
        CHECK_FALSE(holds(runs));
    }
    std::vector<json> runs = solved_runs();
    runs.push_back(runs[1]);
    runs.back()["case"] = "few_leaves";
    runs.back()["accuracy"]["1x"] = 0.1;
    CHECK(holds(runs));
    runs.emplace_back(nullptr);  // a process that died
    CHECK(holds(runs));
}

TEST_CASE("bits per byte hold up to half a per cent above dense", "[quality]") {
    std::vector<json> runs;
    for (const auto& [kind, bits] : {std::pair{"dense", 2.0}, std::pair{"tree", 2.009}})
        runs.push_back({{"task", "code"},
                        {"kind", kind},
                        {"seed", 1},
                        {"bits", {{"1x", bits}}},
                        {"last_quarter", {{"1x", bits}}}});
    CHECK(code_verdict(runs, {})["holds"]);
    runs[1]["last_quarter"]["1x"] = 2.011;
    CHECK_FALSE(code_verdict(runs, {})["holds"]);
    runs.pop_back();
    CHECK_FALSE(code_verdict(runs, {})["holds"]);
}
