// Runs that are killed at random and go on on another random mesh each time: their masters, moments
// and counters at the end are those of the run that nobody disturbed. Half of the kills hit one
// rank right after a random step, half hit a random rank at a random moment (start, step, save,
// evaluation).
//   kill_any_mesh [--quick]      20 kills (quick: 4), in fp32 and r30.
#include <fmt/format.h>

#include <cstring>
#include <map>
#include <nlohmann/json.hpp>

#include "checkpoints/checkpoint.h"
#include "tests/support/supervised.h"

using namespace stoa;
using namespace stoa::test;

namespace {

constexpr std::pair<int, int> kMeshes[] = {{1, 1}, {2, 1}, {1, 2}, {2, 2}, {4, 1}, {1, 4}};

/// Of the last checkpoint.
std::int64_t saved_step(const std::string& run_dir) {
    const auto all = list_checkpoints(run_dir);
    return all.empty() ? 0 : read_checkpoint_info(all.back()).meta.step;
}

std::string model_of(bool r30) {
    return r30 ? " model.d_model=128 model.n_heads=8 model.n_kv_heads=4 model.head_dim=64"
                 " model.d_ff=512 precision.edge_blocks=0 precision.recipe=r30"
               : " model.n_kv_heads=4";
}

struct Run {
    std::string dir, name;
    bool r30 = false;
    std::string command(std::pair<int, int> mesh) const {
        return train_command(
            dir, mesh.first * mesh.second,
            fmt::format("run.name={} parallel.tp={} 'parallel.determinism=elastic 4x4' "
                        "'checkpoint.every=3 steps'{}",
                        name, mesh.second, model_of(r30)));
    }
};

/// SIGKILL to one of the run's ranks `seconds` after the first of them is there: how long mpirun
/// takes to start them depends on what else the machine does.
Outcome kill_at_moment(const Run& run, std::pair<int, int> mesh, double seconds,
                       std::uint32_t which) {
    return run_shell(fmt::format(
        "{} & job=$!; ranks() {{ pgrep -f '^[^ ]*stoa train .*run.name={} '; }}; "
        "while kill -0 $job 2>/dev/null && ! ranks >/dev/null; do sleep 0.02; done; sleep {:.2f}; "
        "set -- $(ranks); [ $# -gt 0 ] && shift $(({} % $#)) && kill -9 $1; wait $job",
        run.command(mesh), run.name, seconds, which));
}

}  // namespace

int main(int argc, char** argv) {
    const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
    const TempDir dir;
    const std::int64_t stage_steps = quick ? 40 : 100;  // long enough to be killed in
    const Outcome built = make_tiny_project(dir.path, stage_steps);
    if (built.code != 0) {
        fmt::print(stderr, "{}\n", built.output);
        return 1;
    }
    Draws draws(mix_key(2026, 24), 0);
    const int runs = quick ? 2 : 4, kills_each = quick ? 2 : 5;
    std::map<bool, std::map<std::string, std::string>> undisturbed;
    int kills = 0, not_killed = 0, different = 0, seen_meshes = 0;
    for (int n = 0; n < runs; ++n) {
        const bool r30 = n % 2 == 1;
        if (!undisturbed.contains(r30)) {
            const Run whole{dir.path, r30 ? "whole-r30" : "whole-fp32", r30};
            const Outcome o = run_shell(whole.command({1, 1}));
            if (o.code != 0) fmt::print(stderr, "{}\n", o.output);
            undisturbed[r30] = last_state(dir / "runs/" + whole.name);
        }
        const Run run{dir.path, fmt::format("killed-{}", n), r30};
        std::size_t last = std::size(kMeshes);
        const auto other_mesh = [&] {
            std::size_t m = draws.below(std::size(kMeshes) - (last < std::size(kMeshes) ? 1 : 0));
            if (m >= last) ++m;
            last = m;
            ++seen_meshes;
            return kMeshes[m];
        };
        for (int k = 0; k < kills_each; ++k, ++kills) {
            const auto mesh = other_mesh();
            const int ranks = mesh.first * mesh.second;
            std::string how;
            Outcome o;
            if (k % 2 == 0) {
                const std::int64_t left =
                    2 * stage_steps - 1 - saved_step(dir / "runs/" + run.name);
                const std::int64_t step =
                    2 * stage_steps - left +
                    draws.below(static_cast<std::uint32_t>(
                        std::max<std::int64_t>(1, left / (2 * (kills_each - k)))));
                const auto rank = draws.below(static_cast<std::uint32_t>(ranks));
                how = fmt::format("rank {} after step {}", rank, step);
                o = run_shell(
                    fmt::format("STOA_FAULT=kill@{}:{} {}", step, rank, run.command(mesh)));
            } else {
                const double seconds = 0.2 + 0.01 * draws.below(80);
                how = fmt::format("after {:.2f} s", seconds);
                o = kill_at_moment(run, mesh, seconds, draws.below(1000));
            }
            if (o.code == 0) ++not_killed;
            fmt::print("{} on ({},{}), killed {}: exit {}\n", run.name, mesh.first, mesh.second,
                       how, o.code);
            std::fflush(stdout);
        }
        const auto mesh = other_mesh();
        const Outcome o = run_shell(run.command(mesh));
        const bool same = o.code == 0 && !undisturbed[r30].empty() &&
                          last_state(dir / "runs/" + run.name) == undisturbed[r30];
        if (!same) {
            ++different;
            fmt::print(stderr, "{}\n", o.output);
        }
        fmt::print("{} ({}) finished on ({},{}): {}\n", run.name, r30 ? "r30" : "fp32", mesh.first,
                   mesh.second, same ? "same bits" : "DIFFERENT");
        std::fflush(stdout);
    }
    const bool holds = different == 0 && not_killed == 0 && kills == runs * kills_each;
    fmt::print("{}\n", nlohmann::json{{"runs", runs},
                                      {"kills", kills},
                                      {"not_killed", not_killed},
                                      {"launches", seen_meshes},
                                      {"different", different},
                                      {"holds", holds}}
                           .dump());
    return holds ? 0 : 1;
}
