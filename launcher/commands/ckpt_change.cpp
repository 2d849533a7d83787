#include <fmt/format.h>

#include <filesystem>
#include <optional>

#include "checkpoints/compare.h"
#include "checkpoints/file_io.h"
#include "configs/config_schema.h"
#include "configs/load_run_config.h"
#include "launcher/cli.h"
#include "launcher/commands/ckpt.h"

namespace po = boost::program_options;

namespace stoa {
namespace {

/// Paths, options and --help. Returns nothing after --help.
std::optional<po::variables_map> parse(CommandLine line, std::size_t least, std::size_t most,
                                       const Args& args) {
    const std::string usage = line.usage;
    line.options.add_options()("paths", po::value<std::vector<std::string>>(), "");
    line.positional.add("paths", -1);
    auto values = parse_command_line(std::move(line), args);
    if (!values) return values;
    const std::size_t given =
        values->contains("paths") ? (*values)["paths"].as<std::vector<std::string>>().size() : 0;
    if (given < least || given > most)
        throw ConfigError(
            {.what = "directories on the command line",
             .expected = least == most ? std::to_string(least) : fmt::format("at least {}", least),
             .actual = std::to_string(given),
             .hint = "usage: " + usage});
    return values;
}

std::vector<std::string> paths_of(const po::variables_map& values) {
    return values["paths"].as<std::vector<std::string>>();
}

std::int64_t bytes_in(const std::string& dir) {
    std::int64_t bytes = 0;
    std::error_code ignored;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(dir, ignored))
        if (entry.is_regular_file(ignored))
            bytes += static_cast<std::int64_t>(entry.file_size(ignored));
    return bytes;
}

/// "3 + every 5000 steps" by the schema's own reader.
KeepRule parse_keep(const std::string& text) {
    RunConfig config;
    std::vector<Problem> problems;
    const KeyRow* row = find_key_row("checkpoint.keep");
    const ConfigNode node{.kind = ConfigNode::Kind::scalar, .text = text};
    if (row == nullptr || !read_field(*row, "--keep", node, {&config, nullptr, nullptr}, problems))
        throw ConfigError({.what = "--keep",
                           .expected = "a number from 1 on, as 3 or '3 + every 5000 steps'",
                           .actual = text});
    return {config.checkpoint.keep, config.checkpoint.keep_every_steps};
}

KeepRule rule_of_run(const std::string& run_dir) {
    const std::string path = run_dir + "/resolved.yaml";
    if (!std::filesystem::exists(path))
        throw ConfigError({.what = "the run does not say what to keep",
                           .where = path,
                           .expected = "the file of a run that was started",
                           .hint = "give it: --keep 3"});
    const CheckpointConfig c = load_run_config(path, {}).config.checkpoint;
    return {c.keep, c.keep_every_steps};
}

}  // namespace

int ckpt_diff(const Args& args) {
    CommandLine line{.usage = "stoa ckpt diff A B [--all]",
                     .examples = "stoa ckpt diff runs/a/ckpt/step-000000200 runs/b",
                     .about =
                         "Compares two checkpoints (of a run directory: its newest one) tensor "
                         "by tensor, whatever meshes wrote them. Exit code 0 when all tensors "
                         "are the same bits, 1 when not."};
    line.options.add_options()("all", po::bool_switch(), "list tensors that are the same, too");
    const auto values = parse(std::move(line), 2, 2, args);
    if (!values) return 0;
    const auto paths = paths_of(*values);
    const std::string a = checkpoints_at(paths[0]).back(), b = checkpoints_at(paths[1]).back();
    verify_checkpoint(a);
    verify_checkpoint(b);
    fmt::print("a  {}\nb  {}\n", a, b);
    std::int64_t different = 0, tensors = 0;
    for (const TensorDifference& d : diff_checkpoints(a, b)) {
        ++tensors;
        different += !d.same();
        if (d.same()) {
            if ((*values)["all"].as<bool>()) fmt::print("same       {}  {}\n", d.xxh3_a, d.name);
        } else if (!d.only_in.empty()) {
            fmt::print("only in {}  {}\n", d.only_in == a ? "a" : "b", d.name);
        } else if (d.form_a != d.form_b) {
            fmt::print("form       {} and {}  {}\n", d.form_a, d.form_b, d.name);
        } else {
            fmt::print(
                "different  {} of {} cells, max |a - b| {:.6g}{}  {}\n           {} and {}\n",
                d.different, d.cells, d.max_abs,
                d.not_finite > 0 ? fmt::format(", {} not finite", d.not_finite) : "", d.name,
                d.xxh3_a, d.xxh3_b);
        }
    }
    fmt::print("{} of {} tensors differ\n", different, tensors);
    return different > 0 ? 1 : 0;
}

int ckpt_prune(const Args& args) {
    CommandLine line{
        .usage = "stoa ckpt prune RUN [--keep RULE] [--bad] [--yes]",
        .examples =
            "stoa ckpt prune runs/tiny\n  stoa ckpt prune runs/tiny --keep '1 + every 5000 "
            "steps' --bad --yes",
        .about =
            "Says which checkpoints of a run would be deleted; with --yes, deletes them. The "
            "newest whole one always stays. Not for a run that is training: it prunes itself."};
    line.options.add_options()("keep", po::value<std::string>(),
                               "what stays; default: the run's checkpoint.keep")(
        "bad", po::bool_switch(), "those set aside as damaged or foreign go, too")(
        "yes", po::bool_switch(), "delete");
    const auto values = parse(std::move(line), 1, 1, args);
    if (!values) return 0;
    const std::string run_dir = paths_of(*values)[0];
    const KeepRule keep = values->contains("keep") ? parse_keep((*values)["keep"].as<std::string>())
                                                   : rule_of_run(run_dir);
    (void)checkpoints_at(run_dir);
    std::vector<std::string> gone = prunable(run_dir, keep);
    if ((*values)["bad"].as<bool>())
        for (const std::string& dir : list_refused(run_dir))
            gone.push_back(dir);
    const bool yes = (*values)["yes"].as<bool>();
    std::int64_t bytes = 0;
    for (const std::string& dir : gone) {
        const std::int64_t size = bytes_in(dir);
        if (yes) delete_checkpoint(dir);
        fmt::print("{} {}  {}\n", yes ? "deleted" : "would delete", dir, format_bytes(size));
        bytes += size;
    }
    fmt::print("{} checkpoints, {}{}\n", gone.size(), format_bytes(bytes),
               yes || gone.empty() ? "" : "; --yes deletes them");
    return 0;
}

int ckpt_average(const Args& args) {
    CommandLine line{
        .usage = "stoa ckpt average A B [C ...] --out RUN",
        .examples =
            "stoa ckpt average runs/a/ckpt/step-000000200 runs/a/ckpt/step-000000400 --out "
            "runs/a-mean",
        .about =
            "Writes a run directory with one checkpoint whose weights are the mean of those of "
            "the given checkpoints. Moments, counters and configuration are those of the last "
            "one: `stoa generate` and `stoa train ... run.name=...` go on from it, the "
            "optimizer with moments that belong to another point."};
    line.options.add_options()("out", po::value<std::string>(), "the new run directory");
    const auto values = parse(std::move(line), 2, 1u << 20, args);
    if (!values) return 0;
    if (!values->contains("out"))
        throw ConfigError({.what = "stoa ckpt average: where to?", .hint = "--out runs/NAME"});
    std::vector<std::string> dirs;
    for (const std::string& path : paths_of(*values))
        dirs.push_back(checkpoints_at(path).back());
    const std::string dir = average_checkpoints(dirs, (*values)["out"].as<std::string>());
    fmt::print("{} is the mean of {} checkpoints; moments and counters are those of {}\n", dir,
               dirs.size(), dirs.back());
    return 0;
}

int ckpt_adopt(const Args& args) {
    CommandLine line{
        .usage = "stoa ckpt adopt CHECKPOINT RUN",
        .examples = "stoa ckpt adopt runs/a/ckpt/step-000000200 runs/b",
        .about =
            "Copies a checkpoint of another run into RUN and makes it RUN's own, which a copy "
            "by hand is not: a run goes on from checkpoints of its own id only."};
    const auto values = parse(std::move(line), 2, 2, args);
    if (!values) return 0;
    const auto paths = paths_of(*values);
    const std::string dir = adopt_checkpoint(checkpoints_at(paths[0]).back(), paths[1]);
    fmt::print("{}\n", dir);
    return 0;
}

}  // namespace stoa
