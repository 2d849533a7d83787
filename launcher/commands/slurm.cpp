#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "configs/load_run_config.h"
#include "launcher/bundle/inside.h"
#include "launcher/cli.h"
#include "launcher/commands.h"
#include "launcher/process.h"
#include "launcher/sbatch_script.h"
#include "launcher/slurm_requeue.h"
#include "launcher/tool.h"

namespace po = boost::program_options;

namespace stoa {
namespace {

namespace fs = std::filesystem;

CommandLine slurm_line() {
    CommandLine line;
    line.usage =
        "stoa slurm CONFIG --nodes N --ranks-per-node R | --gpus-per-node G [options] [key=value "
        "...]";
    line.examples =
        "  stoa slurm configs/tiny.yaml --nodes 2 --ranks-per-node 4 --dry-run\n"
        "                                        print the batch script\n"
        "  stoa slurm configs/125m.yaml --nodes 2 --gpus-per-node 8 --partition gpu --submit\n"
        "                                        write it and submit it\n"
        "  stoa slurm configs/tiny.yaml --nodes 1 --ranks-per-node 2 --array-seeds 0-3%2\n"
        "                                        four runs with seeds 0 to 3, two at a time\n"
        "  stoa slurm configs/tiny.yaml --nodes 1 --ranks-per-node 2 --singleton --no-requeue\n"
        "                                        one link of a chain: submit it N times\n"
        "  stoa slurm configs/tiny.yaml --nodes 2 --ranks-per-node 2 --sbatch=--mem=0 "
        "--setup 'module load openmpi'\n";
    line.about =
        "Writes a batch script for SLURM that runs `stoa launch CONFIG` on N nodes: saved before "
        "the "
        "time limit\n"
        "and before a preemption, requeued, and exactly continued. The configuration is checked "
        "here, not in\n"
        "the queue. docs/slurm.md has the details.";
    auto add = line.options.add_options();
    add("config", po::value<std::vector<std::string>>()->required(), "");
    add("nodes", po::value<int>()->required(), "number of nodes");
    add("ranks-per-node", po::value<int>(), "ranks on each node (default: one per GPU)");
    add("gpus-per-node", po::value<int>(), "GPUs to ask for on each node");
    add("cpus-per-rank", po::value<int>(), "processors to ask for per rank");
    add("time", po::value<std::string>()->default_value("24:00:00"),
        "time limit as sbatch takes it");
    add("partition", po::value<std::string>(), "partition");
    add("account", po::value<std::string>(), "account");
    add("qos", po::value<std::string>(), "quality of service");
    add("requeue", po::bool_switch(), "go on in the queue after each stop (the default)");
    add("no-requeue", po::bool_switch(), "end after a stop; for chains of jobs");
    add("signal-seconds", po::value<int>()->default_value(180),
        "how long before the time limit the run is asked to save");
    add("array-seeds", po::value<std::string>(), "an array of runs: 0-3, 0-9%2, 1,5,7");
    add("singleton", po::bool_switch(), "one job of this name at a time: chains of jobs");
    add("container", po::value<std::string>(),
        "image for the ranks: FILE.sif (apptainer) or pyxis'");
    add("sbatch", po::value<std::vector<std::string>>()->composing(),
        "further option for sbatch, as --sbatch=--mem=0; may be repeated");
    add("setup", po::value<std::vector<std::string>>()->composing(),
        "shell line before the start, as 'module load openmpi'; may be repeated");
    add("launch-args", po::value<std::string>()->default_value(""),
        "further options of `stoa launch`, in one word");
    add("program", po::value<std::string>(), "the stoa of the compute nodes (default: this one)");
    add("out", po::value<std::string>(), "where the script goes (default: RUN-NAME.sbatch)");
    add("submit", po::bool_switch(), "hand it to sbatch");
    add("dry-run", po::bool_switch(),
        "print it, write and submit nothing; with --submit also ask sbatch --test-only");
    line.positional.add("config", -1);
    return line;
}

std::string text_of(const po::variables_map& values, const char* name) {
    return values.contains(name) ? values[name].as<std::string>() : "";
}

std::vector<std::string> list_of(const po::variables_map& values, const char* name) {
    return values.contains(name) ? values[name].as<std::vector<std::string>>()
                                 : std::vector<std::string>{};
}

int number_of(const po::variables_map& values, const char* name, int least) {
    const int n = values[name].as<int>();
    if (n < least)
        throw ConfigError({.what = std::string("--") + name,
                           .expected = fmt::format("at least {}", least),
                           .actual = std::to_string(n)});
    return n;
}

/// "0-3%2", "1,5,7-9": numbers and ranges, and how many at a time.
void check_array(const std::string& text) {
    const auto bad = [&] {
        return ConfigError(
            {.what = "--array-seeds", .expected = "seeds as 0-3, 0-9%2 or 1,5,7", .actual = text});
    };
    std::string list = text;
    const auto number = [](const std::string& t) {
        return !t.empty() && t.size() <= 7 && t.find_first_not_of("0123456789") == std::string::npos
                   ? std::atol(t.c_str())
                   : -1;
    };
    if (const auto percent = list.find('%'); percent != std::string::npos) {
        if (number(list.substr(percent + 1)) < 1) throw bad();
        list.resize(percent);
    }
    if (list.empty() || list.ends_with(',')) throw bad();
    std::istringstream parts(list);
    for (std::string part; std::getline(parts, part, ',');) {
        const auto dash = part.find('-');
        const long low = number(part.substr(0, dash)),
                   high = dash == std::string::npos ? low : number(part.substr(dash + 1));
        if (low < 0 || high < low) throw bad();
    }
}

/// Values of sbatch options become lines of a script: one line, one word.
void check_plain(const char* option, const std::string& value) {
    if (value.find_first_of(" \t\n\"'`$\\") != std::string::npos)
        throw ConfigError({.what = std::string("--") + option,
                           .expected = "one plain word",
                           .actual = "\"" + value + "\""});
}

void check_time(const SlurmOptions& o) {
    const auto seconds = parse_time_limit(o.time);
    if (!seconds && o.time != "UNLIMITED")
        throw ConfigError({.what = "--time",
                           .expected = "minutes, hours:minutes:seconds or days-hours",
                           .actual = o.time,
                           .hint = "for example 90, 24:00:00, 7-0"});
    if (seconds && *seconds <= o.signal_seconds)
        throw ConfigError(
            {.what = "the run would be asked to save before it began",
             .expected =
                 fmt::format("--time longer than --signal-seconds ({} s)", o.signal_seconds),
             .actual = o.time,
             .hint = "raise --time, or lower --signal-seconds to what a step and a save take"});
    // SLURM looks at its limits about once a minute and so sends the signal up to that much early.
    if (seconds && *seconds < o.signal_seconds + 120)
        fmt::print(stderr,
                   "warning: --time {} leaves little before the save: the signal may come {} s "
                   "before the end\n",
                   o.time, o.signal_seconds + 60);
}

/// The configuration on the ranks that were asked for, and the files it names: everything that
/// would otherwise be found after hours in the queue. errors: ConfigError, all at once
RunConfig check_run(const SlurmOptions& o) {
    const LoadedConfig loaded = load_run_config(o.words[0], {o.words.begin() + 1, o.words.end()});
    RunConfig config = resolve_for_world(loaded.config, o.nodes * o.ranks_per_node);
    const auto tp = static_cast<int>(config.parallel.tp);
    if (o.nodes > 1 && o.ranks_per_node % tp != 0)
        throw ConfigError(
            {.what = "parallel.tp: a tensor-parallel group would lie on two nodes",
             .where = o.words[0],
             .expected = fmt::format("a divisor of the {} rank{} of a node", o.ranks_per_node,
                                     o.ranks_per_node == 1 ? "" : "s"),
             .actual = std::to_string(tp),
             .hint = fmt::format("--ranks-per-node {}, or another parallel.tp",
                                 (o.ranks_per_node / tp + 1) * tp)});
    std::vector<std::string> problems;
    check_files(config, problems);
    throw_problems(problems);
    return config;
}

SlurmOptions read_options(const po::variables_map& values, const Args& args) {
    SlurmOptions o;
    o.words = values["config"].as<std::vector<std::string>>();
    o.nodes = number_of(values, "nodes", 1);
    if (values.contains("gpus-per-node")) o.gpus_per_node = number_of(values, "gpus-per-node", 1);
    if (values.contains("cpus-per-rank")) o.cpus_per_rank = number_of(values, "cpus-per-rank", 1);
    if (values.contains("ranks-per-node"))
        o.ranks_per_node = number_of(values, "ranks-per-node", 1);
    else if (o.gpus_per_node > 0)
        o.ranks_per_node = o.gpus_per_node;
    else
        throw ConfigError({.what = "how many ranks on a node?",
                           .expected = "--ranks-per-node R or --gpus-per-node G",
                           .hint = "see `stoa slurm --help`"});
    o.time = text_of(values, "time");
    o.partition = text_of(values, "partition");
    o.account = text_of(values, "account");
    o.qos = text_of(values, "qos");
    for (const char* name : {"partition", "account", "qos"})
        check_plain(name, text_of(values, name));
    if (values["requeue"].as<bool>() && values["no-requeue"].as<bool>())
        throw ConfigError({.what = "--requeue and --no-requeue", .expected = "one of them"});
    o.requeue = !values["no-requeue"].as<bool>();
    o.signal_seconds = number_of(values, "signal-seconds", 1);
    o.array_seeds = text_of(values, "array-seeds");
    if (!o.array_seeds.empty()) check_array(o.array_seeds);
    o.singleton = values["singleton"].as<bool>();
    if (o.singleton && !o.array_seeds.empty())
        throw ConfigError(
            {.what = "--singleton and --array-seeds",
             .expected = "one of them",
             .hint = "tasks of an array have one name and would wait for each other"});
    o.container = text_of(values, "container");
    check_plain("container", o.container);
    o.sbatch_lines = list_of(values, "sbatch");
    for (const std::string& line : o.sbatch_lines)
        if (!line.starts_with("-") || line.find('\n') != std::string::npos)
            throw ConfigError({.what = "--sbatch",
                               .expected = "an option of sbatch",
                               .actual = line,
                               .hint = "for example --sbatch=--mem=0"});
    o.setup_lines = list_of(values, "setup");
    o.launch_args = text_of(values, "launch-args");
    o.program = values.contains("program")
                    ? text_of(values, "program")
                    : started_by(fs::read_symlink("/proc/self/exe").string());
    o.typed = "stoa slurm";
    for (const std::string& a : args)
        if (a != "--dry-run" && a != "--submit") o.typed += " " + shell_line({a});
    check_time(o);
    const RunConfig config = check_run(o);
    o.run_name = config.run.name;
    o.run_dir = config.run_dir();
    return o;
}

void write_script(const std::string& path, const std::string& text) {
    std::error_code ignored;
    if (fs::exists(path, ignored)) {
        std::ifstream in(path, std::ios::binary);
        const std::string there{std::istreambuf_iterator<char>(in), {}};
        if (there.find(kSbatchMark) == std::string::npos)
            throw ConfigError({.what = "there is a file that `stoa slurm` has not written",
                               .where = path,
                               .hint = "choose another with --out FILE"});
    }
    const std::string aside = path + ".tmp";
    {
        std::ofstream out(aside, std::ios::trunc | std::ios::binary);
        out << text;
        out.flush();
        if (!out)
            throw ConfigError({.what = "cannot write the script",
                               .where = path,
                               .actual = std::strerror(errno),
                               .hint = "choose another place with --out FILE"});
    }
    fs::permissions(aside, fs::perms::owner_all | fs::perms::group_read | fs::perms::group_exec |
                               fs::perms::others_read | fs::perms::others_exec);
    fs::rename(aside, path);
}

/// What sbatch said, without its name before each line, in one line.
std::string one_line(const std::string& text) {
    std::string out;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        for (const char* prefix : {"sbatch: ", "error: "})
            if (line.starts_with(prefix)) line.erase(0, std::strlen(prefix));
        if (!line.empty()) out += (out.empty() ? "" : "; ") + line;
    }
    return out;
}

/// What sbatch said, with what a user can do about it.
ConfigError refused(const std::string& script, const ToolOutput& said) {
    const std::string text = one_line(said.err + said.out);
    std::string expected,
        hint = "the script is right for `stoa`; what SLURM accepts here, it decides";
    if (text.find("nvalid partition") != std::string::npos ||
        text.find("No partition specified") != std::string::npos) {
        std::istringstream names(run_tool({"sinfo", "-h", "-o", "%R"}, 20.0).out);
        for (std::string name; names >> name;)
            expected += (expected.empty() ? "" : ", ") + name;
        if (!expected.empty()) expected = "one of the partitions " + expected;
        hint = "--partition NAME; `sinfo -s` shows them";
    } else if (text.find("nvalid account") != std::string::npos) {
        hint =
            "--account and --partition have to belong together; `sacctmgr show associations "
            "user=$USER` lists yours";
    } else if (text.find("nvalid qos") != std::string::npos) {
        hint = "--qos NAME; `sacctmgr show associations user=$USER format=qos` lists yours";
    } else if (text.find("ode configuration is not available") != std::string::npos ||
               text.find("Node count") != std::string::npos ||
               text.find("PU count") != std::string::npos) {
        hint = "no nodes like that: `sinfo -N -o '%N %c %G %m'` shows processors, GPUs and memory";
    } else if (text.find("ime limit") != std::string::npos) {
        hint = "`sinfo -o '%R %l'` shows the time limits of the partitions; --time";
    }
    return ConfigError({.what = "sbatch refuses the job",
                        .where = script,
                        .expected = expected,
                        .actual = text,
                        .hint = hint});
}

ToolOutput ask_sbatch(const std::vector<std::string>& words, const std::string& script) {
    ToolOutput said = run_tool(words, 120.0);
    if (said.missing)
        throw DeviceError({.what = "there is no sbatch here",
                           .where = script,
                           .hint = "submit from a login node of the cluster (or load its SLURM "
                                   "module): sbatch " +
                                   script});
    if (said.late)
        throw DeviceError({.what = "sbatch does not answer",
                           .where = script,
                           .hint = "is the controller up? `scontrol ping`"});
    if (said.err.find("nable to contact slurm controller") != std::string::npos)
        throw DeviceError({.what = "SLURM's controller does not answer",
                           .where = script,
                           .actual = one_line(said.err),
                           .hint = "`scontrol ping`; then: sbatch " + script});
    if (said.code != 0) throw refused(script, said);
    if (!said.err.empty()) fmt::print(stderr, "{}", said.err);  // its warnings
    return said;
}

/// A job may be taken and yet never start: say so at once.
void print_why_pending(const std::string& job) {
    std::this_thread::sleep_for(std::chrono::seconds(1));
    const ToolOutput asked = run_tool({"squeue", "-h", "-j", job, "-o", "%T %r"}, 20.0);
    const std::string line = one_line(asked.out.substr(0, asked.out.find('\n')));
    if (!line.starts_with("PENDING ")) return;
    const std::string reason = line.substr(8);
    for (const char* usual : {"None", "Priority", "Resources", "Dependency", "BeginTime"})
        if (reason == usual) return;
    fmt::print(stderr,
               "warning: SLURM holds job {} back: {}\n  hint: `scontrol show job {}`; `man squeue` "
               "explains the reasons\n",
               job, reason, job);
}

void submit(const SlurmOptions& o, const std::string& script) {
    const std::string answer = ask_sbatch({"sbatch", "--parsable", script}, script).out;
    const std::string job = answer.substr(0, answer.find_first_of(";\n"));
    std::string output = slurm_output_pattern(o);
    for (const char* id : {"%j", "%A"})
        if (const auto at = output.find(id); at != std::string::npos) output.replace(at, 2, job);
    if (const auto at = output.find("%a"); at != std::string::npos) output.replace(at, 2, "*");
    const std::string run = o.run_dir + (o.array_seeds.empty() ? "" : "-seed*");
    fmt::print("submitted job {}: {} node{} x {} rank{}, {}\n", job, o.nodes,
               o.nodes == 1 ? "" : "s", o.ranks_per_node, o.ranks_per_node == 1 ? "" : "s", script);
    fmt::print("  how it is              stoa status {}\n", run);
    fmt::print("  in the queue           squeue -j {}\n", job);
    fmt::print("  what it prints         tail -F {}\n", output);
    fmt::print("  save now, {:<12} scancel --batch --signal=USR2 {}\n",
               o.requeue ? "go on" : "leave", job);
    if (o.requeue) fmt::print("  save now, leave        scancel --batch --signal=INT {}\n", job);
    fmt::print("  end at once            scancel {}\n", job);
    std::fflush(stdout);
    print_why_pending(job);
}

}  // namespace

int command_slurm(const Args& args) {
    const auto values = parse_command_line(slurm_line(), args);
    if (!values) return 0;
    const SlurmOptions o = read_options(*values, args);
    const std::string text = sbatch_script(o);
    const bool wants_submit = (*values)["submit"].as<bool>();
    if ((*values)["dry-run"].as<bool>()) {
        fmt::print("{}", text);
        if (!wants_submit) return 0;
        std::fflush(stdout);
        std::string path = (fs::temp_directory_path() / "stoa-XXXXXX").string();
        const int fd = mkstemp(path.data());
        if (fd >= 0) close(fd);
        std::ofstream(path, std::ios::trunc) << text;
        const auto remove = [&] { fs::remove(path); };
        try {
            ask_sbatch({"sbatch", "--test-only", path}, "(dry run)");
        } catch (...) {
            remove();
            throw;
        }
        remove();
        return 0;
    }
    const std::string given = text_of(*values, "out");
    const std::string path = given.empty() ? slurm_job_name(o) + ".sbatch" : given;
    write_script(path, text);
    if (!wants_submit) {
        fmt::print("{}\n  submit it with: sbatch {}\n", path, shell_line({path}));
        return 0;
    }
    submit(o, path);
    return 0;
}

}  // namespace stoa
