#include "configs/attention_config.h"

#include <algorithm>

namespace stoa {
namespace {

// All that a run uses: the stages', or where it has none (tests, tools) the model's.
std::vector<const AttentionConfig*> all_attention(const RunConfig& config) {
    if (config.stages.empty()) return {&config.model.attention};
    std::vector<const AttentionConfig*> all;
    for (const StageConfig& s : config.stages)
        all.push_back(&attention_of(config, s));
    return all;
}

}  // namespace

const AttentionConfig& attention_of(const RunConfig& config, const StageConfig& stage) {
    return stage.attention ? *stage.attention : config.model.attention;
}

LayerAttention layer_attention(const AttentionConfig& a, std::int64_t layer) {
    using enum LayerAttention;
    if (a.kind == AttentionKind::dense) return dense;
    if (a.kind == AttentionKind::window) return window;
    if (a.layers.empty()) return a.selector == KeySelector::tree ? tree : importance;
    switch (a.layers[static_cast<std::size_t>(layer) % a.layers.size()]) {
        case 'D':
            return dense;
        case 'W':
            return window;
        case 'P':
            return importance;
        default:
            return tree;
    }
}

bool learns_importance(const RunConfig& config, std::int64_t layer) {
    return std::ranges::any_of(all_attention(config), [&](const AttentionConfig* a) {
        return selects_keys(layer_attention(*a, layer));
    });
}

double rotated_part(const RunConfig& config) {
    if (config.model.attention.rotate > 0.0) return config.model.attention.rotate;
    for (std::int64_t l = 0; l < config.model.n_layers; ++l)
        if (learns_importance(config, l)) return 0.5;
    return 1.0;
}

}  // namespace stoa
