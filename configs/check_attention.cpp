// Rules of model.attention and stages[].attention: a selection that cannot be made as asked is
// refused, never made dense in silence.
#include <fmt/format.h>

#include "configs/attention_config.h"
#include "configs/rules.h"

namespace stoa {
namespace {

// One stage's attention; `path`: where it was written.
struct Written {
    const AttentionConfig& a;
    const StageConfig& stage;
    std::string path;  // "model.attention" or "stages.0.attention"
    Rules& rules;
    void require(bool ok, const char* key, const std::string& expected, std::int64_t got,
                 const std::string& fix) const {
        rules.require(ok, {fmt::format("{}.{}", path, key), path, "stages"},
                      fmt::format("{}.{}: expected {}, got {}", path, key, expected, got), fix);
    }
    void below_sequence(const char* key, std::int64_t value) const {
        require(value < stage.seq_len, key,
                fmt::format("less than the {} tokens of stage '{}'", stage.seq_len, stage.name),
                value, "a shorter one, or attention: {kind: dense} in that stage");
    }
};

void check_tree(const Written& w) {
    const AttentionConfig& a = w.a;
    w.require((a.leaf & (a.leaf - 1)) == 0, "leaf", "a power of two", a.leaf, "16 or 64 are usual");
    w.require(a.window % a.leaf == 0, "window", fmt::format("a multiple of leaf ({})", a.leaf),
              a.window, fmt::format("use {}", (a.window / a.leaf + 1) * a.leaf));
    w.require(a.sinks <= a.leaf, "sinks", fmt::format("at most a leaf ({})", a.leaf), a.sinks,
              "the sinks lie in the first leaf");
    w.below_sequence("beam", a.beam * a.leaf);
}

void check_layers(const Written& w) {
    const std::string& layers = w.a.layers;
    const bool letters = layers.find_first_not_of("DWTP") == std::string::npos;
    w.rules.require(letters, {w.path + ".layers", w.path},
                    fmt::format("{}.layers: expected letters D, W, T, P, got '{}'", w.path, layers),
                    "D dense, W window, T tree, P importance; PPPT repeats over the layers");
    w.rules.require(layers.empty() || w.a.kind == AttentionKind::dynamic,
                    {w.path + ".layers", w.path},
                    fmt::format("{}.layers: only dynamic attention differs by layer", w.path),
                    "set kind: dynamic, or remove layers");
}

// `here`: some layer of this stage selects by importance; `elsewhere`: of another stage. A stage
// without such layers has the keys from the model and leaves them alone.
void check_training_helps(const Written& w, bool here, bool elsewhere) {
    const AttentionConfig& a = w.a;
    const bool used = here || elsewhere;
    for (const auto& [key, value] :
         {std::pair{"dense_rows", a.dense_rows}, std::pair{"distil", a.distil}})
        w.rules.require(used || value == 0.0, {fmt::format("{}.{}", w.path, key), w.path},
                        fmt::format("{}.{}: expected layers that select by importance, got none in "
                                    "stage '{}'",
                                    w.path, key, w.stage.name),
                        "selector: importance, or a P in layers; or leave it out");
    w.rules.require(!here || a.distil == 0.0 || a.dense_rows > 0.0,
                    {w.path + ".distil", w.path + ".dense_rows", w.path},
                    fmt::format("{}.distil: expected dense_rows above 0, got 0: importance learns "
                                "from what they see",
                                w.path),
                    "dense_rows: 0.2 is usual; or leave distil out");
}

void check_stage(const Written& w, std::int64_t n_layers, bool learns_elsewhere) {
    const AttentionConfig& a = w.a;
    check_layers(w);
    bool uses[4] = {};
    for (std::int64_t l = 0; l < n_layers; ++l)
        uses[static_cast<int>(layer_attention(a, l))] = true;
    const bool tree = uses[static_cast<int>(LayerAttention::tree)];
    const bool importance = uses[static_cast<int>(LayerAttention::importance)];
    const bool window = uses[static_cast<int>(LayerAttention::window)];
    if (tree || importance || window) w.below_sequence("window", a.window);
    if (importance) w.below_sequence("keep", a.keep);
    check_training_helps(w, importance, learns_elsewhere);
    if (tree) check_tree(w);
}

}  // namespace

void check_attention(const RunConfig& c, Rules& rules) {
    bool importance = false;
    for (const StageConfig& s : c.stages)
        for (std::int64_t l = 0; l < c.model.n_layers; ++l)
            importance =
                importance || layer_attention(attention_of(c, s), l) == LayerAttention::importance;
    for (std::size_t i = 0; i < c.stages.size(); ++i) {
        const StageConfig& s = c.stages[i];
        const std::string own = fmt::format("stages.{}.attention", i);
        const AttentionConfig& a = attention_of(c, s);
        check_stage({a, s, s.attention ? own : "model.attention", rules}, c.model.n_layers,
                    importance);
        rules.require(a.rotate == c.model.attention.rotate, {own + ".rotate", own},
                      own + ".rotate: the weights learn one rotation, the same in all stages",
                      "set model.attention.rotate");
    }
    if (c.model.head_dim % 2 != 0) return;  // refused already
    const double turned = rotated_part(c) * static_cast<double>(c.model.head_dim) / 2.0;
    rules.require(turned >= 1.0 && turned == static_cast<double>(static_cast<std::int64_t>(turned)),
                  {"model.attention.rotate", "model.attention", "model.head_dim"},
                  fmt::format("model.attention.rotate: {} of a head of {} is not a whole number of "
                              "pairs",
                              rotated_part(c), c.model.head_dim),
                  "0.5 of a multiple of 4, or 1");
}

}  // namespace stoa
