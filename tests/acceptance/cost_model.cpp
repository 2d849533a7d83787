// How far the cost model is off: against five training steps that are measured here, in turns with
// the kernels and links it is given, and against speeds that others published for H100 and H200
// clusters. Here one further step calibrates what is neither product nor attention; there one point
// of each software stack calibrates the share of the peak that its products reach.
//   cost_model [--quick]      Starts itself under mpirun. --quick judges the published points only.
#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "kernels/core/thread_pool.h"
#include "parallel/mpi_session.h"
#include "tests/support/cpu_cluster.h"
#include "tests/support/programs.h"
#include "tests/support/published_points.h"
#include "tests/support/tiny_run.h"

using namespace stoa;
using namespace stoa::test;
using nlohmann::json;

namespace {

struct Step {
    const char* name;
    std::int64_t layers, d_model, seq_len, micro_batch;
    int dp, tp;
};
// The first one calibrates, in the company of as many ranks as the others have.
constexpr Step kAlone[] = {{"5 x 384, 2 x 256 (calibrates)", 5, 384, 256, 2, 1, 1},
                           {"4 x 256, 4 x 256", 4, 256, 256, 4, 1, 1},
                           {"10 x 256, 4 x 128", 10, 256, 128, 4, 1, 1},
                           {"3 x 640, 2 x 256", 3, 640, 256, 2, 1, 1}};
constexpr Step kPairs[] = {{"5 x 384, 2 x 256 (calibrates)", 5, 384, 256, 2, 1, 1},
                           {"6 x 384, 2 x 256, dp 2", 6, 384, 256, 2, 2, 1},
                           {"4 x 512, 4 x 128, tp 2", 4, 512, 128, 4, 1, 2}};

RunConfig config_of(const Step& s) {
    RunConfig c = tiny_config({}, s.dp, s.tp);
    c.model = {.vocab_size = 4096,
               .d_model = s.d_model,
               .n_layers = s.layers,
               .n_heads = s.d_model / 64,
               .n_kv_heads = s.d_model / 64,
               .head_dim = 64,
               .d_ff = 3 * s.d_model};
    c.parallel.determinism = Determinism::fast;
    c.parallel.overlap = Overlap::off;
    c.stages[0].seq_len = s.seq_len;
    c.stages[0].tokens = 1 << 30;
    c.batch = {.global_batch = s.micro_batch * s.dp, .micro_batch = s.micro_batch, .grad_accum = 1};
    return c;
}

// Under mpirun -n RANKS: rounds of kernels, links and steps. Rank 0 prints medians as "TRACE
// {...}".
int rank_main(int rounds) {
    int argc = 0;
    char** argv = nullptr;
    MpiSession session(argc, argv);
    set_cpu_threads(1);
    const Mesh alone;
    Mesh by_dp = make_mesh(session.size(), 1), by_tp = make_mesh(1, session.size());
    const std::span<const Step> steps =
        session.size() == 1 ? std::span<const Step>(kAlone) : std::span<const Step>(kPairs);
    const auto mesh_of = [&](const Step& s) -> const Mesh& {
        return s.dp > 1 ? by_dp : s.tp > 1 ? by_tp : alone;
    };
    std::vector<TrainState> states;
    for (const Step& s : steps)
        states.push_back(make_train_state(config_of(s), mesh_of(s).tp_rank(), s.tp, Exec{},
                                          mesh_of(s).dp_rank()));
    std::vector<double> gemm, attention, link;
    std::vector<std::vector<double>> seconds(steps.size());
    for (int round = -1; round < rounds; ++round)  // -1 warms up
        for (std::size_t k = 0; k < steps.size(); ++k) {
            barrier(by_dp.world);
            const double g = measure_gemm(), a = measure_attention();
            const double l = session.size() > 1 ? measure_link(by_dp.dp) : 1e12;
            const Mesh& mesh = mesh_of(steps[k]);
            StepInputs in{.lr = 1e-4};
            in.micro_batches.push_back(
                tiny_batch(states[k].config, round + 1, mesh.dp_rank() * steps[k].micro_batch));
            barrier(by_dp.world);
            const double s = seconds_of([&] { train_step(states[k], in, mesh, Exec{}); });
            if (round < 0) continue;
            gemm.push_back(g);
            attention.push_back(a);
            link.push_back(l);
            seconds[k].push_back(s);
        }
    json out{{"gemm", median(gemm)}, {"attention", median(attention)}, {"link", median(link)}};
    for (std::size_t k = 0; k < steps.size(); ++k)
        out["seconds"].push_back(median(seconds[k]));
    if (session.rank() == 0) fmt::print("TRACE {}\n", out.dump());
    std::fflush(stdout);
    close_mesh(by_tp);
    close_mesh(by_dp);
    session.close();
    return 0;
}

struct Tally {
    int predicted = 0, within = 0;
    json points = json::array();
    void add(const std::string& name, double measured, double model, bool calibrates, double bar) {
        const double error = model / measured - 1.0;
        predicted += calibrates ? 0 : 1;
        within += !calibrates && std::abs(error) <= bar ? 1 : 0;
        fmt::print("{:<40} {:>9.4g} {} {:>9.4g}  {:>+5.1f} %\n", name, measured,
                   calibrates ? "calibrates" : "predicted ", model, 100.0 * error);
        points.push_back({{"point", name},
                          {"measured", measured},
                          {"model", model},
                          {"error", error},
                          {"calibrates", calibrates}});
    }
};

// Milliseconds of steps here.
bool steps_here(const char* self, int ranks, std::span<const Step> steps, int rounds, Tally& t) {
    const Outcome o = run_shell(fmt::format("mpirun -q -n {} {} --rank {}", ranks, self, rounds));
    const std::size_t at = o.output.find("TRACE ");
    if (o.code != 0 || at == std::string::npos) {
        fmt::print(stderr, "exit {}\n{}\n", o.code, o.output);
        return false;
    }
    const json m = json::parse(o.output.substr(at + 6, o.output.find('\n', at) - at - 6));
    const double gemm = m.at("gemm"), attention = m.at("attention"), link = m.at("link");
    fmt::print("{} rank(s): products {:.1f}, attention {:.1f} GFLOP/s, link {:.2f} GB/s\n", ranks,
               gemm / 1e9, attention / 1e9, link / 1e9);
    Cluster c = cpu_cluster(gemm, attention, link, 1e10);
    c.bandwidth_gb_s = memory_rate_of(config_of(steps[0]), m.at("seconds")[0], c) / 1e9;
    for (std::size_t k = 0; k < steps.size(); ++k)
        t.add(steps[k].name, 1e3 * m.at("seconds")[k].get<double>(),
              1e3 * predict_step(config_of(steps[k]), c).seconds, k == 0, 0.10);
    return true;
}

Cluster cluster_of(const std::string& stack) {
    const char* const file = stack == "torchtitan"        ? "h100-500w"
                             : stack == "torchtitan h200" ? "h200"
                                                          : "h100";
    return load_cluster(source_dir() + "/configs/clusters/" + file + ".yaml");
}

// Tokens a second and device of others' clusters.
void published(Tally& t) {
    Cluster cluster;
    for (const PublishedPoint& p : published_points()) {
        if (p.calibrates) cluster = calibrated(cluster_of(p.stack), p);
        t.add(fmt::format("{}: {}", p.stack, p.name), p.tokens_per_s_device,
              predict_step(config_of(p), cluster).tokens_per_s_device, p.calibrates, 0.15);
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc > 2 && std::strcmp(argv[1], "--rank") == 0) return rank_main(std::atoi(argv[2]));
    const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
    constexpr int kPublishedBar = 8, kStepsHere = 5;
    Tally here, others;
    const int rounds = quick ? 1 : 15;
    const bool ran = steps_here(argv[0], 1, kAlone, rounds, here) &&
                     steps_here(argv[0], 2, kPairs, rounds, here);
    published(others);
    const bool holds = ran && others.within >= kPublishedBar &&
                       (quick || (here.within == kStepsHere && here.predicted == kStepsHere));
    fmt::print("{}\n", json{{"here",
                             {{"predicted", here.predicted},
                              {"within_10_percent", here.within},
                              {"points", here.points}}},
                            {"published",
                             {{"predicted", others.predicted},
                              {"within_15_percent", others.within},
                              {"points", others.points}}},
                            {"judged", quick ? "published" : "here, published"},
                            {"holds", holds}}
                           .dump());
    return holds ? 0 : 1;
}
