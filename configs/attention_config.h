#pragma once
// What a configuration says about attention, resolved by stage and layer.
#include <string>

#include "configs/run_config.h"

namespace stoa {

/// How one layer attends in one stage.
enum class LayerAttention { dense, window, tree, importance };
/// Whether such a layer selects keys by learned importance, and so has gates and sink logits.
constexpr bool selects_keys(LayerAttention a) {
    return a == LayerAttention::tree || a == LayerAttention::importance;
}

const AttentionConfig& attention_of(const RunConfig& config, const StageConfig& stage);
LayerAttention layer_attention(const AttentionConfig& a, std::int64_t layer);
/// Whether a layer has importance weights and sink logits: where some stage's attention uses them.
bool learns_importance(const RunConfig& config, std::int64_t layer);
/// {kind: dynamic, window: 64}: the kind, and what is not as usual.
std::string print_attention(const AttentionConfig& a);
/// The part of each head that the rotary embedding turns, in (0, 1].
double rotated_part(const RunConfig& config);

}  // namespace stoa
