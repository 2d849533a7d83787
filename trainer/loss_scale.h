#pragma once
// The dynamic loss scale of FP16 attention: gradients are carried as S * d so that small ones do
// not fall below FP16's least number.
#include <cstdint>
#include <string>

namespace stoa {

/// Saved in every checkpoint.
struct LossScale {
    double value = 65536.0;       // S, always a power of two in [1, 2^24]: scaling loses no bit
    std::int64_t good = 0;        // clean steps since the last change or overflow
    std::int64_t hysteresis = 2;  // bad steps left until S is halved
    bool dynamic = true;          // false: S stays as it is
    bool operator==(const LossScale&) const = default;
};

/// FP16 attention: 2^16, dynamic. Otherwise 1, fixed: BF16 and FP32 have the range of S * d.
LossScale initial_loss_scale(bool fp16_attention);

/// One step later. S is the scale that the step used; `overflow` is found_inf, equal on all ranks.
///   clean:    good += 1; at good = 1000: S = min(2 S, 2^24), good = 0, hysteresis = 2
///   overflow: good = 0, hysteresis = max(hysteresis - 1, 0); at hysteresis = 0: S = max(S / 2, 1)
/// Only growth refills the hysteresis: an overflow that follows a halving halves again at once.
/// [Micikevicius et al. 2018, Mixed precision training; hysteresis as in Megatron-LM]
/// comm: none, a pure function of its arguments
void update(LossScale& scale, bool overflow);

/// "log2(S) good hysteresis dynamic", four integers; exact both ways.
std::string to_text(const LossScale& scale);
/// errors: CheckpointError when the text is not such a scale
LossScale loss_scale_from_text(const std::string& text);

}  // namespace stoa
