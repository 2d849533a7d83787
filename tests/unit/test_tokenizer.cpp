#include <nlohmann/json.hpp>
#include <thread>

#include "data/tokenizer/bpe_train.h"
#include "data/tokenizer/split.h"
#include "kernels/core/error.h"
#include "kernels/core/philox.h"
#include "tests/support/catch.h"
#include "tests/support/programs.h"

using namespace stoa;
using test::TempDir;

namespace {

const char* const kTrainingText =
    "The rain in Spain stays mainly in the plain. The train in the rain stays on the main line, "
    "and "
    "the brain explains the pain again and again.\n\n  for (int i = 0; i < 10; ++i) {\n    sum += "
    "i;\n"
    "  }\n\tIt's what they're saying: we'll see, I'm sure you've heard it, they'd said. 2023 2024 "
    "2025\n"
    "Der Regen f\xc3\xa4llt auf die D\xc3\xa4"
    "cher; \xe6\x97\xa5\xe6\x9c\xac\xe8\xaa\x9e\xe3\x81\xae"
    "\xe6\x97\xa5\xe6\x9c\xac. \xf0\x9f\x98\x80\xf0\x9f\x98\x80 !!! ??? ...\r\n\r\n   end\n";

Tokenizer small_tokenizer() { return Tokenizer(train_bpe({kTrainingText}, 330)); }

/// The tokenizer.json of small_tokenizer() with one change.
template <class Change>
std::string changed_json(const TempDir& dir, Change change) {
    const std::string path = dir / "changed.json";
    small_tokenizer().save(path);
    auto json = nlohmann::json::parse(test::read_text(path));
    change(json);
    test::write_text(path, json.dump());
    return path;
}

std::vector<std::string> pieces_of(const std::string& pattern, const std::string& text) {
    std::vector<std::string> pieces;
    Splitter(pattern).split(text, [&](std::string_view p) { pieces.emplace_back(p); });
    return pieces;
}

std::string random_bytes(std::uint64_t seed, std::size_t count) {
    Draws draws(seed, 0);
    std::string s;
    while (s.size() < count)
        s += static_cast<char>(draws.below(256));
    return s;
}

}  // namespace

TEST_CASE("encode gives the ids that Hugging Face tokenizers gives", "[unit]") {
    // Ids by tokenizers 0.23.3 from the tokenizer.json that small_tokenizer() saves.
    const std::vector<std::pair<std::string, std::vector<TokenId>>> golden = {
        {"The rain in the plain", {287, 297, 267, 260, 32, 282}},
        {"It's they'RE we'll I'm you've",
         {73, 116, 39, 115, 291, 39, 82, 69, 296, 101, 39, 285, 32, 73, 39, 109, 32, 319, 39, 322}},
        {"  for (int i = 0; i < 20; ++i) {\n\n    sum += i;\n  }\t\t\n",
         {32, 299, 325, 32,  40, 256, 116, 264, 32,  61, 32,  48,  59, 264,
          32, 60,  32,  50,  48, 59,  301, 43,  105, 41, 32,  317, 10, 268,
          32, 292, 109, 301, 61, 264, 59,  10,  32,  32, 125, 9,   9,  10}},
        {"12345 2024", {49, 50, 51, 52, 53, 32, 50, 48, 50, 52}},
        {"D\xc3\xa4"
         "cher "
         "\xe6\x97\xa5\xe6\x9c\xac\xe8\xaa\x9e\xf0\x9f\x98\x80\xf0\x9f\x91\xa8\xe2\x80\x8d\xf0\x9f"
         "\x91\xa9",
         {68, 315, 32, 276, 305, 271, 269, 145, 168, 226, 128, 141, 269, 145, 169}},
        {" \t \r\n \n  x\xc2\xa0y\xe3\x80\x80z\xe1\xa0\x8e w",
         {32,  9,   32,  302, 32,  10,  32,  32,  120, 194,
          160, 121, 227, 128, 128, 122, 225, 160, 142, 296}},
        {"!!! ???...\r\n\r\nend   ", {290, 33, 32, 288, 63, 289, 46, 302, 302, 101, 265, 268, 32}},
        {"'\xc5\xbf 'S 'Ll", {39, 197, 191, 32, 39, 83, 32, 39, 76, 108}},
    };
    const Tokenizer t = small_tokenizer();
    CHECK(t.vocab_size() == 330);
    CHECK(t.end_of_text() == 329);
    for (const auto& [text, ids] : golden) {
        CAPTURE(text);
        CHECK(t.encode(text) == ids);
        CHECK(t.decode(ids) == text);
    }
}

TEST_CASE("any bytes come back from encode and decode", "[unit]") {
    const Tokenizer t = small_tokenizer();
    CHECK(t.encode("").empty());
    CHECK(t.decode({t.end_of_text()}) == kEndOfText);
    // Special tokens in the text are text.
    CHECK(t.encode(kEndOfText).size() > 1);
    CHECK(t.decode(t.encode(kEndOfText)) == kEndOfText);
    for (std::uint64_t seed = 0; seed < 200; ++seed) {
        std::string text = random_bytes(seed, 1 + seed * 7);
        if (seed % 2 == 0) text = std::string(kTrainingText).substr(0, seed) + text + kTrainingText;
        CAPTURE(seed);
        CHECK(t.decode(t.encode(text)) == text);
    }
    CHECK_THROWS_AS(t.decode({330}), DataError);
    CHECK_THROWS_AS(t.decode({-1}), DataError);
}

TEST_CASE("ill-formed bytes are pieces of their own", "[unit]") {
    using Pieces = std::vector<std::string>;
    CHECK(pieces_of(kQwen2Split,
                    "ab\xff"
                    "cd") == Pieces{"ab", "\xff", "cd"});
    CHECK(pieces_of(kQwen2Split, "\xc3") == Pieces{"\xc3"});
    CHECK(pieces_of(kQwen2Split, "\xed\xa0\x80") == Pieces{"\xed", "\xa0", "\x80"});  // a surrogate
    CHECK(pieces_of(kQwen2Split, "\xc0\xafx") == Pieces{"\xc0", "\xaf", "x"});        // overlong
    CHECK(pieces_of(kQwen2Split, "\xf4\x90\x80\x80").size() == 4);                    // > U+10FFFF
    CHECK(valid_utf8_prefix("abcdefgh\xf0\x9f\x98\x80z\x80") == 13);
}

TEST_CASE("the two splits", "[unit]") {
    using Pieces = std::vector<std::string>;
    const std::string text = "We'LL go  now: 123\n\n x";
    CHECK(pieces_of(kQwen2Split, text) ==
          Pieces{"We", "'LL", " go", " ", " now", ":", " ", "1", "2", "3", "\n\n", " x"});
    CHECK(pieces_of(kGpt2Split, text) ==
          Pieces{"We", "'", "LL", " go", " ", " now", ":", " 123", "\n\n", " x"});
    // U+180E is no white space (PCRE2's own \s says it is).
    CHECK(pieces_of(kQwen2Split, "!\xe1\xa0\x8e") == Pieces{"!\xe1\xa0\x8e"});
    // Text between the matches of a foreign pattern is kept.
    CHECK(pieces_of("b+", "abbcb") == Pieces{"a", "bb", "c", "b"});
    CHECK(pieces_of("b*", "abbc") == Pieces{"a", "bb", "c"});
    CHECK_THROWS_AS(Splitter("(a"), DataError);
}

TEST_CASE("a megabyte of one kind does not take quadratic time", "[unit]") {
    const std::string letters(1 << 20, 'a');
    const Tokenizer t(train_bpe({letters.substr(0, 300), "    \n\n\n\n !!!!!!!!"}, 280));
    for (const char* unit : {"a", " ", "\n", "!", "\xff", "\t ", "9", "\xe3\x81\x82", "ab"}) {
        std::string text;
        while (text.size() < letters.size())
            text += unit;
        CAPTURE(unit);
        CHECK(t.decode(t.encode(text)) == text);
        CHECK(t.decode(t.encode(text + "x")) == text + "x");
    }
    CHECK(t.encode(letters).size() < letters.size() / 100);  // and the merges are applied
}

TEST_CASE("short and long pieces merge alike", "[unit]") {
    // Pieces around the length where the heap takes over, against merging by the definition.
    const BpeModel model = train_bpe({"abababbaabbabaababbabab aaaabbbbabab bbabbabbab"}, 300);
    const Tokenizer t(model);
    for (std::uint64_t seed = 0; seed < 60; ++seed) {
        Draws draws(seed, 1);
        std::string text;
        for (std::size_t i = 0; i < 20 + seed; ++i)
            text += draws.below(2) == 0 ? 'a' : 'b';
        std::vector<std::string> tokens;
        for (const char c : text)
            tokens.emplace_back(1, c);
        for (bool merged = true; merged;) {
            merged = false;
            for (std::size_t rank = 0; rank < model.merges.size() && !merged; ++rank) {
                const auto& left = model.vocab[static_cast<std::size_t>(model.merges[rank].first)];
                const auto& right =
                    model.vocab[static_cast<std::size_t>(model.merges[rank].second)];
                for (std::size_t i = 0; i + 1 < tokens.size() && !merged; ++i) {
                    if (tokens[i] != left || tokens[i + 1] != right) continue;
                    tokens[i] += tokens[i + 1];
                    tokens.erase(tokens.begin() + static_cast<std::ptrdiff_t>(i) + 1);
                    merged = true;
                }
            }
        }
        std::vector<std::string> got;
        for (const TokenId id : t.encode(text))
            got.push_back(t.decode({id}));
        CAPTURE(text);
        CHECK(got == tokens);
    }
}

TEST_CASE("encode from several threads", "[unit]") {
    const Tokenizer t = small_tokenizer();
    const auto expected = t.encode(kTrainingText);
    std::vector<std::vector<TokenId>> got(4);
    std::vector<std::jthread> threads;
    for (auto& ids : got)
        threads.emplace_back([&] {
            for (int i = 0; i < 50; ++i)
                ids = t.encode(kTrainingText);
        });
    threads.clear();
    for (const auto& ids : got)
        CHECK(ids == expected);
}

TEST_CASE("tokenizer.json keeps the tokenizer", "[unit]") {
    const TempDir dir;
    const Tokenizer t = small_tokenizer();
    t.save(dir / "tokenizer.json");
    const Tokenizer back = Tokenizer::load(dir / "tokenizer.json");
    CHECK(back.hash() == t.hash());
    CHECK(back.encode(kTrainingText) == t.encode(kTrainingText));
    CHECK(std::distance(test::fs::directory_iterator(dir.path), {}) == 1);  // no temporary left

    const auto json = nlohmann::json::parse(test::read_text(dir / "tokenizer.json"));
    CHECK(json["version"] == "1.0");
    CHECK(json["normalizer"].is_null());
    CHECK(json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] == kQwen2Split);
    CHECK(json["pre_tokenizer"]["pretokenizers"][0]["behavior"] == "Isolated");
    CHECK(json["pre_tokenizer"]["pretokenizers"][1]["use_regex"] == false);
    CHECK(json["decoder"]["type"] == "ByteLevel");
    CHECK(json["post_processor"]["type"] == "ByteLevel");
    CHECK(json["added_tokens"][0]["id"] == 329);
    CHECK(json["model"]["vocab"].size() == 329);
    CHECK(json["model"]["vocab"]["\xc4\xa0"] == 32);  // a blank stands as U+0120
    CHECK(json["model"]["merges"][0].is_array());

    CHECK_THROWS_AS(t.save(dir / "missing/tokenizer.json"), DataError);
    CHECK_THROWS_AS(Tokenizer::load(dir / "none.json"), DataError);
}

TEST_CASE("tokenizer.json in its older forms", "[unit]") {
    const TempDir dir;
    const Tokenizer t = small_tokenizer();
    const auto old_merges = [](nlohmann::json& j) {
        for (auto& m : j["model"]["merges"])
            m = m[0].get<std::string>() + " " + m[1].get<std::string>();
    };
    CHECK(Tokenizer::load(changed_json(dir, old_merges)).hash() == t.hash());
    // Special tokens as the last entries of the vocabulary.
    const auto in_vocab = [](nlohmann::json& j) { j["model"]["vocab"][kEndOfText] = 329; };
    CHECK(Tokenizer::load(changed_json(dir, in_vocab)).hash() == t.hash());
    // ByteLevel alone brings GPT-2's split.
    const auto gpt2 = [](nlohmann::json& j) {
        j["pre_tokenizer"] = {
            {"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
    };
    const Tokenizer other = Tokenizer::load(changed_json(dir, gpt2));
    CHECK(other.hash() != t.hash());
    CHECK(other.encode("123").size() == 3);
}

TEST_CASE("what a tokenizer.json cannot say is refused by name", "[unit]") {
    using Json = nlohmann::json;
    struct Case {
        const char* named;
        void (*change)(Json&);
    };
    const Case cases[] = {
        {"normalizer",
         [](Json& j) {
             j["normalizer"] = {{"type", "NFC"}};
         }},
        {"WordPiece", [](Json& j) { j["model"]["type"] = "WordPiece"; }},
        {"model", [](Json& j) { j.erase("model"); }},
        {"post_processor",
         [](Json& j) {
             j["post_processor"] = {{"type", "TemplateProcessing"}};
         }},
        {"decoder",
         [](Json& j) {
             j["decoder"] = {{"type", "Metaspace"}};
         }},
        {"pre_tokenizer", [](Json& j) { j["pre_tokenizer"] = nullptr; }},
        {"Metaspace",
         [](Json& j) {
             j["pre_tokenizer"] = {{"type", "Metaspace"}};
         }},
        {"behavior",
         [](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Removed"; }},
        {"use_regex", [](Json& j) { j["pre_tokenizer"]["pretokenizers"][1]["use_regex"] = true; }},
        {"add_prefix_space",
         [](Json& j) { j["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true; }},
        {"does not compile",
         [](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(a"; }},
        {"byte_fallback", [](Json& j) { j["model"]["byte_fallback"] = true; }},
        {"dropout", [](Json& j) { j["model"]["dropout"] = 0.1; }},
        {"vocab", [](Json& j) { j["model"]["vocab"] = 3; }},
        {"vocab ids", [](Json& j) { j["model"]["vocab"]["a"] = 98; }},
        {"vocab ids", [](Json& j) { j["model"]["vocab"]["a"] = -5; }},
        {"byte has no token",
         [](Json& j) {
             j["model"]["vocab"].erase("\xc4\xa0"), j["model"]["vocab"]["zzz"] = 32,
                                                    j["model"]["merges"] = Json::array();
         }},
        {"byte-level",
         [](Json& j) {
             j["model"]["vocab"].erase("a"), j["model"]["vocab"]["\xe6\x97\xa5"] = 97,
                                             j["model"]["merges"] = Json::array();
         }},
        {"merges[0]",
         [](Json& j) {
             j["model"]["merges"][0] = Json::array({"a", "no such token"});
         }},
        {"merges[1]", [](Json& j) { j["model"]["merges"][1] = 5; }},
        {"stands twice", [](Json& j) { j["model"]["merges"][1] = j["model"]["merges"][0]; }},
        {"result of a merge",
         [](Json& j) {
             j["model"]["merges"][0] = Json::array({"Z", "Q"});
         }},
        {"plain token", [](Json& j) { j["added_tokens"][0]["special"] = false; }},
        {"after the vocabulary", [](Json& j) { j["added_tokens"][0]["id"] = 400; }},
        {"after the vocabulary", [](Json& j) { j["added_tokens"][0]["id"] = 5; }},
        {"end-of-text", [](Json& j) { j["added_tokens"] = Json::array(); }},
        {"JSON object", [](Json& j) { j = Json::array(); }},
    };
    const TempDir dir;
    for (const Case& c : cases) {
        const std::string path = changed_json(dir, c.change);
        CAPTURE(c.named);
        std::string message;
        try {
            (void)Tokenizer::load(path);
        } catch (const DataError& e) {
            message = e.what();
        }
        CHECK(message.find(c.named) != std::string::npos);
        CHECK((message.find(path) != std::string::npos ||
               message.find("compile") != std::string::npos));
    }
}

TEST_CASE("a damaged tokenizer.json never crashes the loader", "[unit]") {
    const TempDir dir;
    const std::string path = dir / "tokenizer.json";
    small_tokenizer().save(path);
    const std::string whole = test::read_text(path);
    Draws draws(11, 0);
    for (int i = 0; i < 150; ++i) {
        std::string damaged = whole;
        if (i % 3 == 0)
            damaged.resize(draws.below(static_cast<std::uint32_t>(whole.size())));
        else
            damaged[draws.below(static_cast<std::uint32_t>(whole.size()))] ^=
                static_cast<char>(1 << draws.below(8));
        test::write_text(path, damaged);
        try {
            (void)Tokenizer::load(path).encode(
                kTrainingText);  // a changed token may still be a tokenizer
        } catch (const DataError&) {
        }
    }
    SUCCEED();
}
