#include <map>
#include <set>

#include "data/reasoning/engine.h"
#include "data/token_loader.h"
#include "data/token_shard.h"
#include "data/tokenizer/bpe_train.h"
#include "kernels/core/error.h"
#include "kernels/core/philox.h"
#include "tests/support/catch.h"
#include "tests/support/programs.h"

using namespace stoa;
using test::TempDir;

namespace {

constexpr std::int64_t kSeqLen = 160;

/// A tokenizer, shards of random documents, two generators, and a configuration of both.
struct Project {
    TempDir dir;
    Tokenizer tokenizer{train_bpe({"Problem: 1 + 2 = 3\nStep 1: 1 + 2 = 3\nAnswer: 3"}, 290)};
    TokenId eot = tokenizer.end_of_text();
    std::vector<TokenId> stream;  // the train split
    RunConfig config;

    Project() {
        stream = write_split("train", 2, 4000);
        write_split("holdout", 1, 1000);
        config.run.seed = 3;
        config.batch = {.global_batch = 8, .micro_batch = 2, .grad_accum = 4};
        config.data.sources = {shards("web", dir.path), reasoning("sums", LossOn::all),
                               reasoning("answers", LossOn::solution)};
        config.stages = {stage("one", kSeqLen, {{"web", 0.5}, {"sums", 0.25}, {"answers", 0.25}}),
                         stage("two", kSeqLen + 13, {{"web", 0.2}, {"answers", 0.8}})};
    }
    static SourceConfig shards(const char* name, const std::string& path) {
        SourceConfig s;
        s.name = name, s.path = path;
        return s;
    }
    static SourceConfig reasoning(const char* name, LossOn loss_on) {
        SourceConfig s;
        s.name = name, s.kind = SourceKind::reasoning, s.loss_on = loss_on;
        s.families = {"chain_sum", "gcd"};
        return s;
    }
    StageConfig stage(const char* name, std::int64_t seq_len,
                      std::map<std::string, double> mix) const {
        StageConfig s;
        s.name = name, s.seq_len = seq_len, s.mix = std::move(mix);
        s.tokens = 20 * config.batch.global_batch * seq_len;
        return s;
    }
    /// Documents of 1 to 50 random tokens.
    std::vector<TokenId> write_split(const std::string& split, int files,
                                     std::size_t tokens_per_file) const {
        std::vector<TokenId> all;
        Draws draws(mix_key(split.size(), 77), 0);
        for (int f = 0; f < files; ++f) {
            std::vector<TokenId> tokens;
            std::vector<std::uint64_t> doc_ends;
            while (tokens.size() < tokens_per_file) {
                for (std::size_t i = 0; i < doc_ends.size() * 7 % 50; ++i)
                    tokens.push_back(
                        static_cast<TokenId>(draws.below(static_cast<std::uint32_t>(eot))));
                tokens.push_back(eot);
                doc_ends.push_back(tokens.size());
            }
            const TokenShardInfo info{.tokenizer_hash = tokenizer.hash(),
                                      .vocab_size = tokenizer.vocab_size(),
                                      .end_of_text = eot,
                                      .split = split,
                                      .source = "test"};
            write_token_shard(dir / split + "-0000" + std::to_string(f) + ".h5", info, tokens,
                              doc_ends);
            all.insert(all.end(), tokens.begin(), tokens.end());
        }
        return all;
    }
};

struct Sequence {
    std::vector<std::int32_t> tokens, targets, key_begin;
    bool operator==(const Sequence&) const = default;
};

std::vector<Sequence> rows_of(const std::vector<MicroBatch>& batches) {
    std::vector<Sequence> rows;
    for (const MicroBatch& mb : batches)
        for (std::int64_t r = 0; r < mb.batch; ++r) {
            const auto cut = [&](const std::vector<std::int32_t>& v) {
                return std::vector<std::int32_t>(v.begin() + r * mb.seq_len,
                                                 v.begin() + (r + 1) * mb.seq_len);
            };
            rows.push_back({cut(mb.tokens), cut(mb.targets), cut(mb.key_begin)});
        }
    return rows;
}

std::vector<Sequence> global_rows(const TokenLoader& loader, const CurriculumState& s,
                                  std::int64_t dp) {
    std::vector<Sequence> rows;
    for (std::int64_t rank = 0; rank < dp; ++rank)
        for (Sequence& row : rows_of(loader.load_step(s, rank, dp, dp)))
            rows.push_back(std::move(row));
    return rows;
}

CurriculumState state_after(const RunConfig& c, int steps) {
    CurriculumState s = initial_curriculum(c);
    for (int i = 0; i < steps; ++i)
        s = advance(s, c);
    return s;
}

std::string refusal(const RunConfig& c, const Tokenizer& t) {
    try {
        (void)TokenLoader(c, t);
    } catch (const DataError& e) {
        return e.what();
    }
    return "";
}

}  // namespace

TEST_CASE("a step has the same rows on any mesh, in any order, after any restart", "[unit]") {
    const Project p;
    const TokenLoader loader(p.config, p.tokenizer);
    for (const int step : {31, 0, 19, 20, 5}) {  // also across the stage switch at 20
        const CurriculumState s = state_after(p.config, step);
        const auto rows = global_rows(loader, s, 1);
        REQUIRE(rows.size() == 8);
        CHECK(global_rows(loader, s, 2) == rows);
        CHECK(global_rows(loader, s, 4) == rows);
        for (const std::int64_t micro_batch : {1, 4, 8}) {
            RunConfig c = p.config;
            c.batch.micro_batch = micro_batch;
            const TokenLoader other(c, p.tokenizer);  // a restart too
            CHECK(global_rows(other, s, 1) == rows);
            CHECK(other.load_step(s, 0, 1, 1).size() == static_cast<std::size_t>(8 / micro_batch));
        }
    }
    CHECK_THROWS_AS(loader.load_step(state_after(p.config, 0), 0, 3, 3), DataError);
    CHECK_THROWS_AS(loader.load_step(state_after(p.config, 0), 2, 2, 2), DataError);
}

TEST_CASE("rows of shards are windows of the stream, each once per epoch", "[unit]") {
    Project p;
    p.config.stages = {p.stage("one", 64, {{"web", 1.0}})};
    p.config.stages[0].tokens = 8 * 64 * 80;
    const TokenLoader loader(p.config, p.tokenizer);
    const auto windows = (static_cast<std::int64_t>(p.stream.size()) - 1) / 64;
    std::map<std::vector<TokenId>, std::int64_t> window_of;
    for (std::int64_t w = 0; w < windows; ++w) {
        std::vector<TokenId> tokens(p.stream.begin() + w * 64, p.stream.begin() + w * 64 + 65);
        for (TokenId& t : tokens)
            t += 1;
        window_of[tokens] = w;
    }
    REQUIRE(static_cast<std::int64_t>(window_of.size()) == windows);  // all distinct
    std::vector<std::int64_t> order;
    CurriculumState s = initial_curriculum(p.config);
    for (; static_cast<std::int64_t>(order.size()) < 3 * windows; s = advance(s, p.config))
        for (const Sequence& row : global_rows(loader, s, 1)) {
            std::int32_t begin = 0;
            std::vector<TokenId> window;
            for (std::size_t i = 0; i < 64; ++i) {
                const bool closes = row.tokens[i] == p.eot;
                CHECK(row.key_begin[i] == begin);
                CHECK((row.targets[i] == -1) == closes);
                if (closes)
                    begin = static_cast<std::int32_t>(i) + 1;
                else if (i + 1 < 64)
                    CHECK(row.targets[i] == row.tokens[i + 1]);
                window.push_back(row.tokens[i] + 1);
            }
            // The window by its first 64 tokens and, where it is a target, the 65th.
            auto it = window_of.lower_bound(window);
            REQUIRE(it != window_of.end());
            CHECK(std::equal(window.begin(), window.end(), it->first.begin()));
            if (row.targets[63] >= 0) CHECK(row.targets[63] + 1 == it->first[64]);
            order.push_back(it->second);
        }
    for (std::int64_t epoch = 0; epoch < 3; ++epoch)
        CHECK(std::set<std::int64_t>(order.begin() + epoch * windows,
                                     order.begin() + (epoch + 1) * windows)
                  .size() == static_cast<std::size_t>(windows));
    const std::vector<std::int64_t> first(order.begin(), order.begin() + windows),
        second(order.begin() + windows, order.begin() + 2 * windows);
    CHECK(first != second);
    CHECK_FALSE(std::is_sorted(first.begin(), first.end()));
}

TEST_CASE("rows of reasoning are whole problems", "[unit]") {
    Project p;
    const auto loss_on = GENERATE(LossOn::all, LossOn::solution);
    p.config.stages = {
        p.stage("one", kSeqLen, {{loss_on == LossOn::all ? "sums" : "answers", 1.0}}),
        p.stage("two", 2 * kSeqLen - 1, {{loss_on == LossOn::all ? "sums" : "answers", 1.0}})};
    const TokenLoader loader(p.config, p.tokenizer);
    std::size_t problems = 0;
    std::int64_t used = 0, positions = 0;
    for (CurriculumState s = initial_curriculum(p.config); !run_finished(s, p.config);
         s = advance(s, p.config))
        for (const Sequence& row : global_rows(loader, s, 1)) {
            const auto n = row.tokens.size();
            positions += static_cast<std::int64_t>(n);
            std::size_t at = 0;
            while (at < n && row.tokens[at] != p.eot) {
                std::size_t end = at;
                while (end < n && row.tokens[end] != p.eot)
                    ++end;
                REQUIRE(end < n);  // closed inside the row
                const std::string text =
                    p.tokenizer.decode({row.tokens.begin() + static_cast<std::ptrdiff_t>(at),
                                        row.tokens.begin() + static_cast<std::ptrdiff_t>(end)});
                CHECK(text.starts_with("Problem: "));
                CHECK(extract_answer(text) != "");
                ++problems;
                const std::string prompt = text.substr(0, text.find('\n') + 1);
                const std::size_t first =
                    at + p.tokenizer.encode(prompt).size();  // of the solution
                for (std::size_t i = at; i <= end; ++i) {
                    CHECK(row.key_begin[i] == static_cast<std::int32_t>(at));
                    const bool counts = i < end && (loss_on == LossOn::all || i + 1 >= first);
                    CHECK(row.targets[i] == (counts ? row.tokens[i + 1] : -1));
                }
                used += static_cast<std::int64_t>(end + 1 - at);
                at = end + 1;
            }
            CHECK(at > 0);
            for (; at < n; ++at) {  // padding
                CHECK(row.tokens[at] == p.eot);
                CHECK(row.targets[at] == -1);
                CHECK(row.key_begin[at] == static_cast<std::int32_t>(at));
            }
        }
    CHECK(problems > 320);
    CHECK(used * 2 > positions);  // more problems than padding
}

TEST_CASE("no problem index is used twice, across rows and stages", "[unit]") {
    // Problems of one source differ unless drawn alike: count exact repeats against fresh samples.
    Project p;
    p.config.data.sources[1].families = {"long_multiplication"};
    p.config.data.sources[1].difficulty = 3;
    p.config.stages = {p.stage("one", 1001, {{"sums", 1.0}}), p.stage("two", 1500, {{"sums", 1.0}}),
                       p.stage("three", 999, {{"sums", 1.0}})};
    for (StageConfig& s : p.config.stages)
        s.tokens = 3 * 8 * s.seq_len;
    const TokenLoader loader(p.config, p.tokenizer);
    std::map<std::string, int> questions;
    for (CurriculumState s = initial_curriculum(p.config); !run_finished(s, p.config);
         s = advance(s, p.config))
        for (const Sequence& row : global_rows(loader, s, 1)) {
            std::vector<TokenId> problem;
            for (const TokenId t : row.tokens) {
                if (t != p.eot) {
                    problem.push_back(t);
                } else if (!problem.empty()) {
                    ++questions[p.tokenizer.decode(problem)];
                    problem.clear();
                }
            }
        }
    int repeats = 0;
    for (const auto& [text, n] : questions)
        repeats += n - 1;
    CAPTURE(questions.size());
    CHECK(questions.size() > 100);
    CHECK(repeats <= 2);
}

TEST_CASE("generating from an encoded prompt meets the ids of training", "[unit]") {
    Project p;
    p.config.stages = {p.stage("one", 400, {{"answers", 1.0}})};
    const TokenLoader loader(p.config, p.tokenizer);
    const auto sample =
        make_sample(reasoning_family("chain_sum"), 1, p.config.run.seed, ReasoningSplit::train, 0);
    const RenderedSample text = render(sample);
    const Sequence row = global_rows(loader, initial_curriculum(p.config), 1)[0];  // ordinal 0
    const auto prompt = p.tokenizer.encode(text.prompt),
               solution = p.tokenizer.encode(text.solution);
    CHECK(std::equal(prompt.begin(), prompt.end(), row.tokens.begin()));
    CHECK(std::equal(solution.begin(), solution.end(),
                     row.targets.begin() + static_cast<std::ptrdiff_t>(prompt.size()) - 1));
    CHECK(std::count_if(row.targets.begin(),
                        row.targets.begin() + static_cast<std::ptrdiff_t>(prompt.size()) - 1,
                        [](int t) { return t >= 0; }) == 0);
}

TEST_CASE("held-out rows are evenly spaced", "[unit]") {
    const Project p;
    const TokenLoader loader(p.config, p.tokenizer);
    const MicroBatch four = loader.load_holdout(0, 4, 100);
    CHECK(four.batch == 4);
    CHECK(four.seq_len == 100);
    CHECK(four.valid_tokens() > 300);
    const TokenStream held_out = TokenStream::open(p.dir.path, "holdout", "");
    const std::int64_t windows = (held_out.size() - 1) / 100;
    CHECK(windows >= 9);
    CHECK(loader.load_holdout(0, 1000, 100).batch == windows);  // what there is
    std::vector<TokenId> tokens(100);
    held_out.read(2 * windows / 4 * 100, 100, tokens.data());
    CHECK(rows_of({four})[2].tokens == std::vector<std::int32_t>(tokens.begin(), tokens.end()));
    const MicroBatch padded = loader.load_holdout(0, 4, 5000);
    CHECK(padded.batch == 1);
    CHECK(padded.tokens.back() == p.eot);
    CHECK(padded.targets.back() == -1);
    CHECK_THROWS_AS(loader.load_holdout(1, 4, 100), DataError);
    for (const auto& entry : test::fs::directory_iterator(p.dir.path))
        if (entry.path().filename().string().starts_with("holdout")) test::fs::remove(entry.path());
    CHECK_THROWS_AS(TokenLoader(p.config, p.tokenizer).load_holdout(0, 4, 100), DataError);
}

TEST_CASE("the loader refuses what cannot train", "[unit]") {
    const Project p;
    CHECK(refusal(p.config, p.tokenizer).empty());
    CHECK(
        refusal(p.config, Tokenizer(train_bpe({"another text"}, 265))).find("another tokenizer") !=
        std::string::npos);
    RunConfig c = p.config;
    c.stages[1].mix = {{"wbe", 1.0}};
    CHECK(refusal(c, p.tokenizer).find("wbe") != std::string::npos);
    c = p.config;
    c.stages[0].seq_len = static_cast<std::int64_t>(p.stream.size());
    CHECK(refusal(c, p.tokenizer).find("seq_len") != std::string::npos);
    c = p.config;
    c.data.sources[0].path = p.dir / "missing";
    CHECK(refusal(c, p.tokenizer).find("missing") != std::string::npos);
    c = p.config;
    c.data.sources[1].families = {"chain_sun"};
    CHECK(refusal(c, p.tokenizer).find("chain_s") != std::string::npos);
    c.data.sources[1].families.clear();
    CHECK(refusal(c, p.tokenizer).find("families") != std::string::npos);
    c = p.config;
    c.stages = {p.stage("short", 20, {{"sums", 1.0}})};
    std::string message;
    try {
        (void)TokenLoader(c, p.tokenizer).load_step(initial_curriculum(c), 0, 1, 1);
    } catch (const DataError& e) {
        message = e.what();
    }
    CHECK(message.find("family chain_sum, difficulty 1") != std::string::npos);
    CHECK(message.find("seq_len >= ") != std::string::npos);
}

TEST_CASE("families share rows that hold only one or two problems", "[unit]") {
    // Once every such row began with the first family, and the second was never drawn.
    Project p;
    p.config.stages = {p.stage("one", kSeqLen, {{"sums", 1.0}})};
    const TokenLoader loader(p.config, p.tokenizer);
    const auto opening = [&](const Sequence& row) {
        const auto end = std::find(row.tokens.begin(), row.tokens.end(), p.eot);
        return p.tokenizer.decode({row.tokens.begin(), end});
    };
    int sums = 0, divisors = 0;
    for (CurriculumState s = initial_curriculum(p.config); !run_finished(s, p.config);
         s = advance(s, p.config))
        for (const Sequence& row : global_rows(loader, s, 1))
            ++(opening(row).find("Compute") != std::string::npos ? sums : divisors);
    CHECK(sums == divisors);  // 20 steps of 8 rows, opened in turn
    CHECK(sums + divisors == 160);
}

TEST_CASE("a stage too short for its problems is refused before the first step", "[unit]") {
    Project p;
    p.config.stages.push_back(p.stage("short", 16, {{"sums", 1.0}}));
    CHECK(refusal(p.config, p.tokenizer).find("longer than a sequence") != std::string::npos);
}
