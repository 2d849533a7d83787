#include "launcher/commands/ckpt.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "checkpoints/checkpoint.h"
#include "checkpoints/manifest.h"
#include "checkpoints/run_directory.h"
#include "checkpoints/verify.h"
#include "configs/load_run_config.h"
#include "launcher/cli.h"
#include "launcher/commands.h"

namespace po = boost::program_options;

namespace stoa {

std::vector<std::string> checkpoints_at(const std::string& path) {
    namespace fs = std::filesystem;
    const std::string trimmed =
        path.size() > 1 && path.ends_with('/') ? path.substr(0, path.size() - 1) : path;
    if (fs::exists(trimmed + "/" + kManifestName) ||
        (fs::is_directory(trimmed) && fs::path(trimmed).filename().string().starts_with("step-")))
        return {trimmed};
    const std::vector<std::string> dirs = list_checkpoints(trimmed);
    if (dirs.empty())
        throw CheckpointError({.what = "no checkpoint here",
                               .where = trimmed,
                               .expected = "a run directory with ckpt/step-*, or one of those",
                               .actual = fs::exists(trimmed) ? "neither" : "no such directory"});
    return dirs;
}

namespace {

std::string counter(const CheckpointMeta& meta, const std::string& name) {
    const auto at = meta.counters.find(name);
    return at == meta.counters.end() ? "-" : at->second;
}

std::int64_t total_bytes(const std::vector<CheckpointFile>& files) {
    std::int64_t bytes = 0;
    for (const CheckpointFile& f : files)
        bytes += f.bytes;
    return bytes;
}

/// One path argument and --help, shared by the three verbs. Returns nothing after --help.
std::optional<po::variables_map> parse(const std::string& verb, const std::string& about,
                                       const std::function<void(CommandLine&)>& add,
                                       const Args& args) {
    CommandLine line{
        .usage = "stoa ckpt " + verb + " DIR" + (verb == "show" ? " [--tensors] [--json]" : ""),
        .examples = "stoa ckpt " + verb + " runs/tiny",
        .about = about};
    line.options.add_options()("dir", po::value<std::string>(),
                               "a run directory or a checkpoint directory");
    line.positional.add("dir", 1);
    add(line);
    auto values = parse_command_line(std::move(line), args);
    if (values && values->count("dir") == 0)
        throw ConfigError({.what = "stoa ckpt " + verb + ": which directory?",
                           .expected = "a run directory or a checkpoint directory",
                           .hint = "see `stoa ckpt " + verb + " --help`"});
    return values;
}

int ckpt_ls(const Args& args) {
    const auto values = parse(
        "ls", "Lists the checkpoints of a run, oldest first. Nothing but manifests is read.",
        [](CommandLine&) {}, args);
    if (!values) return 0;
    const auto dirs = checkpoints_at((*values)["dir"].as<std::string>());
    fmt::print("{:>10}  {:>14}  {:>5}  {:>3}  {:>14}  {}\n", "step", "tokens", "stage", "tp",
               "bytes", "directory");
    bool damaged = false;
    for (const std::string& dir : dirs) {
        try {
            const Manifest m = read_manifest(dir);
            fmt::print("{:>10}  {:>14}  {:>5}  {:>3}  {:>14}  {}\n", m.meta.step,
                       counter(m.meta, "curriculum.tokens"), counter(m.meta, "curriculum.stage"),
                       m.tp, total_bytes(m.files), dir);
        } catch (const Error& e) {
            damaged = true;
            fmt::print("{:>10}  {}\n", "damaged", e.what());
        }
    }
    for (const std::string& dir : list_refused((*values)["dir"].as<std::string>()))
        fmt::print("{:>10}  {}\n", "set aside", dir);
    return static_cast<int>(damaged ? ExitCode::checkpoint : ExitCode::ok);
}

int ckpt_verify(const Args& args) {
    const auto values = parse(
        "verify",
        "Reads every file and compares sizes and hashes with the manifest. Exit code 0 when "
        "all is whole, 6 when anything is not.",
        [](CommandLine&) {}, args);
    if (!values) return 0;
    int damaged = 0;
    for (const std::string& dir : checkpoints_at((*values)["dir"].as<std::string>())) {
        fmt::print("{}\n", dir);
        for (const FileVerdict& v : judge_files(dir)) {
            fmt::print("  {:8} {}\n", v.problem.empty() ? "ok" : "DAMAGED",
                       v.problem.empty() ? v.name : v.problem);
            damaged += !v.problem.empty();
        }
    }
    if (damaged == 0) return 0;
    fmt::print("{} damaged\n", damaged);
    return static_cast<int>(ExitCode::checkpoint);
}

void print_json(const CheckpointInfo& info, bool tensors) {
    nlohmann::ordered_json j = {{"dir", info.dir},
                                {"step", info.meta.step},
                                {"tp", info.tp},
                                {"config_hash", info.meta.config_hash},
                                {"tokenizer_hash", info.meta.tokenizer_hash},
                                {"counters", info.meta.counters}};
    j["files"] = nlohmann::ordered_json::array();
    for (const CheckpointFile& f : info.files)
        j["files"].push_back({{"name", f.name}, {"bytes", f.bytes}, {"xxh3", f.xxh3}});
    if (tensors) {
        j["tensors"] = nlohmann::ordered_json::array();
        for (const CheckpointTensor& t : info.tensors) {
            const auto dims =
                std::span(t.global_shape.dims).first(static_cast<std::size_t>(t.global_shape.rank));
            j["tensors"].push_back({{"name", t.name},
                                    {"shape", std::vector<std::int64_t>(dims.begin(), dims.end())},
                                    {"dtype", dtype_name(t.dtype)},
                                    {"xxh3", t.xxh3}});
        }
    }
    fmt::print("{}\n", j.dump(1));
}

void print_text(const CheckpointInfo& info, bool tensors) {
    fmt::print(
        "directory       {}\nstep            {}\ntensor parallel {}\nconfig hash     {}\n"
        "tokenizer hash  {}\n",
        info.dir, info.meta.step, info.tp, info.meta.config_hash, info.meta.tokenizer_hash);
    for (const auto& [name, value] : info.meta.counters)
        fmt::print("{:32} {}\n", name, value);
    for (const CheckpointFile& f : info.files)
        fmt::print("{:32} {} bytes, xxh3 {}\n", f.name, f.bytes, f.xxh3);
    fmt::print("{:32} {}{}\n", "tensors", info.tensors.size(),
               tensors ? "" : " (--tensors lists them)");
    if (!tensors) return;
    for (const CheckpointTensor& t : info.tensors)
        fmt::print("{}  {:5} {:16} {}\n", t.xxh3, dtype_name(t.dtype), t.global_shape.str(),
                   t.name);
}

int ckpt_show(const Args& args) {
    const auto values = parse(
        "show",
        "Prints what a checkpoint holds (of a run directory: its newest one). The hash of a "
        "tensor is that of its logical cells, so checkpoints of two meshes can be compared.",
        [](CommandLine& line) {
            line.options.add_options()("tensors", "list every tensor with its hash")(
                "json", "one JSON object instead of text");
        },
        args);
    if (!values) return 0;
    const std::string dir = checkpoints_at((*values)["dir"].as<std::string>()).back();
    verify_checkpoint(dir);
    const CheckpointInfo info = read_checkpoint_info(dir);
    const bool tensors = values->count("tensors") > 0;
    values->count("json") > 0 ? print_json(info, tensors) : print_text(info, tensors);
    return 0;
}

}  // namespace

int command_ckpt(const Args& args) {
    const std::map<std::string, int (*)(const Args&)> verbs = {
        {"ls", ckpt_ls},       {"verify", ckpt_verify},   {"show", ckpt_show},  {"diff", ckpt_diff},
        {"prune", ckpt_prune}, {"average", ckpt_average}, {"adopt", ckpt_adopt}};
    const std::string verb = args.empty() ? "" : args[0];
    if (verb == "--help" || verb == "-h") {
        fmt::print(
            "examples:\n"
            "  stoa ckpt ls runs/tiny\n"
            "  stoa ckpt verify runs/tiny\n"
            "  stoa ckpt show runs/tiny/ckpt/step-000000200 --tensors\n"
            "  stoa ckpt diff runs/tiny runs/other\n"
            "  stoa ckpt prune runs/tiny --keep 1\n\n"
            "usage: stoa ckpt ls|verify|show|diff|prune|average|adopt ...; each has its own "
            "--help\n\n"
            "Looks at the checkpoints of a run. prune --yes, average and adopt write; the others "
            "change nothing.\n");
        return 0;
    }
    const auto it = verbs.find(verb);
    if (it != verbs.end()) return it->second(Args(args.begin() + 1, args.end()));
    std::vector<std::string> names;
    for (const auto& [name, call] : verbs)
        names.push_back(name);
    const auto close = suggest(verb, names);
    throw ConfigError(
        {.what = verb.empty() ? "stoa ckpt: what to do?" : "stoa ckpt: unknown verb " + verb,
         .expected = "ls, verify, show, diff, prune, average or adopt",
         .hint = close.empty() ? "see `stoa ckpt --help`"
                               : "did you mean `stoa ckpt " + close[0] + "`?"});
}

}  // namespace stoa
