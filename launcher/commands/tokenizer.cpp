#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "configs/load_run_config.h"
#include "data/crawl/read_documents.h"
#include "data/tokenizer/bpe_train.h"
#include "kernels/core/error.h"
#include "launcher/cli.h"
#include "launcher/commands.h"

namespace po = boost::program_options;

namespace stoa {
namespace {

constexpr std::int64_t kSmallestVocab = 257;  // 256 bytes and end-of-text

CommandLine train_command_line() {
    CommandLine line;
    line.usage = "stoa tokenizer train INPUT... --out FILE [options]";
    line.examples =
        "  stoa tokenizer train books/ --out tokenizer.json\n"
        "  stoa tokenizer train crawl.warc.wet.gz more.jsonl.gz --out tokenizer.json --vocab-size "
        "16384\n";
    line.about =
        "Trains a byte-level BPE tokenizer and writes it in the Hugging Face tokenizer.json\n"
        "format. All text is held in memory: give a sample of a large corpus. Inputs are files\n"
        "or directories; read are files ending in\n" +
        readable_suffixes() +
        ".\n"
        "The result depends on the inputs and the size only.";
    auto add = line.options.add_options();
    add("input", po::value<std::vector<std::string>>()->required(), "files and directories");
    add("out", po::value<std::string>()->required()->value_name("FILE"), "tokenizer.json to write");
    add("vocab-size", po::value<std::int64_t>()->default_value(4096)->value_name("N"),
        "tokens in all: 256 bytes, merges and end-of-text");
    add("json", po::bool_switch(), "print the report as JSON");
    line.positional.add("input", -1);
    return line;
}

void check_arguments(std::int64_t vocab_size, const std::string& out) {
    if (vocab_size < kSmallestVocab)
        throw ConfigError(
            {.what = "the vocabulary is too small",
             .where = "--vocab-size",
             .expected = fmt::format(">= {} (256 bytes and end-of-text)", kSmallestVocab),
             .actual = fmt::format("{}", vocab_size)});
    const auto parent = std::filesystem::path(out).parent_path();
    std::error_code ec;
    if (std::filesystem::is_directory(out, ec) ||
        (!parent.empty() && !std::filesystem::is_directory(parent, ec)))
        throw ConfigError({.what = "the tokenizer cannot be written there",
                           .where = "--out",
                           .expected = "a file name in an existing directory",
                           .actual = out});
}

int train(const Args& args) {
    const auto values = parse_command_line(train_command_line(), args);
    if (!values) return 0;
    const std::string out = (*values)["out"].as<std::string>();
    const auto vocab_size = (*values)["vocab-size"].as<std::int64_t>();
    check_arguments(vocab_size, out);

    BuildCorpusReport report;
    std::vector<std::string> documents;
    std::size_t bytes = 0;
    for (const auto& file : list_input_files((*values)["input"].as<std::vector<std::string>>()))
        read_documents(file, report, [&](std::string&& text) {
            bytes += text.size();
            documents.push_back(std::move(text));
        });
    const auto begin = std::chrono::steady_clock::now();
    const Tokenizer tokenizer(train_bpe(documents, vocab_size));
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    std::size_t tokens = 0;
    for (const std::string& text : documents)
        tokens += tokenizer.encode(text).size();
    tokenizer.save(out);

    const double bytes_per_token = double(bytes) / double(std::max<std::size_t>(tokens, 1));
    if ((*values)["json"].as<bool>()) {
        const nlohmann::ordered_json json = {{"out", out},
                                             {"vocab_size", tokenizer.vocab_size()},
                                             {"documents", documents.size()},
                                             {"bytes", bytes},
                                             {"tokens", tokens},
                                             {"bytes_per_token", bytes_per_token},
                                             {"damaged", report.damaged},
                                             {"hash", tokenizer.hash()}};
        fmt::print("{}\n", json.dump());
        return 0;
    }
    fmt::print("read       {} documents, {:.2f} MB of text, {} damaged records\n", documents.size(),
               double(bytes) / 1e6, report.damaged);
    fmt::print("vocabulary {} tokens in {:.1f} s{}\n", tokenizer.vocab_size(), seconds.count(),
               tokenizer.vocab_size() < vocab_size ? " (the text has no more pairs to merge)" : "");
    fmt::print("text       {} tokens, {:.2f} bytes per token\n", tokens, bytes_per_token);
    fmt::print("hash       {}\n", tokenizer.hash());
    fmt::print("wrote      {}\n", out);
    fmt::print("next: stoa data build INPUT... --out shards --tokenizer {}\n", out);
    return 0;
}

}  // namespace

int command_tokenizer(const Args& args) {
    const std::string verb = args.empty() ? "" : args.front();
    if (verb == "train") return train(Args(args.begin() + 1, args.end()));
    if (verb == "--help" || verb == "-h") return train({"--help"});
    const auto close = verb.empty() ? std::vector<std::string>{} : suggest(verb, {"train"});
    throw ConfigError(
        {.what =
             verb.empty() ? "stoa tokenizer: which command?" : "stoa tokenizer: unknown command",
         .expected = "train",
         .actual = verb,
         .hint = (close.empty() ? "" : "did you mean `stoa tokenizer " + close.front() + "`? ") +
                 std::string("see `stoa tokenizer train --help`")});
}

}  // namespace stoa
