// A checkpoint of four data-parallel ranks, loaded on (dp,tp) = (1,2), (2,2), (1,1), (2,1), (1,4)
// and (4,1), and one of four tp ranks likewise, without a converter: masters, moments and scales
// are the same bits, and a load needs at most one largest shard of a tensor and 64 MiB beside the
// state it fills.
//   reshard [--quick]      The program starts itself under mpirun for every mesh.
#include <fmt/format.h>
#include <mpi.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "checkpoints/checkpoint.h"
#include "parallel/mpi_session.h"
#include "tests/support/logical_state.h"
#include "tests/support/tiny_run.h"
#include "trainer/model/dp_traffic.h"

using namespace stoa;
using namespace stoa::test;
using nlohmann::json;

namespace {

constexpr std::int64_t kMiB = 1 << 20;

// An odd vocabulary, and tensors of some MiB, so that a copy of them would show.
TinyOptions options_of(Recipe recipe) {
    return {.vocab_size = 8191,
            .micro_batch = 1,
            .recipe = recipe,
            .global_batch = 4,
            .whole_blocks = true,
            .head_dim = 64,
            .seq_len = 128,
            .d_model = 1024,
            .dp_shards = 4,
            .tp_chunks = 4};
}

std::int64_t status_bytes(const char* key) {
    std::ifstream in("/proc/self/status");
    for (std::string line; std::getline(in, line);)
        if (line.starts_with(key)) return 1024 * std::stoll(line.substr(std::strlen(key)));
    return 0;
}

std::int64_t largest_shard(const TrainState& s) {
    std::int64_t most = 0;
    for (const TensorShard& t : checkpoint_shards(s.model))
        most = std::max(most, t.view.bytes());
    return most;
}

// argv: --rank save|load DP TP RECIPE RUN_DIR
int rank_main(int argc, char** argv) {
    MpiSession session(argc, argv);
    const bool save = std::strcmp(argv[2], "save") == 0;
    Mesh mesh = make_mesh(std::atoll(argv[3]), std::atoll(argv[4]));
    const TinyOptions options = options_of(static_cast<Recipe>(std::atoi(argv[5])));
    const std::string run_dir = argv[6];
    TrainState s;
    std::int64_t extra = 0;
    if (save) {
        tiny_run(options, mesh, 3, &s);
        save_checkpoint(run_dir, {.step = 3}, checkpoint_shards(s.model), mesh);
    } else {
        RunConfig config = tiny_config(options, mesh.dp_size(), mesh.tp_size());
        config.run.seed = 99;  // nothing may be left of what was there
        s = make_train_state(config, mesh.tp_rank(), mesh.tp_size(), Exec{}, mesh.dp_rank());
        const std::string dir = find_checkpoint(run_dir, mesh);
        std::ofstream("/proc/self/clear_refs") << "5";  // VmHWM = VmRSS
        const std::int64_t before = status_bytes("VmRSS:");
        load_checkpoint(dir, checkpoint_shards(s.model), mesh);
        extra = status_bytes("VmHWM:") - before;
        refresh_work(s.model, mesh, Exec{});  // as a resumed run does
    }
    extra = all_reduce_scalar(extra, ReduceOp::max, mesh.world);
    const std::string hash = state_hash(s, mesh);
    if (mesh.world.rank() == 0)
        fmt::print("STATE {}\n", json{{"sha256", hash},
                                      {"extra_bytes", extra},
                                      {"largest_shard_bytes", largest_shard(s)},
                                      {"state_bytes", s.state_bytes}}
                                     .dump());
    close_mesh(mesh);
    session.close();
    return 0;
}

json run_ranks(const char* self, const char* what, int dp, int tp, Recipe recipe,
               const std::string& run_dir) {
    const Outcome o = run_shell(fmt::format("mpirun -q -n {} {} --rank {} {} {} {} {}", dp * tp,
                                            self, what, dp, tp, static_cast<int>(recipe), run_dir));
    const std::size_t at = o.output.find("STATE ");
    if (o.code == 0 && at != std::string::npos)
        return json::parse(o.output.substr(at + 6, o.output.find('\n', at) - at - 6));
    fmt::print(stderr, "{} dp {} tp {}: exit {}\n{}\n", what, dp, tp, o.code, o.output);
    return {};
}

}  // namespace

int main(int argc, char** argv) {
    if (argc > 1 && std::strcmp(argv[1], "--rank") == 0) return rank_main(argc, argv);
    const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
    constexpr std::pair<int, int> kMeshes[] = {{1, 2}, {2, 2}, {1, 1}, {2, 1}, {1, 4}, {4, 1}};
    int loads = 0, different = 0, too_large = 0;
    std::int64_t most = 0;
    for (const Recipe recipe : {Recipe::r30, Recipe::fp32, Recipe::r50}) {
        if (quick && recipe != Recipe::r30) continue;
        for (const auto& [save_dp, save_tp] : {std::pair{4, 1}, {1, 4}}) {
            if (quick && save_tp > 1) continue;
            const TempDir dir;
            const json saved = run_ranks(argv[0], "save", save_dp, save_tp, recipe, dir.path);
            for (const auto& [dp, tp] : kMeshes) {
                const json loaded = run_ranks(argv[0], "load", dp, tp, recipe, dir.path);
                ++loads;
                if (saved.is_null() || loaded.is_null() || saved["sha256"] != loaded["sha256"]) {
                    ++different;
                    fmt::print("{} ({},{}) -> ({},{}): DIFFERENT\n", recipe_name(recipe), save_dp,
                               save_tp, dp, tp);
                    continue;
                }
                const std::int64_t extra = loaded["extra_bytes"];
                const std::int64_t allowed =
                    loaded["largest_shard_bytes"].get<std::int64_t>() + 64 * kMiB;
                most = std::max(most, extra);
                too_large += extra > allowed;
                fmt::print(
                    "{} ({},{}) -> ({},{}): {} same, {:.1f} MiB more at the peak of {:.1f}\n",
                    recipe_name(recipe), save_dp, save_tp, dp, tp,
                    saved["sha256"].get<std::string>().substr(0, 16),
                    static_cast<double>(extra) / kMiB, loaded["state_bytes"].get<double>() / kMiB);
                std::fflush(stdout);
            }
        }
    }
    const bool holds = different == 0 && too_large == 0 && loads > 0;
    fmt::print("{}\n", json{{"loads", loads},
                            {"different", different},
                            {"over_one_shard_and_64_mib", too_large},
                            {"most_extra_bytes", most},
                            {"holds", holds}}
                           .dump());
    return holds ? 0 : 1;
}
