// The speed of one training step on made-up tokens, for the two model sizes that other CPU trainers
// were measured at: 4 layers x 256 (B = 4, T = 256, vocabulary 4096) and GPT-2 124M (B = 4, T =
// 64). d_ff is 8/3 d_model, which gives SwiGLU the parameters of a 4 d_model MLP, rounded up to
// whole blocks of 128. The recipes run in turn, so that all see the same machine. Under mpirun the
// batch is split over dp ranks.
//   train_step [--steps N] [--model small|124m] [--threads N] [--recipes fp32,bf16,r30,r45,r50]
// A recipe may name the order of its sums: fp32/fast, r30/elastic, fp32/4x4 (parallel.determinism).
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/core/thread_pool.h"
#include "parallel/collectives.h"
#include "parallel/mpi_session.h"
#include "tests/bench/step_costs.h"
#include "tests/support/tiny_run.h"

using namespace stoa;
using namespace stoa::bench;
using nlohmann::json;

namespace {

using Clock = std::chrono::steady_clock;

struct Size {
    const char* name;
    ModelConfig model;
    std::int64_t seq_len;
};

void set_sums(ParallelConfig& p, const std::string& sums) {
    long long dp_shards = 0, tp_chunks = 0;
    p.determinism = sums == "fast" ? Determinism::fast : Determinism::automatic;
    if (std::sscanf(sums.c_str(), "%lldx%lld", &dp_shards, &tp_chunks) != 2) return;
    p.dp_shards = dp_shards;
    p.tp_chunks = tp_chunks;
}

/// `name`: "fp32", "r30/fast" ...
RunConfig bench_config(const Size& size, const std::string& name, std::int64_t dp) {
    const std::size_t slash = std::min(name.find('/'), name.size());
    RunConfig c = test::tiny_config({}, dp, 1);
    c.model = size.model;
    c.precision.recipe = recipe_from_name(name.substr(0, slash));
    if (slash < name.size()) set_sums(c.parallel, name.substr(slash + 1));
    c.stages[0].seq_len = size.seq_len;
    const std::int64_t shards = virtual_mesh(c, dp, 1).dp_shards;
    c.batch = {.global_batch = 4, .micro_batch = 4 / shards};
    c.stages[0].tokens = 1 << 30;
    return c;
}

struct Timing {
    std::vector<double> seconds;
    double quantile(double q) const { return bench::quantile(seconds, q); }
};

json measure(const Size& size, const std::vector<std::string>& recipes, int steps,
             const Mesh& mesh) {
    std::vector<TrainState> states;
    std::vector<Timing> timings(recipes.size()), comm(recipes.size());
    for (const std::string& name : recipes)
        states.push_back(make_train_state(bench_config(size, name, mesh.dp_size()), 0, 1, Exec{},
                                          mesh.dp_rank()));
    for (int step = -1; step < steps; ++step)  // step -1 warms up
        for (std::size_t k = 0; k < recipes.size(); ++k) {
            const RunConfig& c = states[k].config;
            StepInputs in{.lr = 1e-4};
            for (std::int64_t row = mesh.dp_rank() * c.batch.micro_batch; row < 4;
                 row += mesh.dp_size() * c.batch.micro_batch)
                in.micro_batches.push_back(test::tiny_batch(c, step + 1, row));
            take_comm_seconds();
            const auto begin = Clock::now();
            train_step(states[k], in, mesh, Exec{});
            if (step < 0) continue;
            timings[k].seconds.push_back(
                std::chrono::duration<double>(Clock::now() - begin).count());
            comm[k].seconds.push_back(take_comm_seconds().exposed);
        }
    const RunConfig& c = states[0].config;
    const double tokens = static_cast<double>(c.batch.global_batch * c.stages[0].seq_len);
    json out{{"model", size.name},
             {"parameters", count_parameters(c)},
             {"ranks", mesh.dp_size()},
             {"threads", cpu_threads()},
             {"gflop_per_step", step_flop(c) / 1e9}};
    for (std::size_t k = 0; k < recipes.size(); ++k) {
        const Timing& t = timings[k];
        out[recipes[k]] = {{"tok_s", tokens / t.quantile(0.5)},
                           {"gflop_s", step_flop(c) / t.quantile(0.5) / 1e9},
                           {"step_ms_median", 1e3 * t.quantile(0.5)},
                           {"step_ms_p10", 1e3 * t.quantile(0.1)},
                           {"step_ms_p90", 1e3 * t.quantile(0.9)},
                           {"exposed_comm_share", comm[k].quantile(0.5) / t.quantile(0.5)}};
        out[recipes[k] + "_over_" + recipes[0] + "_speed"] =
            timings[0].quantile(0.5) / t.quantile(0.5);
    }
    return out;
}

std::vector<std::string> split_commas(const std::string& text) {
    std::vector<std::string> words;
    std::istringstream in(text);
    for (std::string word; std::getline(in, word, ',');)
        words.push_back(word);
    return words;
}

}  // namespace

int main(int argc, char** argv) {
    MpiSession session(argc, argv);
    Mesh mesh = make_mesh(session.size(), 1);
    int steps = 10;
    std::string only, recipes = "fp32,bf16";
    for (int i = 1; i + 1 < argc; ++i) {
        if (std::strcmp(argv[i], "--steps") == 0) steps = std::atoi(argv[i + 1]);
        if (std::strcmp(argv[i], "--model") == 0) only = argv[i + 1];
        if (std::strcmp(argv[i], "--threads") == 0) set_cpu_threads(std::atoi(argv[i + 1]));
        if (std::strcmp(argv[i], "--recipes") == 0) recipes = argv[i + 1];
    }
    const Size sizes[] = {{"small",
                           {.vocab_size = 4096,
                            .d_model = 256,
                            .n_layers = 4,
                            .n_heads = 4,
                            .n_kv_heads = 4,
                            .head_dim = 64,
                            .d_ff = 768},
                           256},
                          {"124m",
                           {.vocab_size = 50257,
                            .d_model = 768,
                            .n_layers = 12,
                            .n_heads = 12,
                            .n_kv_heads = 12,
                            .head_dim = 64,
                            .d_ff = 2048},
                           64}};
    json results = json::array();
    for (const Size& size : sizes) {
        if (!only.empty() && only != size.name) continue;
        const json r = measure(size, split_commas(recipes), steps, mesh);
        if (session.rank() == 0) fmt::print("{}\n", r.dump(2));
        results.push_back(r);
    }
    if (session.rank() == 0)
        fmt::print("{}\n",
                   json{{"bench", "train_step"}, {"steps", steps}, {"results", results}}.dump());
    close_mesh(mesh);
    session.close();
    return 0;
}
