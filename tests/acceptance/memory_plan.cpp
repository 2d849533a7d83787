// The plan is the memory: for random configurations and meshes, on every rank, the arena's highest
// byte written by a step is the last byte that `stoa plan` lists. And the recipes save what they
// are named after: peak bytes of the allocator and of the process, each recipe against bf16 with
// the same recompute. The program starts itself, under mpirun for meshes.
#include <fmt/format.h>
#include <mpi.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "configs/check_config.h"
#include "configs/load_run_config.h"
#include "parallel/collectives.h"
#include "parallel/mpi_session.h"
#include "tests/support/programs.h"
#include "tests/support/tiny_run.h"
#include "trainer/metrics.h"

using namespace stoa;
using namespace stoa::test;
using nlohmann::json;

namespace {

constexpr std::byte kUntouched{0xA5};

// argv: --rank CONFIG.yaml. Prints "RANK <world rank> <tp rank> <peak bytes>" for each rank.
int rank_main(int argc, char** argv) {
    MpiSession session(argc, argv);
    const RunConfig config = resolve_for_world(load_run_config(argv[2], {}).config, session.size());
    Mesh mesh = make_mesh(config.parallel.dp, config.parallel.tp, config.parallel.overlap);
    const Exec exec{};
    TrainState s = make_train_state(config, mesh.tp_rank(), mesh.tp_size(), exec, mesh.dp_rank());
    const std::int64_t held = allocated_bytes();
    std::fill(s.arena.data() + s.state_bytes, s.arena.data() + s.arena.bytes(), kUntouched);
    StepInputs in{.lr = 1e-3};
    for (std::int64_t a = 0; a < config.batch.grad_accum; ++a)
        in.micro_batches.push_back(tiny_batch(config, 0, mesh.dp_rank() + a));
    (void)train_step(s, in, mesh, exec);
    std::int64_t end = s.arena.bytes();
    while (end > 0 && s.arena.data()[end - 1] == kUntouched)
        --end;
    std::string line =
        fmt::format("RANK {} {} {} {}\n", mesh.world.rank(), mesh.tp_rank(), align_up(end), held);
    fmt::print("{}", line);
    std::fflush(stdout);
    close_mesh(mesh);
    session.close();
    return 0;
}

RunConfig random_config(Draws& draws) {
    const auto pick = [&](std::initializer_list<std::int64_t> values) {
        return values.begin()[draws.below(static_cast<std::uint32_t>(values.size()))];
    };
    RunConfig c;
    const std::int64_t tp = pick({1, 1, 2, 4}), dp = tp == 4 ? 1 : pick({1, 2});
    const std::int64_t heads = 4 * pick({1, 2});
    c.model = {.vocab_size = pick({67, 300, 1024}),
               .d_model = 128 * pick({1, 2}),
               .n_layers = pick({1, 2, 3, 5}),
               .n_heads = heads,
               .n_kv_heads = tp == 4 ? 4 : pick({2, 4}),
               .head_dim = 128,
               .d_ff = 512 * pick({1, 2}),
               .tie_embeddings = pick({0, 1}) == 1};
    c.parallel = {.dp = dp,
                  .tp = tp,
                  .sequence = pick({0, 1}) == 1,
                  .recompute = static_cast<Recompute>(pick({0, 1, 2})),
                  .zero = pick({0, 1, 2, 3}),
                  .overlap = pick({0, 1}) == 1 ? Overlap::on : Overlap::off,
                  .threads = 1};
    if (c.model.n_layers > 2 && c.parallel.recompute != Recompute::none && pick({0, 1}) == 1)
        c.parallel.recompute_layers = {"1-2"};
    c.precision.recipe = static_cast<Recipe>(pick({0, 1, 2, 3, 4}));
    c.precision.edge_blocks = pick({0, 1});
    c.batch = {.global_batch = 4 * dp, .micro_batch = pick({1, 2})};
    if (tp <= 2 && pick({0, 1}) == 1) {  // two shards a rank, and two chunks on one tp rank
        c.parallel.determinism = Determinism::automatic;
        if (is_elastic(c)) {
            c.parallel.determinism = Determinism::elastic;
            c.parallel.dp_shards = 2 * dp;
            c.parallel.tp_chunks = 2;
        }
    }
    StageConfig stage;
    stage.name = "only";
    stage.seq_len = pick({16, 72, 128, 300});
    stage.mix["made-up"] = 1.0;
    stage.tokens = 100 * stage.seq_len;
    c.stages.push_back(stage);
    c.parallel.device = DeviceChoice::cpu;  // a GPU's snapshot is not in the arena
    c.data.tokenizer = "tokenizer.json";
    c.data.sources.push_back({.name = "made-up", .path = "shards"});
    std::vector<Problem> problems;  // sharded gradients need a micro-batch per shard
    check_rules(c, KeyPlaces{}, problems);
    if (!problems.empty()) c.parallel.zero = 1;
    return c;
}

// Compares one mesh; returns the ranks that differ, or -1 when nothing was measured.
int compare(const char* self, const std::string& file, int world) {
    const stoa::test::Outcome planned =
        run_shell(fmt::format("{} plan {} --ranks {} --json", stoa_binary(), file, world));
    if (planned.code != 0) {
        fmt::print(stderr, "stoa plan: exit {}\n{}\n", planned.code, planned.output);
        return -1;
    }
    const json plan = json::parse(planned.output);
    const stoa::test::Outcome o =
        run_shell(fmt::format("mpirun -q -n {} {} --rank {}", world, self, file));
    int differ = 0, seen = 0;
    std::istringstream lines(o.output);
    for (std::string line; std::getline(lines, line);) {
        int rank = 0, tp_rank = 0;
        long long bytes = 0, held = 0;
        if (std::sscanf(line.c_str(), "RANK %d %d %lld %lld", &rank, &tp_rank, &bytes, &held) != 4)
            continue;
        ++seen;
        const auto want = plan["ranks"][static_cast<std::size_t>(rank)]["bytes"].get<long long>();
        if (want == bytes && want == held) continue;
        ++differ;
        fmt::print(stderr, "rank {}: planned {}, touched {}, held {}\n", rank, want, bytes, held);
    }
    if (seen != world) fmt::print(stderr, "{} of {} ranks:\n{}\n", seen, world, o.output);
    return seen == world ? differ : -1;
}

// argv: --peak RECIPE D_MODEL D_FF LAYERS ROWS. One step; prints the peaks.
int peak_main(char** argv) {
    const auto arg = [&](int i) { return std::atoll(argv[2 + i]); };
    RunConfig c;
    c.model = {.vocab_size = 8192,
               .d_model = arg(1),
               .n_layers = arg(3),
               .n_heads = arg(1) / 64,
               .n_kv_heads = arg(1) / 128,
               .head_dim = 64,
               .d_ff = arg(2)};
    c.parallel = {.dp = 1, .recompute = Recompute::selective};
    c.precision.recipe = static_cast<Recipe>(arg(0));
    c.batch = {.global_batch = 1, .micro_batch = 1, .grad_accum = 1};
    StageConfig stage;
    stage.name = "only";
    stage.seq_len = arg(4);
    stage.tokens = arg(4);
    c.stages.push_back(stage);
    TrainState s = make_train_state(c, 0, 1, Exec{});
    StepInputs in{.lr = 1e-3};
    in.micro_batches.push_back(tiny_batch(c, 0, 0));
    (void)train_step(s, in, Mesh{}, Exec{});
    fmt::print("PEAK {} {} {}\n", peak_allocated_bytes(), peak_memory_bytes(), s.arena.bytes());
    return 0;
}

struct Peak {
    double allocator = 0, process = 0, arena = 0;
};
Peak peak_of(const char* self, Recipe recipe, bool quick) {
    const stoa::test::Outcome o =
        run_shell(fmt::format("{} --peak {} {}", self, static_cast<int>(recipe),
                              quick ? "512 2048 6 512" : "1024 4096 24 2048"));
    Peak p;
    const std::size_t at = o.output.find("PEAK ");
    if (at == std::string::npos || std::sscanf(o.output.c_str() + at, "PEAK %lf %lf %lf",
                                               &p.allocator, &p.process, &p.arena) != 3)
        fmt::print(stderr, "{}\n", o.output);
    return p;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc > 1 && std::strcmp(argv[1], "--rank") == 0) return rank_main(argc, argv);
    if (argc > 1 && std::strcmp(argv[1], "--peak") == 0) return peak_main(argv);
    const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
    const int configs = quick ? 5 : 20;
    const TempDir dir;
    Draws draws(mix_key(3, 14), 0);
    int differ = 0, ranks = 0, failed = 0;
    for (int i = 0; i < configs; ++i) {
        const RunConfig c = random_config(draws);
        const int world = static_cast<int>(c.parallel.dp * c.parallel.tp);
        const std::string file = fmt::format("{}/{}.yaml", dir.path, i);
        write_text(file, write_config_yaml(c, {}));
        const int d = compare(argv[0], file, world);
        fmt::print("dp {} zero {}{} tp {}{} {:<4} layers {} seq {}: {}\n", c.parallel.dp,
                   c.parallel.zero, c.parallel.overlap == Overlap::on ? "" : " blocking",
                   c.parallel.tp, c.parallel.sequence ? " sequence" : "",
                   recipe_name(c.precision.recipe), c.model.n_layers, c.stages[0].seq_len,
                   d == 0 ? "equal" : "DIFFERENT");
        differ += std::max(d, 0);
        failed += d < 0;
        ranks += world;
    }
    struct Bar {
        Recipe recipe;
        double saving, quick_saving;  // in a small model scratch and 16-bit edge blocks weigh more
    };
    const Peak bf16 = peak_of(argv[0], Recipe::bf16, quick);
    bool saves = bf16.allocator > 0;
    json savings;
    for (const Bar& bar :
         {Bar{Recipe::r30, 0.30, 0.22}, {Recipe::r45, 0.38, 0.31}, {Recipe::r50, 0.45, 0.38}}) {
        const Peak p = peak_of(argv[0], bar.recipe, quick);
        const double allocator = 1.0 - p.allocator / bf16.allocator;
        const double process = 1.0 - p.process / bf16.process;
        const double arena = 1.0 - p.arena / bf16.arena;
        // A small model's process is mostly code and libraries: its figure counts in full size
        // only.
        const double least = quick ? bar.quick_saving : bar.saving;
        saves = saves && p.allocator > 0 && allocator >= least && (quick || process >= least);
        savings[recipe_name(bar.recipe)] = {
            {"allocator", allocator}, {"process", process}, {"arena", arena}, {"bar", least}};
    }
    const bool holds = differ == 0 && failed == 0 && saves;
    fmt::print("{}\n", json{{"configs", configs},
                            {"ranks", ranks},
                            {"ranks_that_differ", differ},
                            {"configs_that_failed", failed},
                            {"bf16_allocator_bytes", bf16.allocator},
                            {"bf16_process_bytes", bf16.process},
                            {"saving_against_bf16", savings},
                            {"holds", holds}}
                           .dump());
    return holds ? 0 : 1;
}
