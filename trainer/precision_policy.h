#pragma once
// Which layers compute their feed-forward in 8 bits: taken out of it fast when their numbers leave
// its range, put back slowly when they have long been inside again. Decisions depend on the step
// and on numbers that are equal on all ranks; each is logged in a form from which the levels can be
// replayed. Switching converts nothing: every level derives its operands from the FP32 master.
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "configs/run_config.h"

namespace stoa {

enum class Cause { skip_streak, rel_error, underflow, loss_scale, clean };

/// One decision. layer -1: the attention of all layers, from FP16 to BF16.
struct Transition {
    std::int64_t step = 0;  // it holds from the next one on
    std::int64_t layer = 0;
    bool to_16_bit = true;  // promoted; else demoted to 8 bits
    Cause cause = Cause::clean;
    bool operator==(const Transition&) const = default;
};
/// "step=120 layer=3 to=16bit cause=underflow"
std::string to_text(const Transition& transition);
/// errors: CheckpointError
Transition transition_from_text(const std::string& text);

/// One sample of a layer's FFN input (acts) and of the gradient of its output (grads): what 1 x 128
/// e4m3 loses of them. Taken in 16-bit layers, too: only so can it be seen to fit again.
struct QuantizationLoss {
    double underflow = 0.0;  // share of the non-zero values that became 0
    double rel_error = 0.0;  // |q(x) - x| / |x|, L2
};
struct LayerSample {
    QuantizationLoss acts, grads;
};

struct PolicyStep {
    std::int64_t step = 0;
    bool overflow = false;            // no update was made
    double loss_scale = 1.0;          // of this step
    std::int64_t origin = -1;         // the layer where Inf or NaN was met first; -1: in none
    std::vector<LayerSample> layers;  // empty: this step took no sample
};

struct LayerPolicy {
    bool adaptive = false;  // the recipe has it in 8 bits; the others never change
    bool wide = false;      // in 16 bits now
    std::int64_t hold_until = 0;
    std::int64_t promotions = 0;
    std::int64_t rel_high = 0;      // samples in a row above the limit
    std::int64_t und_high = 0;      // bit i: the sample i samples ago was above the limit
    std::int64_t clean_since = -1;  // step of the first of the latest clean samples; -1: none
    bool operator==(const LayerPolicy&) const = default;
};
/// Saved in every checkpoint.
struct PolicyState {
    std::vector<LayerPolicy> layers;
    bool wide_attention = false;  // FP16 was left for BF16
    std::int64_t streak = 0;      // overflowing steps in a row
    std::int64_t streak_origin = -1;
    std::int64_t last_demotion = -1;  // step; -1: never
    bool operator==(const PolicyState&) const = default;
};

struct PolicyLimits {
    std::int64_t skip_streak = 10;
    double rel_high = 0.06, rel_clean = 0.04;
    double und_acts = 0.10, und_grads = 0.02, und_clean = 0.005;
    std::int64_t clean_steps = 2000;
    std::int64_t hold = 500, max_hold = 32000;
    std::int64_t demotion_gap = 100;
    double least_scale = 16.0;
};
/// Steps between two samples.
constexpr std::int64_t kSampleEvery = 50;

/// Where the layers begin on this hardware. `capability` of the GPUs, 90 for sm_90; 0: the CPU,
/// which stores every format and computes in fp32. Below sm_89 nothing multiplies 8 bits: all
/// layers stay in 16. Attention is BF16 there and from sm_100 on, where FP16 gains nothing.
PolicyState initial_policy(const RunConfig& config, int capability = 0);

/// Called once for every step, in order; returns what changes from the next step on, already
/// applied.
///   overflow, 10 steps in a row (20, ...)     skip_streak  promote the layer where it began
///   overflow with a loss scale <= 2^4         loss_scale   attention FP16 -> BF16, in all layers
///   rel_error > 6 % in 2 samples in a row     rel_error    promote
///   underflow > 10 % (acts), 2 % (grads)
///     in 3 of 4 samples                       underflow    promote
///   rel_error < 4 % and underflow < 0.5 % for
///     2000 steps after the hold               clean        demote, one layer per 100 steps
/// A promotion holds the layer for 500 steps, twice as long each time, up to 32000. Inf and NaN
/// spread to every later layer, so a streak promotes only where it began; where that layer is in 16
/// bits already, or the streak began in none, FP16 attention is left. Samples of an overflowing
/// step mean nothing and are not read. comm: none, a pure function of its arguments
std::vector<Transition> decide(PolicyState& state, const PolicyStep& step,
                               const PolicyLimits& limits = {});

/// One transition of a log; decide() itself goes through here, so that a replay from the initial
/// levels ends in the same.  errors: CheckpointError when the layer is there already or is fixed
void apply(PolicyState& state, const Transition& transition, const PolicyLimits& limits = {});

/// The formats that follow: config.precision.wide_layers and wide_attention.
void set_levels(RunConfig& config, const PolicyState& state);

/// Integers, exact both ways.
std::string to_text(const PolicyState& state);
/// errors: CheckpointError when the text is not such a state
PolicyState policy_state_from_text(const std::string& text);

}  // namespace stoa
