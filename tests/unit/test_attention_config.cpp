#include "configs/attention_config.h"
#include "configs/load_run_config.h"
#include "tests/support/catch.h"

using namespace stoa;

namespace {

std::string text_with(const std::string& model_attention, const std::string& second_stage) {
    return "stages:\n"  // before the model, from which the second stage takes what it does not say
           "  - {name: short, tokens: 1M tokens, seq_len: 256, mix: {web: 1}}\n"
           "  - {name: long, tokens: 1M tokens, seq_len: 4096, mix: {web: 1}" +
           second_stage +
           "}\n"
           "model:\n"
           "  n_layers: 5\n" +
           model_attention +
           "data:\n"
           "  tokenizer: tokenizer.json\n"
           "  sources:\n"
           "    web: {kind: shards, path: shards/web}\n"
           "precision: {recipe: fp32}\n";
}

RunConfig load(const std::string& text, const std::vector<std::string>& overrides = {}) {
    return load_run_config_text(text, "c.yaml", overrides).config;
}

std::string report(const std::string& text, const std::vector<std::string>& overrides = {}) {
    try {
        (void)load(text, overrides);
    } catch (const ConfigError& e) {
        return e.what();
    }
    FAIL("accepted:\n" << text);
    return "";
}

}  // namespace

TEST_CASE("without a word about it attention is dense", "[attention_config]") {
    const RunConfig c = load(text_with("", ""));
    for (const StageConfig& s : c.stages)
        CHECK(layer_attention(attention_of(c, s), 0) == LayerAttention::dense);
    CHECK_FALSE(learns_importance(c, 0));
    CHECK(rotated_part(c) == 1.0);
}

TEST_CASE("a stage begins from the model's attention and says what differs", "[attention_config]") {
    const RunConfig c = load(text_with("  attention: {window: 64, leaf: 4}\n",
                                       ", attention: {kind: dynamic, layers: PPPT, beam: 4}"));
    const AttentionConfig &first = attention_of(c, c.stages[0]),
                          &second = attention_of(c, c.stages[1]);
    CHECK(first.kind == AttentionKind::dense);
    CHECK(second.kind == AttentionKind::dynamic);
    CHECK(second.window == 64);
    CHECK(second.leaf == 4);
    CHECK(second.beam == 4);
    CHECK(layer_attention(second, 2) == LayerAttention::importance);
    CHECK(layer_attention(second, 3) == LayerAttention::tree);
    CHECK(layer_attention(second, 4) == LayerAttention::importance);  // the letters repeat
    CHECK(learns_importance(c, 0));  // from the first step on: the second stage uses it
    CHECK(rotated_part(c) == 0.5);
}

TEST_CASE("a kind alone is enough, on the command line, too", "[attention_config]") {
    CHECK(load(text_with("  attention: window\n", "")).model.attention.kind ==
          AttentionKind::window);
    const RunConfig c =
        load(text_with("", ""), {"model.attention.kind=dynamic", "model.attention.rotate=1",
                                 "stages.0.attention=dense", "stages.1.attention.stretch=4"});
    CHECK(c.model.attention.kind == AttentionKind::dynamic);
    CHECK(attention_of(c, c.stages[0]).kind == AttentionKind::dense);
    CHECK(attention_of(c, c.stages[1]).kind == AttentionKind::dynamic);
    CHECK(attention_of(c, c.stages[1]).stretch == 4.0);
    CHECK(rotated_part(c) == 1.0);
}

TEST_CASE("the resolved configuration loads back to the same attention", "[attention_config]") {
    const LoadedConfig a = load_run_config_text(
        text_with("  attention: {kind: dynamic, window: 128, sinks: 2, rotate: 0.25}\n",
                  ", attention: {selector: importance, keep: 64}"),
        "c.yaml", {});
    const RunConfig b = load_run_config_text(a.resolved_yaml, "resolved.yaml", {}).config;
    CHECK(b.model.attention == a.config.model.attention);
    REQUIRE(b.stages[1].attention);
    CHECK(*b.stages[1].attention == *a.config.stages[1].attention);
    CHECK_FALSE(b.stages[0].attention);
}

TEST_CASE("what helps importance in training is a stage's, and loads back", "[attention_config]") {
    const std::string text = text_with(
        "  attention: {kind: dynamic, selector: importance, window: 64, dense_rows: 1, distil: "
        "0.5}\n",
        ", attention: {dense_rows: 0.05}");
    const LoadedConfig a = load_run_config_text(text, "c.yaml", {});
    const AttentionConfig &first = attention_of(a.config, a.config.stages[0]),
                          &second = attention_of(a.config, a.config.stages[1]);
    CHECK(first.dense_rows == 1.0);
    CHECK(second.dense_rows == 0.05);
    CHECK(second.distil == 0.5);
    CHECK(print_attention(second).find("dense_rows: 0.05") != std::string::npos);
    const RunConfig b = load_run_config_text(a.resolved_yaml, "resolved.yaml", {}).config;
    CHECK(b.model.attention == first);
    CHECK(attention_of(b, b.stages[1]) == second);
    // A stage of another kind has no importance, and needs none.
    CHECK_NOTHROW(load(text, {"stages.0.attention=dense"}));
    CHECK_NOTHROW(load(text, {"stages.0.attention={selector: tree}"}));
}

TEST_CASE("attention that cannot be is refused by name, never dense in silence",
          "[attention_config]") {
    const auto refused = [](const std::string& attention, const std::string& expected,
                            const std::string& second = "") {
        const std::string said = report(text_with("  attention: " + attention + "\n", second));
        CAPTURE(attention, said);
        CHECK(said.find(expected) != std::string::npos);
    };
    refused("sparse", "expected dense | window | dynamic");
    refused("{kind: dynamc}", "did you mean 'dynamic'?");
    refused("{kind: dynamic, widow: 64}", "did you mean 'model.attention.window'?");
    refused("{kind: dynamic, window: many}", "model.attention.window");
    refused("{kind: dynamic, window: 256}", "less than the 256 tokens of stage 'short'");
    refused("{kind: window, window: 4096}", "less than the 256 tokens of stage 'short'");
    refused("{kind: dynamic, leaf: 12, window: 96}", "a power of two");
    refused("{kind: dynamic, leaf: 16, window: 100}", "a multiple of leaf (16)");
    refused("{kind: dynamic, leaf: 2, sinks: 3, window: 64}", "at most a leaf (2)");
    refused("{kind: dynamic, beam: 16, leaf: 16, window: 64}",
            "less than the 256 tokens of stage 'short'");
    refused("{kind: dynamic, selector: importance, keep: 300, window: 64}",
            "less than the 256 tokens of stage 'short'");
    refused("{kind: dynamic, window: 64, dense_rows: 0.2}",
            "model.attention.dense_rows: expected layers that select by importance, got none in "
            "stage 'short'");
    refused("{kind: dynamic, window: 64, distil: 1}",
            "model.attention.distil: expected layers that select by importance");
    refused("{kind: window, window: 64, dense_rows: 0.2}", "expected layers that select by");
    refused("{kind: dynamic, layers: TP, window: 64, distil: 1}",
            "model.attention.distil: expected dense_rows above 0");
    refused("{kind: dynamic, layers: TP, window: 64, dense_rows: 0.2, distil: 1}",
            "stages.1.attention.distil: expected dense_rows above 0",
            ", attention: {dense_rows: 0}");
    refused("{kind: dynamic, layers: TP, window: 64, dense_rows: 1.5}",
            "model.attention.dense_rows");
    refused("{kind: dynamic, layers: TXT}", "expected letters D, W, T, P");
    refused("{kind: window, layers: WD, window: 64}", "only dynamic attention differs by layer");
    refused("{kind: dynamic, beam: 0}", "model.attention.beam");
    refused("{kind: dynamic, rotate: 0.33}", "whole number of pairs");
    refused("{kind: dynamic}", "the same in all stages", ", attention: {rotate: 0.25}");
    refused("[dynamic]", "model.attention: expected");
    // What does not fit one stage is no fault where another kind is used there.
    CHECK_NOTHROW(load(text_with("", ", attention: {kind: dynamic, window: 1024}")));
}
