#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "configs/load_run_config.h"
#include "data/tokenizer/tokenizer.h"
#include "launcher/cli.h"
#include "launcher/commands.h"
#include "launcher/commands/plan_target.h"
#include "trainer/memory_advice.h"
#include "trainer/precision_policy.h"

namespace po = boost::program_options;

namespace stoa {
namespace {

double mib(std::int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

// "saved.3.gate.scale" -> "saved.*.gate.scale": the layers of one kind are one line.
std::string without_layer(const std::string& name) {
    std::string out;
    for (std::size_t i = 0; i < name.size(); ++i) {
        const bool starts = std::isdigit(static_cast<unsigned char>(name[i])) != 0 &&
                            (i == 0 || name[i - 1] == '.');
        if (!starts) {
            out += name[i];
            continue;
        }
        while (i + 1 < name.size() && std::isdigit(static_cast<unsigned char>(name[i + 1])) != 0)
            ++i;
        out += '*';
    }
    return out;
}

void print_rank(const MemoryPlan& plan, int tp_rank, bool all) {
    if (!plan.scratch.empty())
        fmt::print(
            "\ndp rank 0, tp rank {}: {} bytes = {:.1f} MiB: state {:.1f}, activations {:.1f}\n",
            tp_rank, plan.total_bytes(), mib(plan.total_bytes()), mib(plan.state_bytes),
            mib(plan.activation_bytes));
    else
        fmt::print(
            "\ndp rank 0, tp rank {}: {} bytes = {:.1f} MiB: state {:.1f}, activations {:.1f}; "
            "beside "
            "them {:.1f} that the attention kernels work in\n",
            tp_rank, plan.total_bytes(), mib(plan.total_bytes()), mib(plan.state_bytes),
            mib(plan.activation_bytes), mib(plan.kernel_bytes));
    if (all) {
        fmt::print("{}", describe_plan(plan));
        return;
    }
    struct Kind {
        std::int64_t bytes = 0, count = 0;
        const PlannedTensor* first = nullptr;
    };
    std::map<std::string, Kind> kinds;
    for (const PlannedTensor& t : plan.tensors) {
        Kind& k = kinds[without_layer(t.name)];
        k.bytes += t.bytes();
        ++k.count;
        if (k.first == nullptr) k.first = &t;
    }
    std::vector<std::pair<std::string, Kind>> sorted(kinds.begin(), kinds.end());
    std::ranges::stable_sort(
        sorted, [](const auto& a, const auto& b) { return a.second.bytes > b.second.bytes; });
    for (const auto& [name, k] : sorted)
        fmt::print("  {:>14} B  {:>4} x {:<5} {:<16} {:<11} {}\n", k.bytes, k.count,
                   dtype_name(k.first->dtype), k.first->shape.str(),
                   lifetime_name(k.first->lifetime), name);
    if (!plan.scratch.empty()) fmt::print("{}", describe_beside(plan));
}

struct RankPlan {
    int dp_rank, tp_rank;
    MemoryPlan plan;
};

// Of every rank; of a large mesh only of the first and the last dp rank, whose shares differ by at
// most a block of rows of each parameter.
std::vector<RankPlan> plan_ranks(const RunConfig& config, const PlanTarget& target) {
    constexpr int kMostRanks = 1024;
    const auto dp = static_cast<int>(config.parallel.dp), tp = static_cast<int>(config.parallel.tp);
    std::vector<RankPlan> plans;
    for (int d = 0; d < dp; ++d)
        for (int t = 0; t < tp; ++t)
            if (dp * tp <= kMostRanks || d == 0 || d == dp - 1)
                plans.push_back(
                    {d, t, plan_memory(config, t, tp, d, target.device(), target.setup())});
    return plans;
}

nlohmann::json to_json(const RunConfig& c, const std::vector<RankPlan>& plans) {
    constexpr std::size_t kMostTables = 64;
    const DiskNeed disk = plan_disk(c);
    nlohmann::json out{{"dp", c.parallel.dp},
                       {"tp", c.parallel.tp},
                       {"recipe", recipe_name(c.precision.recipe)},
                       {"checkpoint_bytes", disk.checkpoint_bytes},
                       {"disk_bytes", disk.run_bytes},
                       {"ranks", nlohmann::json::array()}};
    for (const RankPlan& r : plans) {
        const MemoryPlan& p = r.plan;
        nlohmann::json tensors = nlohmann::json::array();
        for (const PlannedTensor& t : p.tensors)
            tensors.push_back({{"name", t.name},
                               {"shape", t.shape.str()},
                               {"dtype", dtype_name(t.dtype)},
                               {"lifetime", lifetime_name(t.lifetime)},
                               {"offset", t.offset_bytes},
                               {"bytes", t.bytes()}});
        if (out["ranks"].size() >= kMostTables) tensors.clear();
        out["ranks"].push_back({{"dp_rank", r.dp_rank},
                                {"tp_rank", r.tp_rank},
                                {"bytes", p.total_bytes()},
                                {"state_bytes", p.state_bytes},
                                {"activation_bytes", p.activation_bytes},
                                {"kernel_bytes", p.kernel_bytes},
                                {"rank_bytes", p.rank_bytes()},
                                {"graph_bytes", p.graph_bytes},
                                {"snapshot_bytes", p.host_bytes},
                                {"staging_bytes", p.staging_bytes},
                                {"scratch", nlohmann::json::object()},
                                {"tensors", tensors}});
        for (const PlannedScratch& s : p.scratch)
            out["ranks"].back()["scratch"][s.op] = s.bytes;
    }
    return out;
}

}  // namespace

int command_plan(const Args& args) {
    CommandLine line;
    line.usage =
        "stoa plan CONFIG [key=value ...] [--ranks N] [--gpu GPU] [--memory GIB] [--all] [--json]\n"
        "       stoa plan CONFIG [key=value ...] --cluster FILE [--ranks N] [--json]";
    line.examples =
        "  stoa plan configs/tiny.yaml\n"
        "  stoa plan configs/1b.yaml model.vocab_size=32768 --ranks 64 --memory 80\n"
        "  stoa plan configs/tiny.yaml precision.recipe=r50 parallel.recompute=full\n"
        "  stoa plan configs/1b.yaml model.vocab_size=32768 --ranks 8 --gpu 'NVIDIA H200/90/141'\n"
        "  stoa plan configs/1b.yaml --cluster configs/clusters/h100.yaml --ranks 64\n";
    line.about =
        "Prints every tensor that a rank will hold, with its lifetime, and the disk that the "
        "checkpoints take.\n"
        "The same list places the tensors when the run starts: its total is the arena's size, to "
        "the byte.\n"
        "Data-parallel ranks share out masters and moments; the table is that of dp rank 0.\n"
        "On a GPU (one that is here, parallel.device, or one that is described): beside the arena "
        "the scratch\n"
        "of the ops, pinned host memory, and whether it fits.\n"
        "With --cluster: meshes of that many devices by predicted speed, what limits each, and how "
        "far more\n"
        "devices help (docs/cost_model.md).\n"
        "Nothing is started: the cluster need not exist.";
    line.options.add_options()("config", po::value<std::vector<std::string>>(), "")(
        "ranks", po::value<int>(), "plan for this many ranks")(
        "cluster", po::value<std::string>(), "rank meshes on the cluster of this file")(
        "gpu", po::value<std::string>(),
        "plan for this GPU, NAME/CAPABILITY/GIB, and refuse, with advice, what does not fit")(
        "memory", po::value<double>(), "refuse, with advice, what takes more GiB a rank than this")(
        "all", po::bool_switch(), "every tensor instead of one line for each kind")(
        "json", po::bool_switch(), "print one JSON object");
    line.positional.add("config", -1);
    const auto values = parse_command_line(line, args);
    if (!values) return 0;
    if (!values->contains("config"))
        throw ConfigError({.what = "missing argument: CONFIG", .hint = "usage: " + line.usage});
    if (const double gib = values->contains("memory") ? (*values)["memory"].as<double>() : 1.0;
        !(gib > 0.0) || !std::isfinite(gib))
        throw ConfigError({.what = "--memory",
                           .expected = "a number of GiB above 0",
                           .actual = fmt::format("{}", gib)});
    const auto words = (*values)["config"].as<std::vector<std::string>>();
    RunConfig config = load_run_config(words[0], {words.begin() + 1, words.end()}).config;
    if (values->contains("cluster") && values->contains("gpu"))
        throw ConfigError({.what = "--gpu and --cluster",
                           .expected = "one of them: the cluster's file has the memory of its GPUs",
                           .hint = "leave out --gpu"});
    if (values->contains("cluster")) {
        if (config.model.vocab_size == 0)
            config = resolve_for_vocab(config, Tokenizer::load(config.data.tokenizer).vocab_size());
        const int devices = values->contains("ranks") ? (*values)["ranks"].as<int>() : 0;
        if (devices < 0 || (devices == 0 && values->contains("ranks")))
            throw ConfigError({.what = "--ranks",
                               .expected = "a number of devices above 0",
                               .actual = std::to_string(devices)});
        return plan_cluster(config, (*values)["cluster"].as<std::string>(), devices,
                            (*values)["json"].as<bool>());
    }
    const std::int64_t tp = config.parallel.tp;
    const std::int64_t ranks = values->contains("ranks")
                                   ? (*values)["ranks"].as<int>()
                                   : tp * std::max<std::int64_t>(config.parallel.dp, 1);
    config = resolve_for_world(config, static_cast<int>(ranks));
    if (config.model.vocab_size == 0)
        config = resolve_for_vocab(config, Tokenizer::load(config.data.tokenizer).vocab_size());

    const PlanTarget target = plan_target(config, *values);
    if (target.gpu) set_levels(config, initial_policy(config, target.gpu->capability));
    const std::vector<RankPlan> plans = plan_ranks(config, target);
    const auto [least, most] = std::ranges::minmax_element(
        plans, {}, [](const RankPlan& r) { return r.plan.rank_bytes(); });
    if ((*values)["json"].as<bool>()) {
        nlohmann::json out = to_json(config, plans);
        if (target.gpu) out["gpu"] = target_json(config, target, most->plan);
        fmt::print("{}\n", out.dump(2));
    } else {
        const DiskNeed disk = plan_disk(config);
        fmt::print("{} parameters, recipe {}, dp {} x tp {}\n", count_parameters(config),
                   recipe_name(config.precision.recipe), config.parallel.dp, tp);
        fmt::print(
            "disk: {:.1f} MiB a checkpoint, {:.1f} MiB for the {} that are kept and the one "
            "being written\n",
            mib(disk.checkpoint_bytes), mib(disk.run_bytes), config.checkpoint.keep);
        fmt::print("memory: {:.1f} to {:.1f} MiB a rank, most on dp rank {}, tp rank {}\n",
                   mib(least->plan.rank_bytes()), mib(most->plan.rank_bytes()), most->dp_rank,
                   most->tp_rank);
        if (target.gpu) fmt::print("{}\n", target_text(config, target, most->plan));
        for (const RankPlan& r : plans)
            if (r.dp_rank == 0) print_rank(r.plan, r.tp_rank, (*values)["all"].as<bool>());
    }
    if (target.known)
        require_fits_gpu(config, most->plan, room_of_described(*target.gpu, config),
                         target.setup());
    if (!target.gpu && values->contains("memory"))
        require_fits(config, most->plan, 1,
                     static_cast<std::int64_t>((*values)["memory"].as<double>() * (1 << 30)));
    return 0;
}

}  // namespace stoa
