#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "data/tokenizer/bpe_train.h"
#include "data/tokenizer/tokenizer_json.h"
#include "kernels/core/error.h"
#include "kernels/core/philox.h"
#include "tests/support/catch.h"
#include "tests/support/programs.h"

using namespace stoa;

namespace {

/// Training by the definition, over whole words: count all pairs anew before each merge.
std::vector<std::pair<std::string, std::string>> merges_by_definition(
    const std::vector<std::string>& words, std::size_t count) {
    using Tokens = std::vector<std::string>;
    std::vector<Tokens> corpus;
    for (const std::string& w : words) {
        corpus.emplace_back();
        for (const char c : w)
            corpus.back().emplace_back(1, c);
    }
    std::vector<std::pair<std::string, std::string>> merges;
    std::set<std::string> made;
    while (made.size() < count) {
        std::map<std::pair<std::string, std::string>, int> counts;
        for (const Tokens& t : corpus)
            for (std::size_t i = 0; i + 1 < t.size(); ++i)
                ++counts[{t[i], t[i + 1]}];
        auto best = counts.begin();
        for (auto it = counts.begin(); it != counts.end(); ++it)
            if (it->second >= best->second)
                best = it;  // ties: the greater bytes come later in the map
        if (best == counts.end()) break;
        const auto pair = best->first;
        made.insert(pair.first + pair.second);
        if (std::find(merges.begin(), merges.end(), pair) == merges.end()) merges.push_back(pair);
        for (Tokens& t : corpus)
            for (std::size_t i = 0; i + 1 < t.size(); ++i)
                if (t[i] == pair.first && t[i + 1] == pair.second) {
                    t[i] += t[i + 1];
                    t.erase(t.begin() + static_cast<std::ptrdiff_t>(i) + 1);
                }
    }
    return merges;
}

std::vector<std::pair<std::string, std::string>> as_bytes(const BpeModel& m) {
    std::vector<std::pair<std::string, std::string>> out;
    for (const auto& [l, r] : m.merges)
        out.emplace_back(m.vocab[static_cast<std::size_t>(l)],
                         m.vocab[static_cast<std::size_t>(r)]);
    return out;
}

}  // namespace

TEST_CASE("train_bpe merges as the definition does", "[unit]") {
    for (std::uint64_t seed = 0; seed < 30; ++seed) {
        Draws draws(seed, 3);
        std::vector<std::string> words;
        for (int w = 0; w < 40; ++w) {
            std::string word;
            const std::uint32_t length = 1 + draws.below(12);
            for (std::uint32_t i = 0; i < length; ++i)
                word += static_cast<char>('a' + draws.below(2 + seed % 4));
            words.push_back(word);
        }
        // Each document is one word, so that the split has no say.
        const BpeModel model = train_bpe(words, 256 + 1 + 40);
        CAPTURE(seed);
        CHECK(as_bytes(model) == merges_by_definition(words, 40));
    }
}

TEST_CASE("ties go to the greater bytes", "[unit]") {
    const BpeModel model = train_bpe({"ab", "cd", "xy"}, 260);
    CHECK(as_bytes(model) ==
          std::vector<std::pair<std::string, std::string>>{{"x", "y"}, {"c", "d"}, {"a", "b"}});
}

TEST_CASE("train_bpe stops when no pair is left, and refuses what it cannot do", "[unit]") {
    CHECK(train_bpe({"aa"}, 1000).vocab.size() == 257);
    CHECK(train_bpe({"a", "b"}, 257).merges.empty());
    CHECK_THROWS_AS(train_bpe({"some text"}, 256), DataError);
    CHECK_THROWS_AS(train_bpe({"some text"}, 258, {"<a>", "<b>", kEndOfText}), DataError);
    CHECK_THROWS_AS(train_bpe({}, 300), DataError);
    CHECK_THROWS_AS(train_bpe({"", ""}, 300), DataError);
    const Tokenizer odd(train_bpe({"odd odd odd size"}, 261, {"<pad>", kEndOfText}));
    CHECK(odd.vocab_size() == 261);
    CHECK(odd.end_of_text() == 260);
    CHECK(odd.decode({259}) == "<pad>");
    CHECK_THROWS_AS(Tokenizer(train_bpe({"text"}, 300, {})), DataError);  // no end-of-text
}

TEST_CASE("documents are separate", "[unit]") {
    CHECK(train_bpe({"a", "b", "a", "b"}, 300).merges.empty());
    const std::string text = "to be or not to be";
    CHECK(train_bpe({text, text}, 280).merges == train_bpe({text, text}, 280).merges);
    for (const std::string& token : train_bpe({std::string(100000, 'q')}, 300).vocab)
        CHECK(token.size() <= 256);  // long words are counted in parts
}

TEST_CASE("train_bpe reproduces the reference of corpus.en", "[unit]") {
    const char* shared = std::getenv("STOA_SHARED_DATA");
    const std::string dir =
        (shared ? std::string(shared) : test::source_dir() + "/../shared/data") + "/gpt2_bpe/";
    if (!test::fs::exists(dir + "corpus.en")) {
        WARN("skipped: no corpus.en in " << dir << " (set STOA_SHARED_DATA)");
        return;
    }
    const BpeModel model =
        train_bpe({test::read_text(dir + "corpus.en")}, 500, {kEndOfText}, kGpt2Split);
    std::string merges;
    for (const auto& [l, r] : model.merges)
        merges += bytes_to_unicode(model.vocab[static_cast<std::size_t>(l)]) + " " +
                  bytes_to_unicode(model.vocab[static_cast<std::size_t>(r)]) + "\n";
    CHECK(merges == test::read_text(dir + "train-bpe-reference-merges.txt"));
    std::set<std::string> expected, got{kEndOfText};
    const auto reference =
        nlohmann::json::parse(test::read_text(dir + "train-bpe-reference-vocab.json"));
    for (const auto& [token, id] : reference.items())
        expected.insert(token);
    for (const std::string& token : model.vocab)
        got.insert(bytes_to_unicode(token));
    CHECK(got == expected);

    // GPT-2's own merges, on ids that tiktoken's "gpt2" gives.
    const auto vocab = nlohmann::json::parse(test::read_text(dir + "gpt2_vocab.json"));
    nlohmann::json merge_list = nlohmann::json::array();
    std::ifstream lines(dir + "gpt2_merges.txt");
    for (std::string line; std::getline(lines, line);)
        if (!line.starts_with("#version") && !line.empty()) merge_list.push_back(line);
    const nlohmann::json json = {
        {"added_tokens", {{{"id", 50256}, {"content", kEndOfText}, {"special", true}}}},
        {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
        {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merge_list}}}};
    const test::TempDir temp;
    test::write_text(temp / "gpt2.json", json.dump());
    const Tokenizer gpt2 = Tokenizer::load(temp / "gpt2.json");
    CHECK(gpt2.vocab_size() == 50257);
    using Ids = std::vector<TokenId>;
    CHECK(gpt2.encode("Hello, world! It's 2026.") ==
          Ids{15496, 11, 995, 0, 632, 338, 1160, 2075, 13});
    CHECK(gpt2.encode("  The unhappiness of antidisestablishmentarianism\n\n") ==
          Ids{220, 383, 14274, 42661, 286, 1885, 29207, 44390, 3699, 1042, 628});
    CHECK(gpt2.encode("\xe6\x97\xa5\xe6\x9c\xac\xe8\xaa\x9e na\xc3\xafve \xf0\x9f\x98\x80") ==
          Ids{33768, 98, 17312, 105, 45739, 252, 41492, 30325, 222});
    CHECK(gpt2.encode(std::string(76, 'a')) == Ids(19, 24794));
    std::uint64_t digest = 0;
    const Ids ids = gpt2.encode(test::read_text(dir + "corpus.en"));
    for (const TokenId id : ids)
        digest = digest * 1000003 + static_cast<std::uint64_t>(id);
    CHECK(ids.size() == 30854);
    CHECK(digest == 11420999082498002418u);
}
