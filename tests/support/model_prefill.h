#pragma once
// A whole small model that reads a long text and goes on with it, with one kind of attention.
#include <chrono>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/support/tiny_run.h"
#include "trainer/inference/decode.h"

namespace stoa::test {

/// 4 layers of width 256, 4 heads of 64, feed-forward 768: at 100,000 tokens dense attention is 97
/// % of its arithmetic.
inline RunConfig prefill_model(const AttentionConfig& attention) {
    RunConfig c =
        tiny_config({.vocab_size = 256, .micro_batch = 1, .global_batch = 1, .seq_len = 64}, 1, 1);
    c.model = {.vocab_size = 256,
               .d_model = 256,
               .n_layers = 4,
               .n_heads = 4,
               .n_kv_heads = 4,
               .head_dim = 64,
               .d_ff = 768,
               .attention = attention};
    c.checkpoint.blocking = true;
    return c;
}

/// The rotary angles of positions beyond those that the run was placed for; they live in `memory`.
inline void extend_positions(TrainState& s, std::int64_t positions, std::vector<Tensor>& memory) {
    const Shape shape{positions, s.dims.head_dim / 2};
    memory.emplace_back(shape, s.dims.formats.wide);
    memory.emplace_back(shape, s.dims.formats.wide);
    s.model.rope_cos = memory[0];
    s.model.rope_sin = memory[1];
    fill_rope(s.model, s.config, 1.0, Exec{});
}

struct PrefillSeconds {
    double read_s = 0.0, step_s = 0.0;  // the text; a token after it
};
inline PrefillSeconds time_prefill(const AttentionConfig& attention, std::int64_t tokens) {
    using Clock = std::chrono::steady_clock;
    const auto since = [](Clock::time_point t) {
        return std::chrono::duration<double>(Clock::now() - t).count();
    };
    constexpr std::int64_t kNew = 16;
    TrainState s = make_train_state(prefill_model(attention), 0, 1, Exec{});
    std::vector<Tensor> memory;
    extend_positions(s, tokens + kNew, memory);
    Decoder d = make_decoder(s, 1, tokens + kNew);
    std::vector<TokenId> text;
    Draws draws(3, 4);
    for (std::int64_t i = 0; i < tokens; ++i)
        text.push_back(static_cast<TokenId>(draws.below(256)));
    const auto begin = Clock::now();
    std::vector<TokenId> next = feed(s, d, {text}, Mesh{}, Exec{});
    PrefillSeconds out{.read_s = since(begin)};
    const auto decoding = Clock::now();
    for (std::int64_t i = 0; i < kNew; ++i)
        next = feed(s, d, {{next[0]}}, Mesh{}, Exec{});
    out.step_s = since(decoding) / static_cast<double>(kNew);
    return out;
}

/// Dense against selected keys, one after the other: how many times as fast they read, and decode.
inline nlohmann::json whole_model_prefill(std::int64_t tokens) {
    const PrefillSeconds sparse = time_prefill({.kind = AttentionKind::dynamic}, tokens);
    const PrefillSeconds dense = time_prefill({}, tokens);
    return {{"tokens", tokens},
            {"dense_s", dense.read_s},
            {"tree_s", sparse.read_s},
            {"ratio", dense.read_s / sparse.read_s},
            {"dense_step_ms", 1e3 * dense.step_s},
            {"tree_step_ms", 1e3 * sparse.step_s},
            {"step_ratio", dense.step_s / sparse.step_s}};
}

}  // namespace stoa::test
