#include "data/token_loader.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <optional>

#include "data/reasoning/engine.h"
#include "data/token_shard.h"
#include "kernels/core/error.h"
#include "kernels/core/philox.h"

namespace stoa {
namespace {

// Problems set aside per row: a row of seq_len tokens takes whole problems from its own range of
// problem indices, so that rows can be made in any order. No problem has fewer tokens than this.
constexpr std::int64_t kFewestProblemTokens = 8;

/// One sequence of a micro-batch.
struct Row {
    std::int64_t seq_len = 0;
    std::int32_t* tokens = nullptr;
    std::int32_t* targets = nullptr;
    std::int32_t* key_begin = nullptr;
};

MicroBatch make_micro_batch(std::int64_t batch, std::int64_t seq_len) {
    MicroBatch mb{.batch = batch, .seq_len = seq_len, .tokens = {}, .targets = {}, .key_begin = {}};
    const auto n = static_cast<std::size_t>(batch * seq_len);
    mb.tokens.resize(n);
    mb.targets.resize(n);
    mb.key_begin.resize(n);
    return mb;
}

Row row_of(MicroBatch& mb, std::int64_t r) {
    const std::int64_t at = r * mb.seq_len;
    return {mb.seq_len, mb.tokens.data() + at, mb.targets.data() + at, mb.key_begin.data() + at};
}

void pad_row(const Row& row, std::int64_t from, TokenId end_of_text) {
    for (std::int64_t i = from; i < row.seq_len; ++i) {
        row.tokens[i] = end_of_text;
        row.targets[i] = -1;
        row.key_begin[i] = static_cast<std::int32_t>(i);
    }
}

/// Inputs window[0, n), targets window[1, n]; n = window.size() - 1 <= seq_len.
void fill_from_window(const Row& row, const std::vector<TokenId>& window, TokenId end_of_text) {
    const auto n = static_cast<std::int64_t>(window.size()) - 1;
    std::int32_t begin = 0;
    for (std::int64_t i = 0; i < n; ++i) {
        const auto w = static_cast<std::size_t>(i);
        const bool closes = window[w] == end_of_text;
        row.tokens[i] = window[w];
        row.targets[i] = closes ? -1 : window[w + 1];
        row.key_begin[i] = begin;
        if (closes) begin = static_cast<std::int32_t>(i) + 1;
    }
    pad_row(row, n, end_of_text);
}

std::uint64_t window_key(std::uint64_t seed, std::int64_t source, std::int64_t seq_len,
                         std::int64_t epoch) {
    return mix_key(mix_key(seed, static_cast<std::uint64_t>(source)),
                   mix_key(static_cast<std::uint64_t>(seq_len), static_cast<std::uint64_t>(epoch)));
}

std::int64_t window_count(const TokenStream& stream, std::int64_t seq_len) {
    return (stream.size() - 1) / seq_len;
}

/// seq_len + 1 tokens; fewer only from a stream that is shorter.
std::vector<TokenId> read_window(const TokenStream& stream, std::int64_t window,
                                 std::int64_t seq_len) {
    const std::int64_t begin = window * seq_len;
    std::vector<TokenId> tokens(
        static_cast<std::size_t>(std::min(seq_len + 1, stream.size() - begin)));
    stream.read(begin, static_cast<std::int64_t>(tokens.size()), tokens.data());
    return tokens;
}

/// A source of the configuration, opened.
struct Source {
    SourceConfig config;
    std::optional<TokenStream> train, holdout;     // shards
    std::vector<const ReasoningFamily*> families;  // reasoning
};

TokenStream open_stream(const std::string& dir, const std::string& split,
                        const Tokenizer& tokenizer) {
    TokenStream stream = TokenStream::open(dir, split, tokenizer.hash());
    if (stream.info().vocab_size != tokenizer.vocab_size() ||
        stream.info().end_of_text != tokenizer.end_of_text())
        throw DataError(
            {.what = "the shards contradict their tokenizer",
             .where = dir,
             .expected = fmt::format("vocab_size {}, end-of-text {}", tokenizer.vocab_size(),
                                     tokenizer.end_of_text()),
             .actual = fmt::format("{}, {}", stream.info().vocab_size, stream.info().end_of_text)});
    return stream;
}

Source open_source(const SourceConfig& config, const Tokenizer& tokenizer) {
    Source source{.config = config, .train = {}, .holdout = {}, .families = {}};
    if (config.kind == SourceKind::shards) {
        source.train = open_stream(config.path, "train", tokenizer);
        if (TokenStream::exists(config.path, "holdout"))
            source.holdout = open_stream(config.path, "holdout", tokenizer);
        return source;
    }
    for (const std::string& name : config.families)
        source.families.push_back(&reasoning_family(name));
    if (source.families.empty())
        throw DataError({.what = "a reasoning source without families",
                         .where = "data.sources." + config.name + ".families",
                         .expected = "at least one family",
                         .actual = "none"});
    return source;
}

/// Every source that a stage mixes exists and can fill one of its sequences.
void check_stage(const StageConfig& stage, const std::vector<Source>& sources) {
    for (const auto& [name, weight] : stage.mix) {
        const auto it = std::find_if(sources.begin(), sources.end(),
                                     [&](const Source& s) { return s.config.name == name; });
        if (it == sources.end())
            throw DataError({.what = "a stage mixes an unknown source",
                             .where = "stages." + stage.name + ".mix." + name,
                             .expected = "a name from data.sources",
                             .actual = name});
        if (weight > 0.0 && it->train && window_count(*it->train, stage.seq_len) == 0)
            throw DataError({.what = "too few tokens for one sequence",
                             .where = it->config.path,
                             .expected = fmt::format(">= {} (stage {}: seq_len + 1)",
                                                     stage.seq_len + 1, stage.name),
                             .actual = std::to_string(it->train->size()),
                             .hint = "add text to the source, or use a smaller seq_len"});
    }
}

/// A problem as tokens; the first `prompt` of them are its prompt, the last one is end-of-text.
struct Problem {
    std::vector<TokenId> tokens;
    std::int64_t prompt = 0;
};

}  // namespace

struct TokenLoader::State {
    RunConfig config;
    const Tokenizer* tokenizer = nullptr;
    std::vector<Source> sources;

    void fill_shards_row(const Row& row, std::int64_t source, std::int64_t ordinal) const {
        const TokenStream& stream = *sources[static_cast<std::size_t>(source)].train;
        const std::int64_t windows = window_count(stream, row.seq_len);
        const std::uint64_t key =
            window_key(config.run.seed, source, row.seq_len, ordinal / windows);
        const auto window = permute(key, static_cast<std::uint64_t>(windows),
                                    static_cast<std::uint64_t>(ordinal % windows));
        fill_from_window(row, read_window(stream, static_cast<std::int64_t>(window), row.seq_len),
                         tokenizer->end_of_text());
    }

    Problem make_problem(const Source& source, const ReasoningFamily& family, std::int64_t index,
                         std::int64_t seq_len) const {
        const std::int64_t difficulty = source.config.difficulty;
        const RenderedSample text =
            render(make_sample(family, difficulty, config.run.seed, ReasoningSplit::train, index));
        Problem problem{tokenizer->encode(text.prompt), 0};
        problem.prompt = static_cast<std::int64_t>(problem.tokens.size());
        const std::vector<TokenId> solution = tokenizer->encode(text.solution);
        problem.tokens.insert(problem.tokens.end(), solution.begin(), solution.end());
        problem.tokens.push_back(tokenizer->end_of_text());
        const auto needed = static_cast<std::int64_t>(problem.tokens.size());
        if (needed > seq_len)
            throw DataError({.what = "a reasoning problem is longer than a sequence",
                             .where = fmt::format("family {}, difficulty {}, sample {}",
                                                  family.name, difficulty, index),
                             .expected = fmt::format("seq_len >= {}", needed),
                             .actual = std::to_string(seq_len),
                             .hint = "raise the stage's seq_len or lower the source's difficulty"});
        return problem;
    }

    void fill_reasoning_row(const Row& row, std::int64_t source_index, std::int64_t ordinal) const {
        const Source& source = sources[static_cast<std::size_t>(source_index)];
        // Ranges of n and n + 1 do not overlap, nor do those of stages with different seq_len: both
        // start at (tokens handed out before) / 8.
        const std::int64_t first = ordinal * row.seq_len / kFewestProblemTokens;
        const std::int64_t most = std::max<std::int64_t>(1, row.seq_len / kFewestProblemTokens);
        std::int64_t at = 0;
        for (std::int64_t j = 0; j < most; ++j) {
            // Families take turns, and rows begin with each in turn: a long problem that never fits
            // behind another still opens its share of the rows.
            const auto turn = static_cast<std::size_t>(ordinal + j) % source.families.size();
            const Problem p = make_problem(source, *source.families[turn], first + j, row.seq_len);
            const auto n = static_cast<std::int64_t>(p.tokens.size());
            if (n > row.seq_len - at) break;
            for (std::int64_t i = 0; i < n; ++i) {
                const bool closes = i + 1 == n;
                const bool counts = source.config.loss_on == LossOn::all || i + 1 >= p.prompt;
                row.tokens[at + i] = p.tokens[static_cast<std::size_t>(i)];
                row.targets[at + i] =
                    !closes && counts ? p.tokens[static_cast<std::size_t>(i) + 1] : -1;
                row.key_begin[at + i] = static_cast<std::int32_t>(at);
            }
            at += n;
        }
        pad_row(row, at, tokenizer->end_of_text());
    }

    // A stage that cannot hold its problems is found before the first step, not when it begins.
    void check_problems_fit(const StageConfig& stage) const {
        constexpr std::int64_t kTried = 32;
        for (const Source& source : sources) {
            const auto share = stage.mix.find(source.config.name);
            if (share == stage.mix.end() || share->second <= 0.0) continue;
            for (const ReasoningFamily* family : source.families)
                for (std::int64_t i = 0; i < kTried; ++i)
                    make_problem(source, *family, i, stage.seq_len);
        }
    }
};

std::int64_t MicroBatch::valid_tokens() const {
    return std::count_if(targets.begin(), targets.end(), [](std::int32_t t) { return t >= 0; });
}

TokenLoader::TokenLoader(const RunConfig& config, const Tokenizer& tokenizer)
    : state_(std::make_unique<State>()) {
    state_->config = config;
    state_->tokenizer = &tokenizer;
    for (const SourceConfig& source : config.data.sources)
        state_->sources.push_back(open_source(source, tokenizer));
    for (const StageConfig& stage : config.stages) {
        check_stage(stage, state_->sources);
        state_->check_problems_fit(stage);
    }
}
TokenLoader::TokenLoader(TokenLoader&&) noexcept = default;
TokenLoader::~TokenLoader() = default;

std::vector<MicroBatch> TokenLoader::load_step(const CurriculumState& state, std::int64_t dp_rank,
                                               std::int64_t dp_size, std::int64_t dp_shards) const {
    const BatchConfig& batch = state_->config.batch;
    if (dp_size < 1 || dp_rank < 0 || dp_rank >= dp_size || dp_shards % dp_size != 0 ||
        batch.global_batch % (dp_shards * batch.micro_batch) != 0)
        throw DataError(
            {.what = "the batch does not divide over the ranks",
             .where = "batch",
             .expected = fmt::format(
                 "global_batch a multiple of micro_batch * {}, and that of dp = {} > dp_rank",
                 dp_shards, dp_size),
             .actual = fmt::format("global_batch {}, micro_batch {}, dp_rank {}",
                                   batch.global_batch, batch.micro_batch, dp_rank)});
    const std::int64_t seq_len = stage_at(state, state_->config).seq_len;
    const std::int64_t shard_rows = batch.global_batch / dp_shards;
    const std::int64_t local = batch.global_batch / dp_size;
    std::vector<SlotAssignment> slots;
    for (std::int64_t shard = dp_rank; shard < dp_shards; shard += dp_size)
        std::ranges::copy(assign_slots(state_->config, state, shard * shard_rows, shard_rows),
                          std::back_inserter(slots));
    std::vector<MicroBatch> out;
    for (std::int64_t i = 0; i < local; ++i) {
        if (i % batch.micro_batch == 0) out.push_back(make_micro_batch(batch.micro_batch, seq_len));
        const Row row = row_of(out.back(), i % batch.micro_batch);
        const SlotAssignment& slot = slots[static_cast<std::size_t>(i)];
        const bool shards = state_->sources[static_cast<std::size_t>(slot.source)].config.kind ==
                            SourceKind::shards;
        shards ? state_->fill_shards_row(row, slot.source, slot.ordinal)
               : state_->fill_reasoning_row(row, slot.source, slot.ordinal);
    }
    return out;
}

MicroBatch TokenLoader::load_holdout(std::int64_t source, std::int64_t count,
                                     std::int64_t seq_len) const {
    const Source& s = state_->sources.at(static_cast<std::size_t>(source));
    if (!s.holdout || s.holdout->size() < 2)
        throw DataError({.what = "the source has no held-out tokens",
                         .where = s.config.kind == SourceKind::shards
                                      ? s.config.path
                                      : "data.sources." + s.config.name,
                         .expected = "files holdout-*.h5",
                         .actual = "none",
                         .hint = "build the shards with a larger --holdout share"});
    const TokenId end_of_text = state_->tokenizer->end_of_text();
    const std::int64_t windows = window_count(*s.holdout, seq_len);
    const std::int64_t rows = std::min(count, std::max<std::int64_t>(windows, 1));
    MicroBatch mb = make_micro_batch(rows, seq_len);
    for (std::int64_t r = 0; r < rows; ++r) {
        const std::int64_t window = r * windows / rows;
        fill_from_window(row_of(mb, r), read_window(*s.holdout, window, seq_len), end_of_text);
    }
    return mb;
}

}  // namespace stoa
