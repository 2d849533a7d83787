#pragma once
// Greedy decoding with a key/value cache, through the same block code as training.
#include <cstdint>
#include <vector>

#include "data/tokenizer/tokenizer.h"
#include "kernels/core/exec.h"
#include "parallel/mesh.h"
#include "trainer/model/transformer.h"

namespace stoa {

/// Continues every prompt greedily (ties go to the smaller id) until `stop` or `max_new_tokens`;
/// the stop token is not part of the result. All ranks of tp pass the same prompts, those
/// of dp any. comm: per token as model_forward, then all_reduce(tp, max) and all_reduce(tp, min)
/// over (batch); with zero: 3 one all_reduce(dp) per token     errors:
/// ConfigError when prompt + max_new_tokens exceeds the longest sequence of the run
std::vector<std::vector<TokenId>> generate_greedy(TrainState& s,
                                                  const std::vector<std::vector<TokenId>>& prompts,
                                                  std::int64_t max_new_tokens, TokenId stop,
                                                  const Mesh& mesh, const Exec& exec);

}  // namespace stoa
