#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <set>

#include "configs/load_run_config.h"
#include "data/reasoning/engine.h"
#include "launcher/cli.h"
#include "launcher/commands.h"

namespace po = boost::program_options;

namespace stoa {
namespace {

constexpr std::size_t kLongestLine = std::size_t{1} << 20;  // bytes

/// Lines to standard output. `open()` turns false when the reader of the pipe has gone (`| head`):
/// then the work is over, and no error. Written past stdio, which would complain at exit.
class LineWriter {
public:
    LineWriter() {
        std::fflush(stdout);
        std::signal(SIGPIPE, SIG_IGN);  // a closed pipe becomes EPIPE
    }
    bool open() const { return open_; }
    void add(const std::string& line) {
        buffer_ += line;
        buffer_ += '\n';
        if (buffer_.size() >= 1 << 16) flush();
    }
    /// errors: DataError (disk full and the like)
    void flush() {
        for (std::size_t done = 0; open_ && done < buffer_.size();) {
            const ssize_t n = ::write(STDOUT_FILENO, buffer_.data() + done, buffer_.size() - done);
            if (n >= 0) {
                done += static_cast<std::size_t>(n);
            } else if (errno == EPIPE) {
                open_ = false;
            } else if (errno != EINTR) {
                throw DataError(
                    {.what = "cannot write the samples",
                     .where = "standard output",
                     .actual = std::error_code(errno, std::generic_category()).message(),
                     .hint = "is the disk full?"});
            }
        }
        buffer_.clear();
    }

private:
    std::string buffer_;
    bool open_ = true;
};

template <class T>
T parse_number(const std::string& text, const char* option, T least, T most) {
    T value{};
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    if (error != std::errc{} || stop != end || value < least || value > most)
        throw ConfigError({.what = option,
                           .expected = fmt::format("an integer from {} to {}", least, most),
                           .actual = text});
    return value;
}

/// "3" or "1..10"
std::pair<std::int64_t, std::int64_t> parse_difficulty(const std::string& text) {
    const auto level = [](const std::string& s) {
        return parse_number<std::int64_t>(s, "--difficulty", 1, 10);
    };
    const std::size_t dots = text.find("..");
    if (dots == std::string::npos) return {level(text), level(text)};
    const std::pair<std::int64_t, std::int64_t> range{level(text.substr(0, dots)),
                                                      level(text.substr(dots + 2))};
    if (range.first > range.second)
        throw ConfigError(
            {.what = "--difficulty", .expected = "LOW..HIGH with LOW <= HIGH", .actual = text});
    return range;
}

/// "all" or "name[,name]"
std::vector<const ReasoningFamily*> parse_families(const std::string& text) {
    std::vector<const ReasoningFamily*> chosen;
    if (text == "all") {
        for (const ReasoningFamily& family : reasoning_families())
            chosen.push_back(&family);
        return chosen;
    }
    std::set<std::string> seen;
    for (std::size_t begin = 0; begin <= text.size();) {
        const std::size_t end = std::min(text.find(',', begin), text.size());
        const std::string name = text.substr(begin, end - begin);
        begin = end + 1;
        if (!seen.insert(name).second)
            throw ConfigError({.what = "--family: " + name + " is given twice"});
        try {
            chosen.push_back(&reasoning_family(name));
        } catch (const DataError& e) {  // here it is the command line that is wrong
            ErrorFields fields = e.fields();
            fields.where = "--family";
            throw ConfigError(std::move(fields));
        }
    }
    return chosen;
}

ReasoningSplit parse_split(const std::string& text) {
    if (text == "train") return ReasoningSplit::train;
    if (text == "holdout") return ReasoningSplit::holdout;
    throw ConfigError({.what = "--split", .expected = "train or holdout", .actual = text});
}

int reason_gen(const Args& args) {
    CommandLine line;
    line.usage = "stoa reason gen --family NAME[,NAME]|all --n N [options]";
    line.examples =
        "  stoa reason gen --family chain_sum --n 5 --text\n"
        "  stoa reason gen --family all --n 10000 --difficulty 1..10 | stoa reason verify\n";
    line.about =
        "Writes N samples in all as JSON lines, taking the families in turn. A family's sample i "
        "is the same whatever N and the other families are; with a range of difficulties, i "
        "steps through the levels.";
    line.options.add_options()("family", po::value<std::string>()->required(),
                               "families, separated by commas, or all (see `stoa reason list`)")(
        "n", po::value<std::string>()->required(), "number of samples over all families")(
        "difficulty", po::value<std::string>()->default_value("1"), "level 1 to 10, or LOW..HIGH")(
        "seed", po::value<std::string>()->default_value("0"), "stream of samples")(
        "split", po::value<std::string>()->default_value("train"), "train or holdout")(
        "start", po::value<std::string>()->default_value("0"),
        "index of each family's first sample")("text",
                                               "the text a model trains on, instead of JSON");
    const auto values = parse_command_line(line, args);
    if (!values) return 0;
    const auto get = [&](const char* name) { return (*values)[name].as<std::string>(); };
    const auto families = parse_families(get("family"));
    constexpr std::int64_t kMost = std::int64_t{1} << 62;
    const auto n = parse_number<std::int64_t>(get("n"), "--n", 1, kMost);
    const auto start = parse_number<std::int64_t>(get("start"), "--start", 0, kMost);
    const auto seed = parse_number<std::uint64_t>(get("seed"), "--seed", 0, UINT64_MAX);
    const auto [low, high] = parse_difficulty(get("difficulty"));
    const ReasoningSplit split = parse_split(get("split"));
    const auto count = static_cast<std::int64_t>(families.size());
    LineWriter out;
    for (std::int64_t i = 0; i < n && out.open(); ++i) {
        const std::int64_t index = start + i / count;
        const ReasoningSample sample =
            make_sample(*families[static_cast<std::size_t>(i % count)],
                        low + index % (high - low + 1), seed, split, index);
        if (values->contains("text")) {
            const RenderedSample text = render(sample);
            out.add(text.prompt + text.solution + "\n");
        } else {
            out.add(to_json_line(sample));
        }
    }
    out.flush();
    return 0;
}

/// The next line without its end; a line longer than kLongestLine is cut, and `too_long` set.
bool next_line(std::streambuf& in, std::string& line, bool& too_long) {
    constexpr int kEnd = std::streambuf::traits_type::eof();
    line.clear();
    too_long = false;
    int c = in.sbumpc();
    if (c == kEnd) return false;
    for (; c != kEnd && c != '\n'; c = in.sbumpc())
        if (line.size() < kLongestLine)
            line.push_back(static_cast<char>(c));
        else
            too_long = true;
    return true;
}

struct Tally {
    std::int64_t checked = 0, sound = 0;
};

/// Checks every line of `in` and reports the unsound ones to standard error.
std::map<std::string, Tally> verify_lines(std::streambuf& in) {
    std::map<std::string, Tally> tallies;
    std::string line, why;
    bool too_long = false;
    for (std::int64_t number = 1; next_line(in, line, too_long); ++number) {
        std::string family = "(malformed)";
        bool sound = false;
        try {
            if (too_long)
                throw DataError({.what = "the line is too long",
                                 .where = fmt::format("line {}", number),
                                 .expected = fmt::format("at most {} bytes", kLongestLine)});
            const ReasoningSample sample = from_json_line(line, number);
            sound = verify_sample(sample, why);
            const auto& known = reasoning_families();
            const bool is_known =
                std::any_of(known.begin(), known.end(),
                            [&](const ReasoningFamily& f) { return sample.family == f.name; });
            family = is_known ? sample.family : "(unknown family)";
            if (!sound) fmt::print(stderr, "line {}: {}: unsound: {}\n", number, family, why);
        } catch (const DataError& e) {
            fmt::print(stderr, "{}\n", e.what());
        }
        ++tallies[family].checked;
        tallies[family].sound += sound ? 1 : 0;
    }
    return tallies;
}

int reason_verify(const Args& args) {
    CommandLine line;
    line.usage = "stoa reason verify [FILE]";
    line.examples =
        "  stoa reason verify samples.jsonl\n"
        "  stoa reason gen --family all --n 10000 | stoa reason verify\n";
    line.about =
        "Recomputes the answer of each JSON line by another way than it was made and checks the "
        "steps. Unsound and malformed lines go to standard error with their number and reason. "
        "Exit code 0 when all are sound, 3 when one is not or there are none.";
    line.options.add_options()("file", po::value<std::string>()->default_value("-"),
                               "JSON lines; - is standard input");
    line.positional.add("file", 1);
    const auto values = parse_command_line(line, args);
    if (!values) return 0;
    const std::string path = (*values)["file"].as<std::string>();
    std::ios::sync_with_stdio(false);
    std::ifstream file;
    if (path != "-") {
        if (std::filesystem::is_directory(path))
            throw DataError({.what = "cannot read the samples",
                             .where = path,
                             .expected = "a file",
                             .actual = "a directory"});
        file.open(path, std::ios::binary);
        if (!file)
            throw DataError({.what = "cannot open the samples",
                             .where = path,
                             .actual = std::error_code(errno, std::generic_category()).message()});
    }
    const auto tallies = verify_lines(path == "-" ? *std::cin.rdbuf() : *file.rdbuf());
    LineWriter out;
    Tally all;
    out.add(fmt::format("{:<20} {:>9} {:>9} {:>9}", "family", "checked", "sound", "unsound"));
    for (const auto& [family, tally] : tallies) {
        out.add(fmt::format("{:<20} {:>9} {:>9} {:>9}", family, tally.checked, tally.sound,
                            tally.checked - tally.sound));
        all.checked += tally.checked;
        all.sound += tally.sound;
    }
    out.add(fmt::format("{:<20} {:>9} {:>9} {:>9}", "all", all.checked, all.sound,
                        all.checked - all.sound));
    out.flush();
    if (all.checked == 0)
        throw DataError({.what = "no samples to verify",
                         .where = path == "-" ? "standard input" : path,
                         .expected = "JSON lines as `stoa reason gen` writes them"});
    return all.sound == all.checked ? 0 : static_cast<int>(ExitCode::data);
}

int reason_list(const Args& args) {
    CommandLine line;
    line.usage = "stoa reason list";
    line.examples = "  stoa reason list\n";
    line.about = "Shows each family with an example of difficulty 1.";
    if (!parse_command_line(line, args)) return 0;
    LineWriter out;
    for (const ReasoningFamily& family : reasoning_families()) {
        out.add(fmt::format("{}: {}", family.name, family.summary));
        const RenderedSample text = render(make_sample(family, 1, 0, ReasoningSplit::train, 0));
        out.add(text.prompt + text.solution + "\n");
    }
    out.flush();
    return 0;
}

}  // namespace

int command_reason(const Args& args) {
    const std::map<std::string, int (*)(const Args&)> verbs = {
        {"gen", reason_gen}, {"list", reason_list}, {"verify", reason_verify}};
    const std::string verb = args.empty() ? "" : args[0];
    if (verb == "--help" || verb == "-h") {
        fmt::print(
            "examples:\n"
            "  stoa reason list\n"
            "  stoa reason gen --family chain_sum --n 5 --text\n"
            "  stoa reason gen --family all --n 10000 --difficulty 1..10 | stoa reason verify\n\n"
            "usage: stoa reason gen|verify|list [options]; each has its own --help\n\n"
            "Problems with worked steps and an exact answer, and the check of both.\n");
        return 0;
    }
    const auto it = verbs.find(verb);
    if (it != verbs.end()) return it->second(Args(args.begin() + 1, args.end()));
    const auto close = suggest(verb, {"gen", "list", "verify"});
    throw ConfigError(
        {.what = verb.empty() ? "stoa reason: what to do?" : "stoa reason: unknown verb " + verb,
         .expected = "gen, verify or list",
         .hint = close.empty() ? "see `stoa reason --help`"
                               : "did you mean `stoa reason " + close[0] + "`?"});
}

}  // namespace stoa
