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
/// whatever dp, micro_batch or restart. dp rank d takes slots [d * n, (d + 1) * n), n =
/// global_batch / dp.
class TokenLoader {
public:
    /// Opens the train split of every shards source and the generators of every reasoning source.
    /// `config` is resolved (vocab, dp). errors: DataError
    TokenLoader(const RunConfig& config, const Tokenizer& tokenizer);
    /// grad_accum micro-batches of dp rank `dp_rank` of `dp_size`.
    std::vector<MicroBatch> load_step(const CurriculumState& state, std::int64_t dp_rank,
                                      std::int64_t dp_size) const;
    /// Held-out sequences of a shards source: `count` rows of `seq_len` from its holdout split,
    /// evenly spaced; fewer when the split is small. errors: DataError when it is empty.
    MicroBatch load_holdout(std::int64_t source, std::int64_t count, std::int64_t seq_len) const;

    TokenLoader(TokenLoader&&) noexcept;
    ~TokenLoader();

private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace stoa
