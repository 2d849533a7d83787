// kill -9 at a random step, `stoa train` again: the final weights are bit-identical to the
// undisturbed run's. Also exactly at the stage switch and one step around it, where the resume
// starts from a checkpoint of that very step.
#include <fmt/format.h>

#include <cstring>
#include <map>
#include <nlohmann/json.hpp>

#include "checkpoints/checkpoint.h"
#include "tests/support/supervised.h"

using namespace stoa;
using namespace stoa::test;

namespace {

constexpr std::int64_t kStageSteps = 15;

struct Kill {
    int ranks;
    std::string mesh;  // overrides
    std::int64_t step;
    std::int64_t every;  // checkpoint interval
};

}  // namespace

int main(int argc, char** argv) {
    const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
    const TempDir dir;
    const Outcome built = make_tiny_project(dir.path, kStageSteps);
    if (built.code != 0) {
        fmt::print(stderr, "{}\n", built.output);
        return 1;
    }
    std::vector<Kill> kills;
    for (const std::int64_t around : {-1, 0, 1})
        kills.push_back({2, "parallel.tp=1", kStageSteps + around, 1});
    Draws draws(mix_key(2026, 11), 0);
    for (int i = 0; i < (quick ? 2 : 12); ++i)
        kills.push_back({2, i % 2 == 0 ? "parallel.tp=1" : "parallel.tp=2",
                         draws.between(1, 2 * kStageSteps - 1), 5});
    if (!quick) kills.push_back({1, "parallel.tp=1", kStageSteps, 4});
    // State below fp32: stochastic rounding, the loss scale and the policies go on where they were.
    const std::string narrow =
        " model.d_model=128 model.n_heads=4 model.n_kv_heads=4 model.head_dim=64 model.d_ff=256"
        " precision.edge_blocks=0 precision.recipe=";
    kills.push_back({2, "parallel.tp=1" + narrow + "r50", 12, 5});
    if (!quick) {
        kills.push_back({2, "parallel.tp=2" + narrow + "r30", 17, 5});
        kills.push_back({2, "parallel.tp=1" + narrow + "r45", 8, 3});
    }

    std::map<std::string, std::map<std::string, std::string>> undisturbed;
    int different = 0, not_killed = 0;
    std::size_t n = 0;
    for (const Kill& k : kills) {
        const std::string key = k.mesh + std::to_string(k.ranks);
        if (!undisturbed.contains(key)) {
            const std::string name = "whole-" + std::to_string(undisturbed.size());
            const Outcome o =
                run_shell(train_command(dir.path, k.ranks, k.mesh + " run.name=" + name));
            if (o.code != 0) fmt::print(stderr, "{}\n", o.output);
            undisturbed[key] = last_state(dir / "runs/" + name);
        }
        const std::string name = "killed-" + std::to_string(n++);
        const std::string command = train_command(
            dir.path, k.ranks,
            fmt::format("{} run.name={} 'checkpoint.every={} steps'", k.mesh, name, k.every));
        const Outcome killed =
            run_shell(fmt::format("STOA_FAULT=kill@{}:{} {}", k.step, k.ranks - 1, command));
        if (killed.code != 137) ++not_killed;
        const Outcome resumed = run_shell(command);
        const bool same = resumed.code == 0 && !undisturbed[key].empty() &&
                          last_state(dir / "runs/" + name) == undisturbed[key];
        if (!same) {
            ++different;
            fmt::print(stderr, "{}\n", resumed.output);
        }
        fmt::print(
            "{} ranks, {}, killed after step {} (checkpoint every {}): exit {}, resumed: {}\n",
            k.ranks, k.mesh, k.step, k.every, killed.code, same ? "same bits" : "DIFFERENT");
    }
    const bool holds = different == 0 && not_killed == 0;
    fmt::print("{}\n", nlohmann::json{{"kills", kills.size()},
                                      {"different", different},
                                      {"not_killed", not_killed},
                                      {"holds", holds}}
                           .dump());
    return holds ? 0 : 1;
}
