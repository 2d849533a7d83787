// Decoding through the cache continues a text as the training forward would: same model, same
// selection, token by token, whatever the layers attend to.
#include <set>

#include "kernels/matmul.h"
#include "tests/support/catch.h"
#include "tests/support/tensors.h"
#include "tests/support/texts.h"
#include "trainer/inference/decode.h"
#include "trainer/inference/kv_cache.h"

using namespace stoa;
using namespace stoa::test;

namespace {

TrainState make_state(const AttentionConfig& attention, Recipe recipe, std::int64_t seq_len = 96) {
    RunConfig c = tiny_config({.recipe = recipe,
                               .whole_blocks = recipe != Recipe::fp32,
                               .seq_len = seq_len,
                               .attention = attention},
                              1, 1);
    c.model.init_std = 0.3;  // far from indifferent
    c.batch.micro_batch = 1;
    return make_train_state(c, 0, 1, Exec{});
}

// The best next token after `text` by one pass of the training forward over all of it.
TokenId next_by_training_forward(TrainState& s, const std::vector<TokenId>& text) {
    const std::int64_t seq_len = s.config.stages[0].seq_len;
    const auto n = static_cast<std::size_t>(seq_len);
    MicroBatch mb{.batch = 1, .seq_len = seq_len};
    mb.tokens.assign(text.begin(), text.end());
    mb.tokens.resize(n, 0);
    mb.targets.assign(n, -1);
    mb.key_begin.assign(n, 0);
    load_micro_batch(s, mb, Exec{});
    model_forward(s, Mesh{}, Exec{});
    const std::int64_t last = std::ssize(text) - 1;
    const Tensor logits({1, s.dims.vocab.local}, s.dims.formats.wide);
    matmul({.c = logits,
            .a = s.acts.h_final.slice_rows(last, 1),
            .b = s.model.work.lm_head,
            .transpose_b = true},
           Exec{});
    const auto row = logits.as<float>().first(static_cast<std::size_t>(s.dims.vocab.count));
    return static_cast<TokenId>(std::ranges::max_element(row) - row.begin());
}

}  // namespace

TEST_CASE("decoding says what the training forward would, for every kind of attention",
          "[decode]") {
#ifdef __SANITIZE_ADDRESS__  // slow, and the same code for every format
    const Recipe recipe = Recipe::fp32;
    const auto layers = GENERATE(as<std::string>(), "TPW", "DTP");
#else
    const Recipe recipe = GENERATE(Recipe::fp32, Recipe::bf16, Recipe::r30);
    const auto layers = GENERATE(as<std::string>(), "D", "W", "T", "P", "TPW", "DTP");
#endif
    TrainState s = make_state(wide_attention(layers), recipe);
    // Side by side, of unequal lengths, also shorter than a window and a leaf.
    std::vector<std::vector<TokenId>> prompts;
    for (const std::int64_t n : {1, 3, 11, 30, 64, 80})
        prompts.push_back(random_text(static_cast<std::uint64_t>(n), n));
    constexpr std::int64_t kNew = 12;
    const auto out = generate_greedy(s, prompts, kNew, /*stop=*/-1, Mesh{}, Exec{});
    REQUIRE(out.size() == prompts.size());
    std::set<TokenId> seen;
    for (std::size_t p = 0; p < prompts.size(); ++p) {
        std::vector<TokenId> text = prompts[p];
        REQUIRE(std::ssize(out[p]) == kNew);
        for (std::size_t i = 0; i < out[p].size(); ++i) {
            CAPTURE(recipe_name(recipe), layers, p, i);
            CHECK(out[p][i] == next_by_training_forward(s, text));
            text.push_back(out[p][i]);
            seen.insert(out[p][i]);
        }
    }
    CHECK(seen.size() > 5);  // not one word over and over
}

TEST_CASE("a prompt that is taken in parts is one text", "[decode]") {
    const auto layers = GENERATE(as<std::string>(), "TPW", "DDD");
#ifdef __SANITIZE_ADDRESS__  // slow: two parts, not three
    constexpr std::int64_t kLong = 2060, kSeqLen = 2080;
#else
    constexpr std::int64_t kLong = 4100, kSeqLen = 4200;
#endif
    TrainState s = make_state(wide_attention(layers), Recipe::fp32, kSeqLen);
    const std::vector<std::vector<TokenId>> prompts = {random_text(1, kLong), random_text(2, 7),
                                                       random_text(3, 2049)};
    const auto out = generate_greedy(s, prompts, 2, /*stop=*/-1, Mesh{}, Exec{});
    for (std::size_t p = 0; p < prompts.size(); ++p) {
        std::vector<TokenId> text = prompts[p];
        CAPTURE(layers, p);
        CHECK(out[p][0] == next_by_training_forward(s, text));
        text.push_back(out[p][0]);
        CHECK(out[p][1] == next_by_training_forward(s, text));
    }
}

TEST_CASE("texts that grow by unequal parts are each one text", "[decode]") {
    TrainState s = make_state(wide_attention("TPD"), Recipe::fp32);
    const std::vector<TokenId> a = random_text(1, 50), b = random_text(2, 33);
    Decoder d = make_decoder(s, 2, 96);
    const auto part = [](const std::vector<TokenId>& text, std::ptrdiff_t from, std::ptrdiff_t to) {
        return std::vector<TokenId>(text.begin() + from, text.begin() + to);
    };
    feed(s, d, {part(a, 0, 17), part(b, 0, 1)}, Mesh{}, Exec{});
    feed(s, d, {{}, part(b, 1, 30)}, Mesh{}, Exec{});
    feed(s, d, {part(a, 17, 18), {}}, Mesh{}, Exec{});
    const auto next = feed(s, d, {part(a, 18, 50), part(b, 30, 33)}, Mesh{}, Exec{});
    CHECK(d.length == std::vector<std::int64_t>{50, 33});
    CHECK(next[0] == next_by_training_forward(s, a));
    CHECK(next[1] == next_by_training_forward(s, b));
}

TEST_CASE("a text is read in 8 bits whatever way it comes, and then nearly as it is", "[decode]") {
    TrainState s = make_state(wide_attention("TT"), Recipe::fp32);
    const std::vector<TokenId> text = random_text(5, 90);
    const auto last_hidden = [&](std::int64_t at_once, CacheForm form) {
        Decoder d = make_decoder(s, 1, 96, form);
        for (auto from = text.begin(); from < text.end(); from += at_once)
            feed(s, d, {{from, from + std::min<std::ptrdiff_t>(at_once, text.end() - from)}},
                 Mesh{}, Exec{});
        return to_double(d.hidden);
    };
    const auto exact = last_hidden(90, CacheForm::wide), coded = last_hidden(90, CacheForm::fp8);
    CHECK(last_hidden(1, CacheForm::fp8) == coded);
    CHECK(last_hidden(7, CacheForm::fp8) == coded);
    CHECK(coded != exact);
    CHECK(relative_error(coded, exact) < 0.05);
    CHECK(generate_greedy(s, {text}, 3, -1, Mesh{}, Exec{}, CacheForm::fp8)[0].size() == 3);
}

TEST_CASE("the cache of a window does not grow, that of a tree does", "[decode]") {
    const auto bytes = [](const char* layers, std::int64_t capacity) {
        return kv_cache_bytes(
            make_kv_cache(make_state(wide_attention(layers), Recipe::fp32), 2, capacity));
    };
    CHECK(bytes("W", 4096) == bytes("W", 64));
    CHECK(bytes("P", 4096) == bytes("P", 64));
    CHECK(bytes("T", 4096) > 30 * bytes("T", 64));
    CHECK(bytes("D", 4096) == 64 * bytes("D", 64));
}
