#include <fmt/format.h>

#include <charconv>
#include <cstdio>
#include <fstream>
#include <sstream>

#include "configs/load_run_config.h"
#include "data/crawl/build_corpus.h"
#include "data/crawl/read_documents.h"
#include "kernels/core/error.h"
#include "launcher/cli.h"
#include "launcher/commands.h"

namespace po = boost::program_options;

namespace stoa {
namespace {

CommandLine build_command_line() {
    CommandLine line;
    line.usage = "stoa data build INPUT... --out DIR [options]";
    line.examples =
        "  stoa data build crawl/ --out shards/web\n"
        "                                               filter, train a tokenizer, write shards\n"
        "  stoa data build CC-MAIN-2024-22.warc.wet.gz books/ --out shards/mix --vocab-size 16384\n"
        "  stoa data build more.jsonl.gz --out shards/more --tokenizer shards/web/tokenizer.json\n"
        "                                               the same tokenizer for a second source\n";
    line.about =
        "Turns crawl files into token shards: text of every record, quality filter, exact\n"
        "deduplication, byte-level BPE, one share held out for evaluation. Inputs are files or\n"
        "directories; read are files ending in\n" +
        readable_suffixes() +
        ".\n"
        "The result depends on inputs and options only. An earlier build in DIR is replaced.";
    auto add = line.options.add_options();
    add("input", po::value<std::vector<std::string>>()->required(), "files and directories");
    add("out", po::value<std::string>()->required()->value_name("DIR"), "where the shards go");
    add("tokenizer", po::value<std::string>()->value_name("FILE"),
        "use this tokenizer.json (default: train one into DIR)");
    add("vocab-size", po::value<std::int64_t>()->default_value(4096)->value_name("N"),
        "size of the tokenizer to train, end-of-text included");
    add("holdout", po::value<std::string>()->default_value("1%")->value_name("SHARE"),
        "share of documents kept for evaluation: 1% or 0.01, at most 50%");
    add("shard-tokens", po::value<std::int64_t>()->default_value(64 << 20)->value_name("N"),
        "start a new shard beyond N tokens");
    add("no-filter", po::bool_switch(), "keep documents that the quality rules would refuse");
    add("json", po::bool_switch(), "print the report as JSON");
    line.positional.add("input", -1);
    return line;
}

/// "1%" or "0.01" to 0.01. errors: ConfigError
double parse_share(const std::string& text) {
    const bool percent = text.ends_with("%");
    const std::string_view number = std::string_view(text).substr(0, text.size() - percent);
    double value = 0.0;
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), value);
    if (percent) value /= 100.0;
    const bool whole = error == std::errc{} && end == number.data() + number.size();
    if (!whole || !(value >= 0.0 && value <= 0.5))
        throw ConfigError({.what = "this is no share",
                           .where = "--holdout",
                           .expected = "a percentage or fraction from 0 to 50%",
                           .actual = text,
                           .hint = "for example --holdout 1%"});
    return value;
}

std::int64_t positive(const po::variables_map& values, const char* name) {
    const auto value = values[name].as<std::int64_t>();
    if (value <= 0)
        throw ConfigError({.what = "the option is out of range",
                           .where = fmt::format("--{}", name),
                           .expected = "a positive number",
                           .actual = fmt::format("{}", value),
                           .hint = "see `stoa data build --help`"});
    return value;
}

BuildCorpusOptions to_options(const po::variables_map& values) {
    BuildCorpusOptions options;
    options.inputs = values["input"].as<std::vector<std::string>>();
    options.out_dir = values["out"].as<std::string>();
    if (values.contains("tokenizer")) {
        if (!values["vocab-size"].defaulted())
            throw ConfigError({.what = "--tokenizer and --vocab-size exclude each other",
                               .expected = "a tokenizer to use or the size of one to train",
                               .actual = "both",
                               .hint = "leave one of them out"});
        options.tokenizer = values["tokenizer"].as<std::string>();
    }
    options.vocab_size = positive(values, "vocab-size");
    options.shard_tokens = positive(values, "shard-tokens");
    options.holdout = parse_share(values["holdout"].as<std::string>());
    options.filter = !values["no-filter"].as<bool>();
    return options;
}

void print_report(const BuildCorpusOptions& options, const BuildCorpusReport& r) {
    std::int64_t refused = 0;
    std::string reasons;
    for (const auto& [reason, count] : r.refused) {
        refused += count;
        reasons += fmt::format("{}{} {}", reasons.empty() ? "" : ", ", reason, count);
    }
    fmt::print("read       {} files, {} records, {} damaged\n", r.files, r.records, r.damaged);
    fmt::print("documents  {} with text\n", r.documents);
    fmt::print("refused    {}{}{}{}\n", refused, reasons.empty() ? "" : " (", reasons,
               reasons.empty() ? "" : ")");
    fmt::print("duplicates {}\n", r.duplicates);
    fmt::print("kept       {:.2f} MB of text\n", double(r.text_bytes) / 1e6);
    fmt::print("train      {} documents, {} tokens\n", r.train_documents, r.train_tokens);
    fmt::print("holdout    {} documents, {} tokens\n", r.holdout_documents, r.holdout_tokens);
    fmt::print("tokenizer  {}\n", r.tokenizer_path);
    fmt::print("shards     {0}/train-*.h5, {0}/holdout-*.h5; report {0}/build.json\n",
               options.out_dir);
    constexpr std::size_t kShown = 5;
    for (std::size_t i = 0; i < std::min(kShown, r.notes.size()); ++i)
        fmt::print("note: {}\n", r.notes[i]);
    if (r.notes.size() > kShown)
        fmt::print("note: {} more in {}/build.json\n", r.notes.size() - kShown, options.out_dir);
    fmt::print("next: stoa check configs/tiny.yaml data.tokenizer={} data.sources.web.path={}\n",
               r.tokenizer_path, options.out_dir);
}

int build(const Args& args) {
    const auto values = parse_command_line(build_command_line(), args);
    if (!values) return 0;
    const BuildCorpusOptions options = to_options(*values);
    const BuildCorpusReport report = build_corpus(options);
    if ((*values)["json"].as<bool>()) {
        std::ostringstream text;
        text << std::ifstream(options.out_dir + "/build.json").rdbuf();
        fmt::print("{}", text.str());
    } else {
        print_report(options, report);
    }
    return 0;
}

}  // namespace

int command_data(const Args& args) {
    const std::string verb = args.empty() ? "" : args.front();
    if (verb == "build") return build(Args(args.begin() + 1, args.end()));
    if (verb == "--help" || verb == "-h") return build({"--help"});
    if (verb.empty())
        throw ConfigError({.what = "stoa data: which command?",
                           .expected = "build",
                           .hint = "see `stoa data build --help`"});
    const auto close = suggest(verb, {"build"});
    throw ConfigError(
        {.what = "stoa data: unknown command",
         .expected = "build",
         .actual = verb,
         .hint = (close.empty() ? "" : "did you mean `stoa data " + close.front() + "`? ") +
                 std::string("see `stoa data build --help`")});
}

}  // namespace stoa
