#include <unistd.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "data/crawl/build_corpus.h"
#include "data/token_shard.h"
#include "kernels/core/error.h"
#include "launcher/commands.h"
#include "tests/support/catch.h"
#include "tests/support/crawl_files.h"

using namespace stoa;
using namespace stoa::test;

namespace {

/// A folder with one file of each kind: 31 different documents, two given twice.
void write_inputs(const TempDir& dir) {
    fs::create_directories(dir / "in/sub");
    std::string warc, wet, lines;
    for (int i = 0; i < 10; ++i) {
        warc += deflate_bytes(warc_record(
            "response", http_response("Content-Type: text/html\r\n", "<p>" + prose(i) + "</p>")));
        wet += warc_record("conversion", prose(100 + i));
        lines += nlohmann::json{{"text", prose(200 + i)}, {"id", i}}.dump() + "\n";
    }
    write_text(dir / "in/a.warc.gz", warc);
    write_text(dir / "in/b.warc.wet", wet + warc_record("conversion", prose(100)) +
                                          warc_record("conversion", "too short"));
    write_text(dir / "in/sub/c.jsonl.gz",
               deflate_bytes(lines + lines.substr(0, lines.find('\n') + 1)));
    write_text(dir / "in/sub/d.txt", prose(300));
    write_text(dir / "in/sub/ignored.png", "no text");
}

BuildCorpusOptions small(const TempDir& dir, const std::string& out) {
    BuildCorpusOptions options;
    options.inputs = {dir / "in"};
    options.out_dir = dir / out;
    options.vocab_size = 400;
    options.holdout = 0.2;
    return options;
}

std::string error_of(const BuildCorpusOptions& options) {
    try {
        build_corpus(options);
    } catch (const DataError& e) {
        CHECK_FALSE(e.fields().hint.empty());
        return e.what();
    }
    return "";
}

std::vector<std::string> documents_of(const std::string& dir, const std::string& split,
                                      const Tokenizer& tokenizer) {
    const TokenStream stream = TokenStream::open(dir, split, tokenizer.hash());
    std::vector<TokenId> ids(std::size_t(stream.size()));
    stream.read(0, stream.size(), ids.data());
    std::vector<std::string> documents(1);
    std::vector<TokenId> part;
    for (const TokenId id : ids) {
        if (id != tokenizer.end_of_text()) {
            part.push_back(id);
            continue;
        }
        documents.back() = tokenizer.decode(part);
        documents.emplace_back();
        part.clear();
    }
    CHECK(part.empty());  // every document ends with end-of-text
    documents.pop_back();
    return documents;
}

}  // namespace

TEST_CASE("build_corpus turns every kind of input into shards", "[unit]") {
    const TempDir dir;
    write_inputs(dir);
    const BuildCorpusReport report = build_corpus(small(dir, "out"));
    CHECK(report.files == 4);
    CHECK(report.records == 10 + 12 + 11 + 1);
    CHECK(report.documents == 34);
    CHECK(report.duplicates == 2);
    CHECK(report.refused == std::map<std::string, std::int64_t>{{"too_short", 1}});
    CHECK(report.damaged == 0);
    CHECK(report.train_documents + report.holdout_documents == 31);
    CHECK(report.holdout_documents >= 1);
    CHECK(report.tokenizer_path == dir / "out/tokenizer.json");

    const Tokenizer tokenizer = Tokenizer::load(report.tokenizer_path);
    const auto train = documents_of(dir / "out", "train", tokenizer);
    const auto holdout = documents_of(dir / "out", "holdout", tokenizer);
    CHECK(std::int64_t(train.size()) == report.train_documents);
    CHECK(std::int64_t(holdout.size()) == report.holdout_documents);
    std::vector<std::string> all = train;
    all.insert(all.end(), holdout.begin(), holdout.end());
    const std::string conversion = prose(105), line = prose(203);
    CHECK(std::count(all.begin(), all.end(), conversion.substr(0, conversion.size() - 1)) == 1);
    CHECK(std::count(all.begin(), all.end(), line.substr(0, line.size() - 1)) == 1);

    const auto json = nlohmann::json::parse(read_text(dir / "out/build.json"));
    CHECK(json["train"]["tokens"] == report.train_tokens);
    CHECK(json["refused"]["too_short"] == 1);
    CHECK(json["tokenizer"]["hash"] == tokenizer.hash());
    for (const auto& entry : fs::directory_iterator(dir / "out"))
        CHECK(entry.path().extension() != ".tmp");
}

TEST_CASE("build_corpus is a pure function of its inputs", "[unit]") {
    const TempDir dir;
    write_inputs(dir);
    build_corpus(small(dir, "one"));
    std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // no clock in the bytes
    build_corpus(small(dir, "two"));
    for (const char* name : {"/train-00000.h5", "/holdout-00000.h5", "/tokenizer.json"}) {
        CAPTURE(name);
        CHECK(read_text(dir / "one" + name) == read_text(dir / "two" + name));
        CHECK(read_text(dir / "one" + name).size() > 100);
    }
}

TEST_CASE("build_corpus splits shards and replaces an earlier build", "[unit]") {
    const TempDir dir;
    write_inputs(dir);
    BuildCorpusOptions options = small(dir, "out");
    const BuildCorpusReport whole = build_corpus(options);
    const Tokenizer tokenizer = Tokenizer::load(whole.tokenizer_path);
    const auto before = documents_of(dir / "out", "train", tokenizer);
    options.shard_tokens = whole.train_tokens / 3;
    build_corpus(options);
    CHECK(fs::exists(dir / "out/train-00002.h5"));
    CHECK(documents_of(dir / "out", "train", tokenizer) == before);
    options.shard_tokens = 64 << 20;
    build_corpus(options);
    CHECK_FALSE(fs::exists(dir / "out/train-00001.h5"));
    CHECK(documents_of(dir / "out", "train", tokenizer) == before);
}

TEST_CASE("build_corpus uses a given tokenizer", "[unit]") {
    const TempDir dir;
    write_inputs(dir);
    BuildCorpusOptions options = small(dir, "one");
    const std::string trained = build_corpus(options).tokenizer_path;
    options.out_dir = dir / "two";
    options.tokenizer = trained;
    options.filter = false;
    const BuildCorpusReport report = build_corpus(options);
    CHECK(report.tokenizer_path == trained);
    CHECK_FALSE(fs::exists(dir / "two/tokenizer.json"));
    CHECK(report.refused.empty());
    CHECK(report.train_documents + report.holdout_documents == 32);
    options.tokenizer = dir / "absent.json";
    CHECK_THAT(error_of(options), Catch::Contains("absent.json"));
}

TEST_CASE("build_corpus gives each split a document when it can", "[unit]") {
    const TempDir dir;
    fs::create_directories(dir / "in");
    BuildCorpusOptions options = small(dir, "out");
    for (int documents = 1; documents <= 4; ++documents) {
        write_text(dir / ("in/" + std::to_string(documents) + ".txt"), prose(documents));
        for (const double share : {0.0, 0.0001, 0.5}) {
            options.holdout = share;
            const BuildCorpusReport report = build_corpus(options);
            CAPTURE(documents, share);
            CHECK(report.train_documents + report.holdout_documents == documents);
            CHECK(report.train_documents >= 1);
            CHECK((report.holdout_documents >= 1) == (documents > 1 && share > 0.0));
        }
    }
}

TEST_CASE("build_corpus cuts books at blank lines", "[unit]") {
    const TempDir dir;
    fs::create_directories(dir / "in");
    std::string book, paragraphs;
    for (int i = 0; i < 40; ++i)
        book += prose(i, 5) + "\r\n";
    book += std::string("Caf\xe9 is Latin-1 here. ") + prose(50);
    write_text(dir / "in/book.txt.gz", deflate_bytes(book));
    const BuildCorpusReport report = build_corpus(small(dir, "out"));
    CHECK(report.documents >= 6);
    CHECK(report.documents <= 8);
    const Tokenizer tokenizer = Tokenizer::load(report.tokenizer_path);
    auto all = documents_of(dir / "out", "train", tokenizer);
    const auto held = documents_of(dir / "out", "holdout", tokenizer);
    all.insert(all.end(), held.begin(), held.end());
    bool latin = false;
    for (const std::string& text : all) {
        CHECK((text.starts_with("In the year") || text.starts_with("Caf")));  // never inside a line
        CHECK(text.size() < 8000);
        latin |= text.find("Caf\u00e9 is Latin-1") != std::string::npos;
    }
    CHECK(latin);
}

TEST_CASE("build_corpus reports damage and goes on", "[unit]") {
    const TempDir dir;
    write_inputs(dir);
    const std::string warc = read_text(dir / "in/a.warc.gz");
    write_text(dir / "in/cut.warc.gz", warc.substr(0, 30));
    write_text(dir / "in/junk.warc", "not a crawl file");
    write_text(dir / "in/half.jsonl",
               "{\"text\": 5}\nno json\n{\"text\": \"" + std::string(200, '['));
    write_text(dir / "in/half.txt.gz", deflate_bytes(prose(77)).substr(0, 90));
    write_text(dir / "in/deep.jsonl", std::string(200000, '[') + "\n");
    const BuildCorpusReport report = build_corpus(small(dir, "out"));
    CHECK(report.train_documents + report.holdout_documents == 31);
    CHECK(report.damaged >= 6);
    for (const char* name :
         {"cut.warc.gz", "junk.warc", "half.jsonl", "half.txt.gz", "deep.jsonl"}) {
        bool named = false;
        for (const std::string& note : report.notes)
            named |= note.find(name) != std::string::npos;
        CAPTURE(name);
        CHECK(named);
    }
}

TEST_CASE("build_corpus refuses what cannot work", "[unit]") {
    const TempDir dir;
    fs::create_directories(dir / "in");
    BuildCorpusOptions options = small(dir, "out");
    CHECK_THAT(error_of(options), Catch::Contains("no readable file"));
    write_text(dir / "in/short.txt", "Nothing much.");
    CHECK_THAT(error_of(options), Catch::Contains("1 too_short"));
    options.inputs = {dir / "absent.warc"};
    CHECK_THAT(error_of(options), Catch::Contains("does not exist"));
    write_text(dir / "x.pdf", "");
    options.inputs = {dir / "x.pdf"};
    CHECK_THAT(error_of(options), Catch::Contains("a kind that is not read"));
    write_text(dir / "x.arc.gz", "");
    options.inputs = {dir / "x.arc.gz"};
    CHECK_THAT(error_of(options), Catch::Contains("ARC files"));
    options.inputs = {};
    CHECK_THAT(error_of(options), Catch::Contains("at least one"));

    write_text(dir / "in/a.txt", prose(1));
    options = small(dir, "in/short.txt/out");  // below a file
    CHECK_THAT(error_of(options), Catch::Contains("cannot create the output directory"));
    options.out_dir = "/proc";  // nobody may write here, root included
    CHECK_THAT(error_of(options), Catch::Contains("not writable"));
    if (geteuid() != 0) {
        fs::create_directories(dir / "fixed");
        fs::permissions(dir / "fixed", fs::perms::owner_read | fs::perms::owner_exec);
        options.out_dir = dir / "fixed";
        CHECK_THAT(error_of(options), Catch::Contains("not writable"));
    }
    options = small(dir, "out");
    options.vocab_size = 10;
    CHECK_THAT(error_of(options), Catch::Contains("10"));
    options = small(dir, "out");
    options.holdout = 0.9;
    CHECK_THAT(error_of(options), Catch::Contains("holdout"));
}

TEST_CASE("stoa data checks its command line", "[unit]") {
    const TempDir dir;
    write_inputs(dir);
    const auto hint = [](const Args& args) {
        try {
            command_data(args);
        } catch (const ConfigError& e) {
            return std::string(e.what());
        }
        return std::string();
    };
    CHECK_THAT(hint({}), Catch::Contains("stoa data build"));
    CHECK_THAT(hint({"biuld"}), Catch::Contains("did you mean `stoa data build`?"));
    CHECK_THAT(hint({"build", dir / "in"}), Catch::Contains("out"));
    const std::string out = dir / "out";
    for (const char* share : {"60%", "-1%", "one", "", "%", "nan"})
        CHECK_THAT(hint({"build", dir / "in", "--out", out, "--holdout", share}),
                   Catch::Contains("holdout"));
    CHECK_THAT(hint({"build", dir / "in", "--out", out, "--tokenizer", "t", "--vocab-size", "300"}),
               Catch::Contains("exclude each other"));
    CHECK_THAT(hint({"build", dir / "in", "--out", out, "--shard-tokens", "0"}),
               Catch::Contains("positive"));
    CHECK(command_data(
              {"build", dir / "in", "--out", out, "--vocab-size", "300", "--holdout", "5%"}) == 0);
    CHECK(fs::exists(dir / "out/train-00000.h5"));
}

TEST_CASE("build_corpus builds from real crawl files", "[unit]") {
    const std::string aut = shared_data("aut_warc/example.warc.gz");
    const std::string whirlwind = shared_data("commoncrawl_whirlwind");
    if (aut.empty() || whirlwind.empty()) {
        WARN("skipped: aut_warc and commoncrawl_whirlwind are not in the shared data");
        return;
    }
    const TempDir dir;
    BuildCorpusOptions options;
    options.inputs = {aut, whirlwind};
    options.out_dir = dir / "out";
    options.vocab_size = 1024;
    const BuildCorpusReport report = build_corpus(options);
    CHECK(report.text_bytes > 200 * 1000);
    CHECK(report.train_documents > 30);
    CHECK(report.duplicates >= 2);  // the same capture with and without gzip
    CHECK(report.damaged == 0);
}
