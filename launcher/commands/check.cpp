#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "configs/attention_config.h"
#include "configs/load_run_config.h"
#include "data/reasoning/engine.h"
#include "data/tokenizer/tokenizer.h"
#include "kernels/cuda/device.h"
#include "launcher/cli.h"
#include "launcher/commands.h"
#include "trainer/model/activations.h"

namespace po = boost::program_options;

namespace stoa {
namespace {

std::string human(std::int64_t n) {
    const double x = static_cast<double>(n);
    if (n >= 1'000'000'000) return fmt::format("{:.2f} B", x / 1e9);
    if (n >= 1'000'000) return fmt::format("{:.2f} M", x / 1e6);
    if (n >= 10'000) return fmt::format("{:.1f} k", x / 1e3);
    return fmt::format("{}", n);
}

/// `| key | type | default | range | meaning |`, the text of docs/config.md.
void print_schema() {
    fmt::print(
        "# Configuration keys\n\n"
        "A configuration is one YAML file; `key=value` after it on the command line changes single "
        "values\n"
        "(`optimizer.lr=3e-4`, `stages.0.tokens=1M tokens`, `data.sources.web.path=shards/web`). "
        "The command\n"
        "line goes before the file, the file before the default. `stoa check FILE` prints every "
        "value with\n"
        "its origin. This page is the output of `stoa check --schema`.\n\n"
        "Numbers may be written as `1_000`, `20k`, `20M`, `1.5B`, `2T`, with their unit (`20M "
        "tokens`,\n"
        "`200 steps`), as a percentage (`1%`) or a duration (`90s`, `30min`, `2h`, `1d`) where the "
        "type says so.\n\n"
        "| key | type | default | range | meaning |\n|---|---|---|---|---|\n");
    const auto cell = [](const std::string& text) {
        std::string out;
        for (const char c : text) {
            if (c == '|') out += '\\';
            out += c;
        }
        return out;
    };
    const auto print = [&](const std::vector<SchemaKey>& keys) {
        for (const SchemaKey& k : keys)
            fmt::print("| `{}` | {} | {} | {} | {} |\n", k.key, cell(k.type), cell(k.default_value),
                       cell(k.range), cell(k.help));
    };
    print(config_schema());
    fmt::print(
        "\nInside `model.attention`, and inside `stages[].attention`, which begins from it "
        "(`model.attention.window=512`):\n\n"
        "| key | type | default | range | meaning |\n|---|---|---|---|---|\n");
    print(attention_schema());
}

std::string device_line() {
    std::string reason;
    const auto devices = cuda::list_devices(reason);
    if (devices.empty()) return fmt::format("no GPU: {}; runs on the CPU", reason);
    return fmt::format("{} x {} ({:.0f} GiB); not used yet, runs on the CPU", devices.size(),
                       devices[0].name, static_cast<double>(devices[0].memory_bytes) / (1 << 30));
}

void print_summary(const RunConfig& c) {
    const std::int64_t parameters = count_parameters(c);
    fmt::print("\nmodel     ");
    if (c.model.vocab_size > 0)
        fmt::print("{} parameters ({})\n", human(parameters), parameters);
    else
        fmt::print("{} parameters without the embedding (the tokenizer is not there yet)\n",
                   human(parameters));
    fmt::print("device    {}\n", device_line());
    fmt::print(
        "ranks     {}\n",
        c.parallel.dp == 0
            ? fmt::format("any multiple of tp = {} (give --ranks N to check one)", c.parallel.tp)
            : fmt::format("{} = dp {} x tp {}, {} micro-batches of {} per step",
                          c.parallel.dp * c.parallel.tp, c.parallel.dp, c.parallel.tp,
                          c.batch.global_batch / (c.batch.micro_batch * c.parallel.dp),
                          c.batch.micro_batch));
    std::int64_t steps = 0, tokens = 0;
    for (const StageConfig& s : c.stages) {
        const std::int64_t n = stage_steps(s, c.batch.global_batch),
                           per_step = c.batch.global_batch * s.seq_len;
        fmt::print("stage     {:<12} {:>8} steps x {} tokens = {} tokens\n", s.name, n, per_step,
                   human(n * per_step));
        if (const AttentionConfig& a = attention_of(c, s); a.kind != AttentionKind::dense)
            fmt::print("          attention {}\n", print_attention(a));
        steps += n;
        tokens += n * per_step;
    }
    fmt::print("total     {} steps, {} tokens\n", steps, human(tokens));
    if (c.model.vocab_size == 0) return;
    const MemoryPlan plan = plan_memory(c, 0, static_cast<int>(c.parallel.tp));
    fmt::print(
        "memory    {:.1f} MiB per rank: state {:.1f}, activations {:.1f}, attention kernels "
        "{:.1f}\n",
        static_cast<double>(plan.rank_bytes()) / (1 << 20),
        static_cast<double>(plan.state_bytes) / (1 << 20),
        static_cast<double>(plan.activation_bytes) / (1 << 20),
        static_cast<double>(plan.kernel_bytes) / (1 << 20));
}

nlohmann::json to_json(const LoadedConfig& loaded, const RunConfig& c,
                       const std::vector<std::string>& problems) {
    nlohmann::json out;
    out["config_yaml"] = write_config_yaml(c, loaded.origins);
    out["origins"] = loaded.origins;
    out["parameters"] =
        c.model.vocab_size > 0 ? nlohmann::json(count_parameters(c)) : nlohmann::json();
    out["dp"] = c.parallel.dp;
    out["tp"] = c.parallel.tp;
    out["stages"] = nlohmann::json::array();
    for (const StageConfig& s : c.stages) {
        const std::int64_t steps = stage_steps(s, c.batch.global_batch),
                           per_step = c.batch.global_batch * s.seq_len;
        out["stages"].push_back({{"name", s.name},
                                 {"steps", steps},
                                 {"tokens_per_step", per_step},
                                 {"tokens", steps * per_step}});
    }
    out["problems"] = problems;
    return out;
}

}  // namespace

void check_files(RunConfig& config, std::vector<std::string>& problems) {
    const std::string& tokenizer = config.data.tokenizer;
    if (!std::filesystem::exists(tokenizer)) {
        problems.push_back(
            fmt::format("data.tokenizer: there is no file {}\n  hint: make it with `stoa tokenizer "
                        "train`, or correct the path",
                        tokenizer));
    } else {
        try {
            config = resolve_for_vocab(config, Tokenizer::load(tokenizer).vocab_size());
        } catch (const Error& e) {
            problems.push_back(e.what());
        }
    }
    for (const SourceConfig& s : config.data.sources) {
        if (s.kind == SourceKind::shards && !std::filesystem::is_directory(s.path))
            problems.push_back(
                fmt::format("data.sources.{}.path: there is no directory {}\n  hint: make it with "
                            "`stoa data build`, or correct the path",
                            s.name, s.path));
        for (const std::string& family : s.families) {
            try {
                (void)reasoning_family(family);
            } catch (const Error& e) {
                problems.push_back(fmt::format("data.sources.{}.families: {}", s.name, e.what()));
            }
        }
    }
}

void throw_problems(const std::vector<std::string>& problems) {
    if (problems.empty()) return;
    std::string text;
    for (const std::string& p : problems)
        text += (text.empty() ? "" : "\nerror: ") + p;
    throw ConfigError({.what = text + fmt::format("\n{} error{}", problems.size(),
                                                  problems.size() == 1 ? "" : "s")});
}

int command_check(const Args& args) {
    CommandLine line;
    line.usage = "stoa check CONFIG [key=value ...] [--ranks N] [--json] | stoa check --schema";
    line.examples =
        "  stoa check configs/tiny.yaml\n"
        "  stoa check configs/tiny.yaml parallel.tp=2 --ranks 4\n"
        "  stoa check --schema > docs/config.md\n";
    line.about =
        "Checks a configuration, the files it names and, with --ranks, how it fits that many "
        "ranks. Prints\n"
        "every value with its origin, then what follows from them. Starts nothing.";
    line.options.add_options()("config", po::value<std::vector<std::string>>(), "")(
        "ranks", po::value<int>(), "check for this many ranks")(
        "schema", po::bool_switch(), "print all keys as Markdown")("json", po::bool_switch(),
                                                                   "print one JSON object");
    line.positional.add("config", -1);
    const auto values = parse_command_line(line, args);
    if (!values) return 0;
    if ((*values)["schema"].as<bool>()) {
        print_schema();
        return 0;
    }
    if (!values->contains("config"))
        throw ConfigError({.what = "missing argument: CONFIG", .hint = "usage: " + line.usage});
    const auto words = (*values)["config"].as<std::vector<std::string>>();
    LoadedConfig loaded = load_run_config(words[0], {words.begin() + 1, words.end()});
    RunConfig config = loaded.config;
    if (values->contains("ranks")) {
        config = resolve_for_world(config, (*values)["ranks"].as<int>());
        loaded.origins.emplace("parallel.dp", "from --ranks");
    }
    std::vector<std::string> problems;
    check_files(config, problems);
    if ((*values)["json"].as<bool>()) {
        fmt::print("{}\n", to_json(loaded, config, problems).dump(2));
    } else {
        fmt::print("{}", write_config_yaml(config, loaded.origins));
        print_summary(config);
    }
    throw_problems(problems);
    return 0;
}

}  // namespace stoa
