#include "trainer/precision_policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <sstream>

#include "configs/recipe.h"
#include "kernels/core/error.h"

namespace stoa {
namespace {

constexpr std::array kCauses = {"skip_streak", "rel_error", "underflow", "loss_scale", "clean"};

void forget_evidence(LayerPolicy& layer) {
    layer.rel_high = layer.und_high = 0;
    layer.clean_since = -1;
}

bool is_high(const LayerSample& s, const PolicyLimits& limits) {
    return std::max(s.acts.rel_error, s.grads.rel_error) > limits.rel_high;
}
bool underflows(const LayerSample& s, const PolicyLimits& limits) {
    return s.acts.underflow > limits.und_acts || s.grads.underflow > limits.und_grads;
}
bool is_clean(const LayerSample& s, const PolicyLimits& limits) {
    return std::max(s.acts.rel_error, s.grads.rel_error) < limits.rel_clean &&
           std::max(s.acts.underflow, s.grads.underflow) < limits.und_clean;
}

void remember(LayerPolicy& layer, const LayerSample& s, std::int64_t step,
              const PolicyLimits& limits) {
    layer.rel_high = is_high(s, limits) ? layer.rel_high + 1 : 0;
    layer.und_high = (layer.und_high << 1 | (underflows(s, limits) ? 1 : 0)) & 0xf;
    if (!is_clean(s, limits))
        layer.clean_since = -1;
    else if (layer.clean_since < 0)
        layer.clean_since = step;
}

// What the samples so far say of a layer that the hold leaves free.
bool wants_promotion(const LayerPolicy& layer, Cause& cause) {
    cause = layer.rel_high >= 2 ? Cause::rel_error : Cause::underflow;
    return layer.rel_high >= 2 || std::popcount(static_cast<unsigned>(layer.und_high)) >= 3;
}
bool wants_demotion(const LayerPolicy& layer, std::int64_t step, const PolicyLimits& limits) {
    return layer.clean_since >= 0 &&
           step - std::max(layer.clean_since, layer.hold_until) >= limits.clean_steps;
}

}  // namespace

PolicyState initial_policy(const RunConfig& config, int capability) {
    PolicyState state;
    const bool no_fp8 = capability > 0 && capability < 89;
    const bool bf16_attention = no_fp8 || capability >= 100;
    const Formats formats = formats_of(config.precision);
    for (std::int64_t l = 0; l < config.model.n_layers; ++l) {
        LayerPolicy layer;
        layer.adaptive = config.precision.adaptive && ffn_format(formats, config, l) == DType::e4m3;
        if (no_fp8 && layer.adaptive) layer = {.wide = true};  // and never put back
        state.layers.push_back(layer);
    }
    state.wide_attention =
        bf16_attention || !config.precision.adaptive || formats.attention != DType::fp16;
    return state;
}

std::vector<Transition> decide(PolicyState& state, const PolicyStep& in,
                               const PolicyLimits& limits) {
    std::vector<Transition> changes;
    const auto change = [&](std::int64_t layer, bool to_16_bit, Cause cause) {
        changes.push_back({in.step, layer, to_16_bit, cause});
        apply(state, changes.back(), limits);
    };
    const auto promotable = [&](std::int64_t l) {
        if (l < 0 || l >= std::ssize(state.layers)) return false;
        const LayerPolicy& layer = state.layers[static_cast<std::size_t>(l)];
        return layer.adaptive && !layer.wide;
    };
    if (in.overflow) {
        ++state.streak;
        if (in.origin >= 0) state.streak_origin = in.origin;
        if (state.streak % limits.skip_streak == 0) {
            if (promotable(state.streak_origin))
                change(state.streak_origin, true, Cause::skip_streak);
            else if (!state.wide_attention)
                change(-1, true, Cause::skip_streak);
        }
        if (!state.wide_attention && in.loss_scale <= limits.least_scale)
            change(-1, true, Cause::loss_scale);
        return changes;
    }
    state.streak = 0;
    state.streak_origin = -1;
    for (std::size_t l = 0; l < in.layers.size() && l < state.layers.size(); ++l) {
        LayerPolicy& layer = state.layers[l];
        if (!layer.adaptive) continue;
        remember(layer, in.layers[l], in.step, limits);
        const auto index = static_cast<std::int64_t>(l);
        Cause cause{};
        if (!layer.wide && in.step >= layer.hold_until && wants_promotion(layer, cause))
            change(index, true, cause);
        else if (layer.wide && wants_demotion(layer, in.step, limits) &&
                 (state.last_demotion < 0 || in.step - state.last_demotion >= limits.demotion_gap))
            change(index, false, Cause::clean);
    }
    return changes;
}

void apply(PolicyState& state, const Transition& t, const PolicyLimits& limits) {
    const auto refuse = [&] {
        throw CheckpointError(
            {.what = "a precision transition that cannot follow", .actual = to_text(t)});
    };
    if (t.layer == -1) {
        if (state.wide_attention || !t.to_16_bit) refuse();
        state.wide_attention = true;
        return;
    }
    if (t.layer < -1 || t.layer >= std::ssize(state.layers)) refuse();
    LayerPolicy& layer = state.layers[static_cast<std::size_t>(t.layer)];
    if (!layer.adaptive || layer.wide == t.to_16_bit) refuse();
    layer.wide = t.to_16_bit;
    forget_evidence(layer);
    if (!t.to_16_bit) {
        state.last_demotion = t.step;
        return;
    }
    const std::int64_t doublings = std::min<std::int64_t>(layer.promotions++, 20);
    layer.hold_until = t.step + std::min(limits.hold << doublings, limits.max_hold);
}

void set_levels(RunConfig& config, const PolicyState& state) {
    PrecisionConfig& p = config.precision;
    p.wide_layers.clear();
    for (std::size_t l = 0; l < state.layers.size(); ++l)
        if (state.layers[l].wide) p.wide_layers.push_back(static_cast<std::int64_t>(l));
    p.wide_attention = p.adaptive && state.wide_attention;
}

std::string to_text(const Transition& t) {
    return fmt::format("step={} layer={} to={} cause={}", t.step, t.layer,
                       t.to_16_bit ? "16bit" : "8bit", kCauses[static_cast<std::size_t>(t.cause)]);
}

Transition transition_from_text(const std::string& text) {
    long long step = 0, layer = 0;
    char to[8] = {}, cause[16] = {};
    const bool read = std::sscanf(text.c_str(), "step=%lld layer=%lld to=%7s cause=%15s", &step,
                                  &layer, to, cause) == 4;
    const auto* const at = std::ranges::find(kCauses, std::string_view(cause));
    Transition t{step, layer, std::string_view(to) == "16bit",
                 static_cast<Cause>(at - kCauses.begin())};
    if (!read || at == kCauses.end() || to_text(t) != text)
        throw CheckpointError({.what = "not a precision transition", .actual = text});
    return t;
}

std::string to_text(const PolicyState& s) {
    std::string text = fmt::format("{} {} {} {} {}", s.layers.size(), int{s.wide_attention},
                                   s.streak, s.streak_origin, s.last_demotion);
    for (const LayerPolicy& l : s.layers)
        text += fmt::format(" {} {} {} {} {} {} {}", int{l.adaptive}, int{l.wide}, l.hold_until,
                            l.promotions, l.rel_high, l.und_high, l.clean_since);
    return text;
}

PolicyState policy_state_from_text(const std::string& text) {
    std::istringstream in(text);
    PolicyState s;
    std::int64_t n = -1;
    in >> n >> s.wide_attention >> s.streak >> s.streak_origin >> s.last_demotion;
    for (std::int64_t i = 0; i < n && in; ++i) {
        LayerPolicy l;
        in >> l.adaptive >> l.wide >> l.hold_until >> l.promotions >> l.rel_high >> l.und_high >>
            l.clean_since;
        s.layers.push_back(l);
    }
    std::string rest;
    if (!in || n < 0 || in >> rest)
        throw CheckpointError({.what = "not the state of a precision policy", .actual = text});
    return s;
}

}  // namespace stoa
