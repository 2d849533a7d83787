// stoa plan CONFIG --cluster FILE: which meshes a configuration could train on, and how fast.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "configs/recipe.h"
#include "kernels/core/error.h"
#include "launcher/commands.h"
#include "trainer/cost_model/cost_model.h"
#include "trainer/report.h"

namespace stoa {
namespace {

constexpr std::size_t kShown = 10;
constexpr std::int64_t kMostDevices = 16384;

const char* recompute_name(Recompute r) {
    return r == Recompute::none ? "none" : r == Recompute::selective ? "selective" : "full";
}
double percent(double part, double whole) { return 100.0 * part / whole; }

std::string mesh_name(const RankedMesh& m) {
    const ParallelConfig& p = m.config.parallel;
    return fmt::format("{}x{}", p.dp, p.tp);
}

void print_table(const std::vector<RankedMesh>& meshes, const Cluster& cluster) {
    fmt::print("{:>10} {:>5} {:>5} {:>9} {:>9} {:>9} {:>6} {:>6} {:>6} {:>7}  {}\n", "dp x tp",
               "zero", "micro", "recompute", "tok/s", "tok/s/dev", "MFU", "tp", "dp", "memory",
               "limit");
    std::size_t shown = 0;
    for (const RankedMesh& m : meshes) {
        if (shown == kShown) break;
        if (!m.fits && shown > 0) continue;
        ++shown;
        const StepCost& s = m.cost;
        fmt::print(
            "{:>10} {:>5} {:>5} {:>9} {:>9} {:>9} {:>5.1f}% {:>5.1f}% {:>5.1f}% {:>5.1f}G  {}\n",
            mesh_name(m), m.config.parallel.zero, m.config.batch.micro_batch,
            recompute_name(m.config.parallel.recompute), human_count(s.tokens_per_s),
            human_count(s.tokens_per_s_device), 100.0 * s.mfu, percent(s.exposed_tp, s.seconds),
            percent(s.exposed_dp, s.seconds), m.memory_bytes / 1e9,
            m.fits ? s.limit
                   : fmt::format("does not fit {:g} GB: the smallest of all", cluster.memory_gb));
    }
}

// The fastest that fits, or the smallest where none does.
std::vector<RankedMesh> ranked(const RunConfig& config, const Cluster& cluster,
                               std::int64_t devices) {
    std::vector<RankedMesh> meshes = rank_meshes(config, cluster, devices);
    if (!meshes.empty() && !meshes.front().fits)
        std::ranges::stable_sort(meshes, {}, &RankedMesh::memory_bytes);
    return meshes;
}

// One line per size, up to where the batch has no sequence for another dp rank.
std::vector<std::pair<std::int64_t, RankedMesh>> scaling(const RunConfig& config,
                                                         const Cluster& cluster) {
    std::vector<std::pair<std::int64_t, RankedMesh>> line;
    for (std::int64_t n = static_cast<std::int64_t>(cluster.node_devices); n <= kMostDevices;
         n *= 2) {
        std::vector<RankedMesh> meshes = ranked(config, cluster, n);
        if (!meshes.empty()) line.emplace_back(n, std::move(meshes.front()));
    }
    return line;
}

void print_scaling(const RunConfig& config,
                   const std::vector<std::pair<std::int64_t, RankedMesh>>& line) {
    fmt::print("\n{:>8} {:>10} {:>9} {:>9} {:>6}  {}\n", "devices", "dp x tp", "tok/s", "tok/s/dev",
               "MFU", "limit");
    const RankedMesh* best = nullptr;
    for (const auto& [n, m] : line) {
        if (!m.fits) {
            fmt::print("{:>8} {:>10} needs {:.1f} GB a device at least\n", n, mesh_name(m),
                       m.memory_bytes / 1e9);
            continue;
        }
        fmt::print("{:>8} {:>10} {:>9} {:>9} {:>5.1f}%  {}\n", n, mesh_name(m),
                   human_count(m.cost.tokens_per_s), human_count(m.cost.tokens_per_s_device),
                   100.0 * m.cost.mfu, m.cost.limit);
        if (best == nullptr || m.cost.tokens_per_s > 1.05 * best->cost.tokens_per_s) best = &m;
    }
    if (best == nullptr) {
        fmt::print(
            "\nNo mesh of up to {} devices can hold it: dp shares out state, tp a layer; what "
            "is left are the activations of one sequence (context parallel) and the number of "
            "layers (pipeline parallel), see docs/cost_model.md\n",
            kMostDevices);
        return;
    }
    const std::int64_t most = best->config.parallel.dp * best->config.parallel.tp;
    if (line.empty() || line.back().first > most || most < kMostDevices)
        fmt::print(
            "\nMore than {} devices add less than 5 %: a step has {} sequences for {} dp ranks, "
            "and tp ends where its sums cost more than its products save. A larger "
            "batch.global_batch, or pipeline and context parallel, would go on "
            "(docs/cost_model.md)\n",
            most, config.batch.global_batch, best->config.parallel.dp);
}

nlohmann::json to_json(const RankedMesh& m) {
    const StepCost& s = m.cost;
    const ParallelConfig& p = m.config.parallel;
    return {{"dp", p.dp},
            {"tp", p.tp},
            {"zero", p.zero},
            {"micro_batch", m.config.batch.micro_batch},
            {"recompute", recompute_name(p.recompute)},
            {"fits", m.fits},
            {"memory_bytes", m.memory_bytes},
            {"seconds", s.seconds},
            {"tokens_per_s", s.tokens_per_s},
            {"tokens_per_s_device", s.tokens_per_s_device},
            {"mfu", s.mfu},
            {"limit", s.limit},
            {"seconds_of",
             {{"gemm", s.gemm},
              {"attention", s.attention},
              {"elementwise", s.elementwise},
              {"optimizer", s.optimizer},
              {"tp_comm", s.tp_comm},
              {"dp_comm", s.dp_comm},
              {"exposed_tp", s.exposed_tp},
              {"exposed_dp", s.exposed_dp},
              {"fixed", s.fixed},
              {"jitter", s.jitter}}}};
}

}  // namespace

int plan_cluster(const RunConfig& config, const std::string& cluster_file, std::int64_t devices,
                 bool as_json) {
    const Cluster cluster = load_cluster(cluster_file);
    if (devices == 0) devices = static_cast<std::int64_t>(cluster.node_devices);
    const std::vector<RankedMesh> meshes = ranked(config, cluster, devices);
    if (meshes.empty())
        throw ConfigError(
            {.what = "no mesh of this size can train this configuration",
             .where = "--ranks",
             .expected = "dp x tp = " + std::to_string(devices) +
                         " with tp a power of two that divides the heads, and dp x micro_batch a "
                         "divisor of batch.global_batch = " +
                         std::to_string(config.batch.global_batch),
             .hint = "try a power of two, or a larger batch.global_batch"});
    const auto line = scaling(config, cluster);
    if (as_json) {
        nlohmann::json out{{"cluster", cluster.name},
                           {"devices", devices},
                           {"flops_per_token_causal", model_flops_per_token(config, true)},
                           {"flops_per_token_full", model_flops_per_token(config, false)},
                           {"meshes", nlohmann::json::array()},
                           {"scaling", nlohmann::json::array()}};
        for (const RankedMesh& m : meshes)
            out["meshes"].push_back(to_json(m));
        for (const auto& [n, m] : line) {
            out["scaling"].push_back(to_json(m));
            out["scaling"].back()["devices"] = n;
        }
        fmt::print("{}\n", out.dump(2));
        return 0;
    }
    fmt::print("{} on {} x {}, recipe {}, {} sequences of {} tokens a step\n", config.run.name,
               devices, cluster.name, recipe_name(config.precision.recipe),
               config.batch.global_batch, config.stages.back().seq_len);
    fmt::print(
        "MFU = tok/s/dev x {:.2f} GFLOP a token (6 per weight that multiplies, causal "
        "attention; full: {:.2f}) / {:g} TFLOP/s (bf16)\n\n",
        model_flops_per_token(config, true) / 1e9, model_flops_per_token(config, false) / 1e9,
        cluster.bf16_tflops);
    print_table(meshes, cluster);
    print_scaling(config, line);
    return 0;
}

}  // namespace stoa
