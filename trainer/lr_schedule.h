#pragma once
#include "configs/run_config.h"
#include "data/curriculum.h"

namespace stoa {

/// The learning rate of the step that consumes tokens [state.tokens, state.tokens + step_tokens), a
/// pure function of the position in tokens p = state.tokens + step_tokens:
///   warm-up: peak * p / warmup;  then  constant | linear | cosine to final_lr * peak at the end |
///   wsd: peak until the last `decay` share of all tokens, then linear to final_lr * peak
/// times the stage's lr_scale, re-warmed linearly over its first lr_warmup tokens.
double learning_rate(const RunConfig& config, const CurriculumState& state);

}  // namespace stoa
