#include "launcher/cli.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <functional>
#include <set>

#include "configs/load_run_config.h"
#include "launcher/commands/node.h"

namespace po = boost::program_options;

namespace stoa {
namespace {

struct Verb {
    const char* name;
    int (*run)(const Args&);
    const char* about;
};
constexpr Verb kVerbs[] = {
    {"check", command_check, "check a configuration and show what it resolves to"},
    {"plan", command_plan, "show the memory and disk that a run will take, on any mesh"},
    {"tokenizer", command_tokenizer, "train a tokenizer"},
    {"data", command_data, "turn crawl files into token shards"},
    {"reason", command_reason, "generate and verify reasoning problems"},
    {"train", command_train, "train, alone or as one rank under mpirun or srun"},
    {"launch", command_launch, "start the ranks of a run, watch them, and restart them"},
    {"hostcheck", command_hostcheck, nullptr},  // of `stoa launch`, on each host
    {"generate", command_generate, "continue a prompt with a trained model"},
    {"slurm", command_slurm, "write a batch script for SLURM, and submit it"},
    {"status", command_status, "how a run is: step, speed, last checkpoint, last fault, job"},
    {"ckpt", command_ckpt, "list, show and verify checkpoints"},
    {"doctor", command_doctor, "look at this machine, and say what to mend and how"},
    {"bundle", command_bundle, "make a folder that runs on nodes with nothing installed"},
};

constexpr const char* kExamples =
    "examples:\n"
    "  stoa check configs/tiny.yaml                 is the configuration right, and what does it "
    "mean?\n"
    "  stoa train configs/tiny.yaml                 train in this process\n"
    "  stoa launch --ranks 4 --tp 2 configs/tiny.yaml\n"
    "                                               train on 4 ranks, each layer split over 2\n"
    "  stoa train configs/tiny.yaml optimizer.lr=1e-3 run.name=second\n"
    "                                               the same with two values changed\n"
    "  stoa generate runs/tiny --prompt \"Problem: \"  ask the trained model\n"
    "  stoa ckpt ls runs/tiny                       what has been saved\n";

void print_help() {
    fmt::print("{}\nusage: stoa VERB [options]\n\nverbs:\n", kExamples);
    for (const Verb& verb : kVerbs)
        if (verb.about != nullptr) fmt::print("  {:<10} {}\n", verb.name, verb.about);
    fmt::print(
        "\n`stoa VERB --help` shows examples and options of one verb, `stoa --version` the "
        "version.\n"
        "exit codes: 0 done, 2 command line or configuration, 3 data, 4 memory, 5 device or\n"
        "communication, 6 checkpoint, 7 diverged, 69 restarts did not help, 70 internal, 75 "
        "stopped\n"
        "and saved (run again), 130 interrupted and saved; of single ranks: 80 a peer is gone,\n"
        "81 hang, 82 lost its supervisor\n");
}

/// "stoa reason gen --family NAME" -> "stoa reason gen"
std::string command_name(const std::string& usage) {
    std::string name;
    for (std::size_t begin = 0; begin < usage.size();) {
        const std::size_t end = std::min(usage.find(' ', begin), usage.size());
        const std::string word = usage.substr(begin, end - begin);
        const bool plain = !word.empty() && std::all_of(word.begin(), word.end(), [](char c) {
            return c >= 'a' && c <= 'z';
        });
        if (!plain) break;
        name += (name.empty() ? "" : " ") + word;
        begin = end + 1;
    }
    return name.empty() ? "stoa" : name;
}

std::set<std::string> positional_names(const po::positional_options_description& positional) {
    constexpr unsigned kMaxPositional = 16;  // the last one may repeat without end
    std::set<std::string> names;
    for (unsigned i = 0; i < std::min(positional.max_total_count(), kMaxPositional); ++i)
        names.insert(positional.name_for_position(i));
    return names;
}

void print_command_help(const CommandLine& line) {
    if (!line.examples.empty()) {
        fmt::print("examples:\n{}", line.examples);
        if (line.examples.back() != '\n') fmt::print("\n");
        fmt::print("\n");
    }
    fmt::print("usage: {}\n\n", line.usage);
    if (!line.about.empty()) fmt::print("{}\n\n", line.about);
    const std::set<std::string> hidden = positional_names(line.positional);
    po::options_description shown("options");
    for (const auto& option : line.options.options())
        if (!hidden.contains(option->long_name())) shown.add(option);
    std::ostringstream text;
    text << shown;
    fmt::print("{}", text.str());
}

ConfigError command_line_error(const CommandLine& line, const std::string& what,
                               const std::string& hint) {
    const std::string see = "see `" + command_name(line.usage) + " --help`";
    return ConfigError({.what = what, .hint = hint.empty() ? see : hint + "; " + see});
}

std::vector<std::string> option_names(const CommandLine& line) {
    const std::set<std::string> hidden = positional_names(line.positional);
    std::vector<std::string> names;
    for (const auto& option : line.options.options())
        if (!hidden.contains(option->long_name())) names.push_back("--" + option->long_name());
    return names;
}

/// "--famly" and what Boost says about it, as one of ours.
ConfigError unknown_option_error(const CommandLine& line, std::string option) {
    if (!option.starts_with("-")) option = "--" + option;
    const auto close = suggest(option, option_names(line));
    const std::string did_you_mean = close.empty() ? "" : ": did you mean " + close.front() + "?";
    return command_line_error(line, "unknown option " + option + did_you_mean, "");
}

po::variables_map parse_or_throw(const CommandLine& line, const std::vector<std::string>& args) {
    namespace style = po::command_line_style;
    try {
        po::variables_map values;
        const int no_guessing = style::default_style & ~style::allow_guessing;
        po::store(po::command_line_parser(args)
                      .options(line.options)
                      .positional(line.positional)
                      .style(no_guessing)
                      .run(),
                  values);
        if (!values.contains("help")) po::notify(values);
        return values;
    } catch (const po::unknown_option& e) {
        throw unknown_option_error(line, e.get_option_name());
    } catch (const po::multiple_occurrences& e) {
        throw command_line_error(line, "option " + e.get_option_name() + " is given twice",
                                 "give it once");
    } catch (const po::required_option& e) {
        std::string name = e.get_option_name();
        name.erase(0, std::min(name.find_first_not_of('-'), name.size()));
        const bool positional = positional_names(line.positional).contains(name);
        throw command_line_error(line,
                                 (positional ? "missing argument: " : "missing option --") + name,
                                 "usage: " + line.usage);
    } catch (const po::too_many_positional_options_error&) {
        throw command_line_error(line, "too many arguments", "usage: " + line.usage);
    } catch (const po::error& e) {  // Boost's own sentence names option and value
        throw command_line_error(line, e.what(), "");
    }
}

int run_verb(const std::string& name, const Args& args) {
    std::vector<std::string> names;
    for (const Verb& verb : kVerbs) {
        if (name == verb.name) return verb.run(args);
        if (verb.about != nullptr) names.emplace_back(verb.name);
    }
    const auto close = suggest(name, names);
    const std::string did_you_mean =
        close.empty() ? "" : "did you mean `stoa " + close.front() + "`? ";
    throw ConfigError({.what = (name.starts_with("-") ? "unknown option " : "unknown verb ") + name,
                       .hint = did_you_mean + "see `stoa --help`"});
}

int dispatch(const Args& args) {
    const std::string first = args.empty() ? "" : args.front();
    if (first == "--help" || first == "-h" || (first == "help" && args.size() == 1)) {
        print_help();
        return 0;
    }
    if (first == "--version") {
        fmt::print("stoa {}\n", STOA_VERSION);
        return 0;
    }
    if (args.empty()) throw ConfigError({.what = "which verb?", .hint = "see `stoa --help`"});
    if (first == "help") return run_verb(args[1], {"--help"});
    return run_verb(first, Args(args.begin() + 1, args.end()));
}

}  // namespace

std::optional<po::variables_map> parse_command_line(CommandLine line,
                                                    const std::vector<std::string>& args) {
    line.options.add_options()("help,h", "show this text");
    po::variables_map values = parse_or_throw(line, args);
    if (values.contains("help")) {
        print_command_help(line);
        return std::nullopt;
    }
    return values;
}

int run_cli(int argc, char** argv) {
    int code = 0;
    try {
        code = dispatch(Args(argv + std::min(argc, 1), argv + argc));
    } catch (const Error& e) {
        // A report of several problems carries "error:" on each of its lines.
        const std::string text = e.what();
        const bool report = text.substr(0, text.find('\n')).find(": error: ") != std::string::npos;
        fmt::print(stderr, "{}{}\n", report ? "" : "error: ", text);
        code = static_cast<int>(e.code());
    } catch (const std::bad_alloc&) {
        fmt::print(
            stderr,
            "error: out of memory\n  hint: use a machine with more memory or a smaller model\n");
        code = static_cast<int>(ExitCode::memory);
    } catch (const std::exception& e) {
        fmt::print(
            stderr,
            "error: internal: {}\n  hint: this is a bug; please report this line, the command "
            "and `stoa --version`\n",
            e.what());
        code = static_cast<int>(ExitCode::internal);
    }
    if (std::fflush(stdout) != 0 && code == 0) {
        fmt::print(stderr, "error: cannot write to standard output\n  hint: is the disk full?\n");
        code = static_cast<int>(ExitCode::data);
    }
    return code;
}

}  // namespace stoa
