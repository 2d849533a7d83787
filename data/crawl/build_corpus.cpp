#include "data/crawl/build_corpus.h"

#include <fmt/format.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "data/crawl/quality_filter.h"
#include "data/crawl/read_documents.h"
#include "data/token_shard.h"
#include "data/tokenizer/bpe_train.h"
#include "data/tokenizer/tokenizer.h"
#include "kernels/core/error.h"

namespace stoa {
namespace {

namespace fs = std::filesystem;

// Training text beyond this changes few merges and only costs time.
constexpr std::int64_t kTokenizerBytes = std::int64_t{16} << 20;

struct Document {
    std::int64_t offset = 0, bytes = 0;  // in the spool
    std::uint64_t hash = 0;              // low word of xxh3-128
    bool holdout = false;
};

/// The accepted texts, one after another in a temporary file: a corpus may be larger than memory.
class Spool {
public:
    explicit Spool(const std::string& dir)
        : path_(fmt::format("{}/.documents-{}.tmp", dir, ::getpid())),
          file_(std::fopen(path_.c_str(), "w+b"), &std::fclose) {
        if (!file_) fail("the output directory is not writable");
    }
    ~Spool() {
        file_.reset();
        std::error_code ignored;
        fs::remove(path_, ignored);
    }
    Spool(const Spool&) = delete;
    Spool& operator=(const Spool&) = delete;

    std::int64_t append(const std::string& text) {
        if (std::fwrite(text.data(), 1, text.size(), file_.get()) != text.size())
            fail("cannot write the accepted documents");
        const std::int64_t offset = size_;
        size_ += std::int64_t(text.size());
        return offset;
    }
    std::string read(const Document& d) const {
        std::string text(std::size_t(d.bytes), '\0');
        if (fseeko(file_.get(), d.offset, SEEK_SET) != 0 ||
            std::fread(text.data(), 1, text.size(), file_.get()) != text.size())
            fail("cannot read the accepted documents back");
        return text;
    }

private:
    [[noreturn]] void fail(const char* what) const {
        throw DataError({.what = what,
                         .where = path_,
                         .expected = "a directory that may be written and has room for the text",
                         .actual = std::strerror(errno),
                         .hint = "choose another output directory or free some space"});
    }

    std::string path_;
    std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
    std::int64_t size_ = 0;
};

struct LowWord {
    std::size_t operator()(const std::pair<std::uint64_t, std::uint64_t>& h) const {
        return h.first;
    }
};

std::vector<Document> collect(const BuildCorpusOptions& options, Spool& spool,
                              BuildCorpusReport& report) {
    std::vector<Document> documents;
    std::unordered_set<std::pair<std::uint64_t, std::uint64_t>, LowWord> seen;
    const auto files = list_input_files(options.inputs);
    for (const std::string& path : files) {
        ++report.files;
        read_documents(path, report, [&](std::string&& text) {
            ++report.documents;
            const std::string refused = options.filter ? filter_document(text) : "";
            if (!refused.empty()) {
                ++report.refused[refused];
                return;
            }
            const XXH128_hash_t hash = XXH3_128bits(text.data(), text.size());
            if (!seen.insert({hash.low64, hash.high64}).second) {
                ++report.duplicates;
                return;
            }
            report.text_bytes += std::int64_t(text.size());
            documents.push_back({spool.append(text), std::int64_t(text.size()), hash.low64, false});
        });
    }
    return documents;
}

[[noreturn]] void throw_empty(const BuildCorpusOptions& options, const BuildCorpusReport& report) {
    std::string reasons;
    for (const auto& [reason, count] : report.refused)
        reasons += fmt::format("{}{} {}", reasons.empty() ? "" : ", ", count, reason);
    const std::string found = fmt::format("{} files, {} records, {} documents with text{}{}",
                                          report.files, report.records, report.documents,
                                          reasons.empty() ? "" : "; refused: ", reasons);
    std::string hint = report.documents > 0
                           ? "keep all documents with filter off (--no-filter), or add inputs"
                           : "add crawl files with pages or conversions (WET), text or JSON lines";
    if (!report.notes.empty()) hint += "; first problem: " + report.notes.front();
    throw DataError({.what = "no usable document in the inputs",
                     .where = options.inputs.empty() ? "" : options.inputs.front(),
                     .expected = "at least one document",
                     .actual = found,
                     .hint = hint});
}

/// Marks the held-out documents: those whose hash, as a fraction of 2^64, lies below `share`. With
/// two documents and more each split gets one at least (share 0 asks for no held-out text at all).
void split_holdout(std::vector<Document>& documents, double share) {
    for (Document& d : documents)
        d.holdout = double(d.hash) * 0x1p-64 < share;
    if (documents.size() < 2 || share <= 0.0) {
        for (Document& d : documents)
            d.holdout = false;
        return;
    }
    const auto [least, most] =
        std::minmax_element(documents.begin(), documents.end(),
                            [](const Document& a, const Document& b) { return a.hash < b.hash; });
    least->holdout = true;
    if (least != most) most->holdout = false;
}

/// Training documents for the tokenizer: all, or an even choice of about kTokenizerBytes.
std::vector<std::string> tokenizer_sample(const std::vector<Document>& documents,
                                          const Spool& spool) {
    std::int64_t total = 0;
    for (const Document& d : documents)
        if (!d.holdout) total += d.bytes;
    const double share =
        std::min(1.0, double(kTokenizerBytes) / double(std::max<std::int64_t>(1, total)));
    std::vector<std::string> sample;
    std::int64_t passed = 0, taken = 0;
    for (const Document& d : documents) {
        if (d.holdout) continue;
        if (double(taken) <= double(passed) * share) {
            sample.push_back(spool.read(d));
            taken += d.bytes;
        }
        passed += d.bytes;
    }
    return sample;
}

/// Encodes one split and writes its shards; returns its tokens.
std::int64_t write_split(const BuildCorpusOptions& options, const Tokenizer& tokenizer,
                         const std::vector<Document>& documents, const Spool& spool, bool holdout) {
    TokenShardInfo info{.tokenizer_hash = tokenizer.hash(),
                        .vocab_size = tokenizer.vocab_size(),
                        .end_of_text = tokenizer.end_of_text(),
                        .split = holdout ? "holdout" : "train",
                        .source = "stoa data build"};
    std::vector<TokenId> tokens;
    std::vector<std::uint64_t> doc_ends;
    std::int64_t total = 0;
    int index = 0;
    const auto flush = [&] {
        if (tokens.empty()) return;
        write_token_shard(fmt::format("{}/{}-{:05}.h5", options.out_dir, info.split, index++), info,
                          tokens, doc_ends);
        total += std::int64_t(tokens.size());
        tokens.clear();
        doc_ends.clear();
    };
    for (const Document& d : documents) {
        if (d.holdout != holdout) continue;
        std::vector<TokenId> ids = tokenizer.encode(spool.read(d));
        ids.push_back(info.end_of_text);
        if (std::int64_t(tokens.size() + ids.size()) > options.shard_tokens) flush();
        tokens.insert(tokens.end(), ids.begin(), ids.end());
        doc_ends.push_back(tokens.size());
    }
    flush();
    return total;
}

/// Shards of an earlier build would be read as part of this one.
void remove_old_build(const std::string& dir) {
    std::error_code error;
    std::vector<fs::path> old{fs::path(dir) / "build.json"};
    for (const auto& entry : fs::directory_iterator(dir, error)) {
        const std::string name = entry.path().filename().string();
        const bool shard = name.starts_with("train-") || name.starts_with("holdout-");
        if (shard && name.ends_with(".h5")) old.push_back(entry.path());
    }
    for (const fs::path& path : old)
        fs::remove(path, error);
    if (error)
        throw DataError({.what = "cannot remove the shards of an earlier build",
                         .where = dir,
                         .expected = "a directory that may be written",
                         .actual = error.message(),
                         .hint = "choose another output directory"});
}

void write_report(const BuildCorpusOptions& options, const BuildCorpusReport& report,
                  const std::string& tokenizer_hash) {
    nlohmann::ordered_json json;
    json["options"] = {{"inputs", options.inputs},
                       {"tokenizer", options.tokenizer},
                       {"vocab_size", options.vocab_size},
                       {"holdout", options.holdout},
                       {"shard_tokens", options.shard_tokens},
                       {"filter", options.filter}};
    json["files"] = report.files;
    json["records"] = report.records;
    json["damaged"] = report.damaged;
    json["documents"] = report.documents;
    json["refused"] = report.refused;
    json["duplicates"] = report.duplicates;
    json["text_bytes"] = report.text_bytes;
    json["train"] = {{"documents", report.train_documents}, {"tokens", report.train_tokens}};
    json["holdout"] = {{"documents", report.holdout_documents}, {"tokens", report.holdout_tokens}};
    json["tokenizer"] = {{"path", report.tokenizer_path}, {"hash", tokenizer_hash}};
    json["notes"] = report.notes;
    // Paths may hold any bytes: ill-formed ones are replaced.
    const std::string text =
        json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
    const std::string path = options.out_dir + "/build.json";
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(
        std::fopen((path + ".tmp").c_str(), "wb"), &std::fclose);
    const bool written = file &&
                         std::fwrite(text.data(), 1, text.size(), file.get()) == text.size() &&
                         std::fflush(file.get()) == 0;
    if (!written || std::rename((path + ".tmp").c_str(), path.c_str()) != 0)
        throw DataError({.what = "cannot write the report",
                         .where = path,
                         .expected = "a writable directory",
                         .actual = std::strerror(errno),
                         .hint = "free some space or choose another output directory"});
}

void check_options(const BuildCorpusOptions& options) {
    const auto require = [](bool ok, const char* where, const char* expected, std::string actual) {
        if (!ok)
            throw DataError({.what = "an option is out of range",
                             .where = where,
                             .expected = expected,
                             .actual = std::move(actual),
                             .hint = "see `stoa data build --help`"});
    };
    require(!options.inputs.empty(), "inputs", "at least one file or directory", "none");
    require(!options.out_dir.empty(), "out_dir", "a directory", "nothing");
    require(options.holdout >= 0.0 && options.holdout <= 0.5, "holdout", "a share from 0 to 0.5",
            fmt::format("{}", options.holdout));
    // 256 bytes and end-of-text; more is checked by the training itself.
    require(!options.tokenizer.empty() || options.vocab_size > 256, "vocab_size",
            "more than 256 tokens", fmt::format("{}", options.vocab_size));
    require(options.shard_tokens > 0, "shard_tokens", "a positive number of tokens",
            fmt::format("{}", options.shard_tokens));
}

}  // namespace

BuildCorpusReport build_corpus(const BuildCorpusOptions& options) {
    check_options(options);
    std::error_code error;
    fs::create_directories(options.out_dir, error);
    if (error)
        throw DataError({.what = "cannot create the output directory",
                         .where = options.out_dir,
                         .expected = "a path that may be written",
                         .actual = error.message(),
                         .hint = "choose another output directory"});
    BuildCorpusReport report;
    Spool spool(options.out_dir);
    // A tokenizer that cannot be loaded should not cost the reading of a whole crawl first.
    std::unique_ptr<Tokenizer> tokenizer;
    if (!options.tokenizer.empty())
        tokenizer = std::make_unique<Tokenizer>(Tokenizer::load(options.tokenizer));

    std::vector<Document> documents = collect(options, spool, report);
    if (documents.empty()) throw_empty(options, report);
    split_holdout(documents, options.holdout);
    for (const Document& d : documents)
        ++(d.holdout ? report.holdout_documents : report.train_documents);
    if (report.holdout_documents == 0)
        report.notes.push_back(documents.size() < 2 ? "one document only: no held-out text"
                                                    : "no held-out text was asked for");

    remove_old_build(options.out_dir);
    report.tokenizer_path = options.tokenizer;
    if (!tokenizer) {
        tokenizer = std::make_unique<Tokenizer>(
            train_bpe(tokenizer_sample(documents, spool), options.vocab_size));
        report.tokenizer_path = options.out_dir + "/tokenizer.json";
        tokenizer->save(report.tokenizer_path);
    }
    report.train_tokens = write_split(options, *tokenizer, documents, spool, false);
    report.holdout_tokens = write_split(options, *tokenizer, documents, spool, true);
    write_report(options, report, tokenizer->hash());
    return report;
}

}  // namespace stoa
