#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "configs/run_config.h"
#include "data/curriculum.h"
#include "data/tokenizer/tokenizer.h"

namespace stoa {

/// Host-side arrays (micro_batch, seq_len), row-major.
struct MicroBatch {
    std::int64_t batch = 0, seq_len = 0;
    std::vector<std::int32_t> tokens;
    std::vector<std::int32_t> targets;    // next token; -1 = no loss
    std::vector<std::int32_t> key_begin;  // first position of the token's document in its sequence
    std::int64_t valid_tokens() const;    // targets >= 0
};

/// Samples of a run. Sample `slot` of step `s` is a pure function of (seed, s, slot): the same
/// whatever dp, micro_batch or restart. A step is cut into `dp_shards` equal runs of slots; dp rank
/// d takes shards d, d + dp, d + 2 dp ... (one each where dp_shards = dp).
class TokenLoader {
public:
    /// Opens the train split of every shards source and the generators of every reasoning source.
    /// `config` is resolved (vocab, dp); `tokenizer` must outlive the loader. errors: DataError (no
    /// or damaged shards, another tokenizer's shards, fewer tokens than a stage's seq_len + 1, a
    /// stage that mixes an unknown source)
    TokenLoader(const RunConfig& config, const Tokenizer& tokenizer);
    /// The micro-batches of dp rank `dp_rank` of `dp_size`, shard after shard.
    /// shards: ordinal n is window permute(n % windows) of epoch n / windows; windows are disjoint
    /// runs of seq_len + 1 tokens that share their ends. No target follows an end-of-text token.
    /// reasoning: whole problems, "prompt solution end-of-text", one after the other; the rest of
    /// the row is end-of-text padding without targets. Prompt and solution are encoded apart, so
    /// that generating from a prompt meets the ids of training.
    /// errors: DataError (a problem longer than seq_len)
    std::vector<MicroBatch> load_step(const CurriculumState& state, std::int64_t dp_rank,
                                      std::int64_t dp_size, std::int64_t dp_shards) const;
    /// Held-out sequences of a shards source: `count` rows of `seq_len` from its holdout split,
    /// evenly spaced; fewer when the split is small (one padded row when it is shorter than
    /// seq_len + 1). errors: DataError when it is empty.
    MicroBatch load_holdout(std::int64_t source, std::int64_t count, std::int64_t seq_len) const;

    TokenLoader(TokenLoader&&) noexcept;
    ~TokenLoader();

private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace stoa
