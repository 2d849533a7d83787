#include <hdf5.h>

#include "data/token_shard.h"
#include "kernels/core/error.h"
#include "kernels/core/philox.h"
#include "tests/support/catch.h"
#include "tests/support/programs.h"

using namespace stoa;
using test::TempDir;

namespace {

struct Content {
    TokenShardInfo info{.tokenizer_hash = "abc123",
                        .vocab_size = 300,
                        .end_of_text = 7,
                        .split = "train",
                        .source = "a test"};
    std::vector<TokenId> tokens;
    std::vector<std::uint64_t> doc_ends;
};

Content make_content(std::uint64_t seed, std::size_t documents, std::int64_t vocab_size = 300) {
    Content c;
    c.info.vocab_size = vocab_size;
    Draws draws(seed, 0);
    for (std::size_t d = 0; d < documents; ++d) {
        for (std::uint32_t n = draws.below(50); n > 0; --n) {
            const auto t =
                static_cast<TokenId>(draws.below(static_cast<std::uint32_t>(vocab_size)));
            if (t != c.info.end_of_text) c.tokens.push_back(t);
        }
        c.tokens.push_back(c.info.end_of_text);
        c.doc_ends.push_back(c.tokens.size());
    }
    return c;
}

void write(const std::string& path, const Content& c) {
    write_token_shard(path, c.info, c.tokens, c.doc_ends);
}

std::vector<TokenId> read_all(const TokenStream& stream) {
    std::vector<TokenId> out(static_cast<std::size_t>(stream.size()));
    stream.read(0, stream.size(), out.data());
    return out;
}

std::string refusal(const std::string& dir, const std::string& hash = "") {
    try {
        (void)TokenStream::open(dir, "train", hash);
    } catch (const DataError& e) {
        return e.what();
    }
    return "";
}

}  // namespace

TEST_CASE("token shards keep their tokens", "[unit]") {
    // 65536 is the last vocabulary that fits 16 bits.
    const auto vocab_size =
        GENERATE(std::int64_t{300}, std::int64_t{65536}, std::int64_t{65537}, std::int64_t{200003});
    const TempDir dir;
    Content a = make_content(1, 40, vocab_size), b = make_content(2, 1, vocab_size),
            c = make_content(3, 25, vocab_size);
    a.tokens.insert(a.tokens.begin(), static_cast<TokenId>(vocab_size - 1));
    for (auto& end : a.doc_ends)
        ++end;
    write(dir / "train-00001.h5", b);  // name order, not time order
    write(dir / "train-00000.h5", a);
    write(dir / "train-00002.h5", c);
    Content held_out = make_content(4, 3, vocab_size);
    held_out.info.split = "holdout";
    write(dir / "holdout-00000.h5", held_out);
    CHECK(std::distance(test::fs::directory_iterator(dir.path), {}) == 4);  // no temporary left

    const TokenStream stream = TokenStream::open(dir.path, "train", "abc123");
    std::vector<TokenId> all = a.tokens;
    all.insert(all.end(), b.tokens.begin(), b.tokens.end());
    all.insert(all.end(), c.tokens.begin(), c.tokens.end());
    CHECK(read_all(stream) == all);
    CHECK(stream.info().vocab_size == vocab_size);
    CHECK(stream.info().end_of_text == 7);
    CHECK(stream.info().source == "a test");
    Draws draws(5, 0);
    for (int i = 0; i < 200; ++i) {  // across shard borders
        const auto begin = draws.below(static_cast<std::uint32_t>(all.size()));
        const auto count = draws.below(static_cast<std::uint32_t>(all.size()) - begin + 1);
        std::vector<TokenId> got(count);
        stream.read(begin, count, got.data());
        CHECK(std::equal(got.begin(), got.end(), all.begin() + begin));
    }
    TokenId one = 0;
    CHECK_THROWS_AS(stream.read(stream.size(), 1, &one), DataError);
    CHECK_THROWS_AS(stream.read(-1, 1, &one), DataError);
    CHECK(read_all(TokenStream::open(dir.path, "holdout", "")) == held_out.tokens);
}

TEST_CASE("a token shard is an HDF5 file like any other", "[unit]") {
    const TempDir dir;
    const Content c = make_content(1, 40);
    write(dir / "train-00000.h5", c);
    const hid_t file = H5Fopen((dir / "train-00000.h5").c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
    REQUIRE(file >= 0);
    const hid_t set = H5Dopen2(file, "tokens", H5P_DEFAULT);
    std::vector<TokenId> got(c.tokens.size());
    CHECK(H5Dread(set, H5T_NATIVE_INT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, got.data()) >= 0);
    CHECK(got == c.tokens);
    const hid_t ends = H5Dopen2(file, "doc_end", H5P_DEFAULT);
    std::vector<std::uint64_t> doc_ends(c.doc_ends.size());
    CHECK(H5Dread(ends, H5T_NATIVE_UINT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, doc_ends.data()) >= 0);
    CHECK(doc_ends == c.doc_ends);
    for (const char* name :
         {"format", "tokenizer_hash", "vocab_size", "end_of_text", "split", "source", "checksum"})
        CHECK(H5Aexists(file, name) > 0);
    H5Dclose(ends);
    H5Dclose(set);
    H5Fclose(file);
}

TEST_CASE("damaged shards are refused, and HDF5 never sees them", "[unit]") {
    const TempDir dir;
    const std::string path = dir / "train-00000.h5";
    write(path, make_content(1, 60));
    const std::string whole = test::read_text(path);
    CHECK(refusal(dir.path).empty());
    Draws draws(17, 0);
    for (int i = 0; i < 224; ++i) {  // one bit;
        std::string damaged = whole;
        // the last 24 bytes are the trailer
        const std::size_t at = i < 24 ? whole.size() - 1 - static_cast<std::size_t>(i)
                                      : draws.below(static_cast<std::uint32_t>(whole.size()));
        damaged[at] = static_cast<char>(damaged[at] ^ (1 << draws.below(8)));
        test::write_text(path, damaged);
        CAPTURE(at);
        CHECK(refusal(dir.path).find(path) != std::string::npos);
    }
    for (int i = 0; i < 60; ++i) {  // cut short
        const auto length = i < 30 ? static_cast<std::uint32_t>(i)
                                   : draws.below(static_cast<std::uint32_t>(whole.size()));
        test::write_text(path, whole.substr(0, length));
        CAPTURE(length);
        CHECK(refusal(dir.path).find(path) != std::string::npos);
    }
    for (const std::string& other :
         {whole + "x", whole + whole, std::string(5000, '\0'), std::string("text")}) {
        test::write_text(path, other);
        CHECK(refusal(dir.path).find(path) != std::string::npos);
    }
    test::write_text(path, whole);
    CHECK(refusal(dir.path).empty());
}

TEST_CASE("mixed or foreign shards are refused", "[unit]") {
    const TempDir dir;
    CHECK(refusal(dir.path).find("no token shards") != std::string::npos);
    CHECK(refusal(dir / "missing").find("missing") != std::string::npos);
    Content c = make_content(1, 10);
    write(dir / "train-00000.h5", c);
    CHECK(refusal(dir.path, "other").find("another tokenizer") != std::string::npos);
    c.info.tokenizer_hash = "def456";
    write(dir / "train-00001.h5", c);
    CHECK(refusal(dir.path).find("train-00001.h5") != std::string::npos);
    CHECK(refusal(dir.path, "abc123").find("def456") != std::string::npos);
    c.info.tokenizer_hash = "abc123";
    c.info.split = "holdout";
    write(dir / "train-00001.h5", c);
    CHECK(refusal(dir.path).find("split") != std::string::npos);
    c.info.split = "train";
    c.info.vocab_size = 301;
    write(dir / "train-00001.h5", c);
    CHECK(refusal(dir.path).find("differ") != std::string::npos);
    CHECK(TokenStream::exists(dir.path, "train"));
    CHECK_FALSE(TokenStream::exists(dir.path, "holdout"));
}

TEST_CASE("write_token_shard refuses what no reader would accept", "[unit]") {
    const TempDir dir;
    const auto refused = [&](auto change) {
        Content c = make_content(1, 10);
        change(c);
        CHECK_THROWS_AS(write(dir / "train-00000.h5", c), DataError);
        CHECK(test::fs::is_empty(dir.path));
    };
    refused([](Content& c) { c.tokens.clear(), c.doc_ends.clear(); });
    refused([](Content& c) { c.tokens[0] = 300; });
    refused([](Content& c) { c.tokens[0] = -1; });
    refused([](Content& c) { c.doc_ends.pop_back(); });
    refused([](Content& c) { c.doc_ends.back() += 1; });
    refused([](Content& c) { std::swap(c.doc_ends[0], c.doc_ends[1]); });
    refused([](Content& c) { c.tokens.back() = 8; });
    CHECK_THROWS_AS(write(dir / "missing/train-00000.h5", make_content(1, 2)), DataError);
}
