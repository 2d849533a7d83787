#pragma once
// Greedy decoding with a key/value cache, through the same block code as training.
#include <cstdint>
#include <vector>

#include "trainer/inference/kv_cache.h"
#include "trainer/inference/pass.h"

namespace stoa {

/// Texts that grow side by side.
struct Decoder {
    KvCache cache;
    std::vector<std::int64_t> length;  // of each, in tokens
    Workspace one_token;
    PickSpace pick;
    Tensor hidden;  // (batch, d_model) residual stream: of the last token that was fed to each
};
Decoder make_decoder(const TrainState& s, std::int64_t batch, std::int64_t capacity,
                     CacheForm form = CacheForm::wide);
/// The same texts on all dp ranks, and of the caches each layer's on one of them: layer l on dp
/// rank l % dp_size.     comm: none
Decoder make_shared_decoder(const TrainState& s, std::int64_t batch, std::int64_t capacity,
                            const Mesh& mesh);

/// Bytes on the device of a decoder, and of feed() with texts of up to `longest` tokens at once;
/// beside the weights and the kernels' working memory.
std::int64_t decoding_bytes(const TrainState& s, std::int64_t batch, std::int64_t capacity,
                            std::int64_t longest);

/// Appends texts[b] to text b, in parts of 2,048 tokens, and says the best next token of each (ties
/// go to the smaller id); of a text to which nothing is appended it says nothing of use.
/// With a cache that dp ranks share (shared_prefill.h) all of them pass the same texts, compute the
/// same, and take turns in attending.
/// comm: per part as model_forward, then all_reduce(tp, max) and all_reduce(tp, min) over (batch);
/// with zero: 3 one all_reduce(dp) per part but the first; with a shared cache one broadcast(dp) of
/// (rows, q_cols) per part and layer     errors: ShapeError past the capacity
std::vector<TokenId> feed(TrainState& s, Decoder& decoder,
                          const std::vector<std::vector<TokenId>>& texts, const Mesh& mesh,
                          const Exec& exec);

/// errors: ConfigError unless the prompt has a token and, with what follows it, fits the longest
/// sequence of the run
void require_prompt_fits(const TrainState& s, const std::vector<TokenId>& prompt,
                         std::int64_t max_new_tokens);

/// Continues every prompt greedily (ties go to the smaller id) until `stop` or `max_new_tokens`;
/// the stop token is not part of the result. All ranks of tp pass the same prompts, those
/// of dp any. comm: per token as feed; with zero: 3 one all_reduce(dp) per token     errors:
/// ConfigError when prompt + max_new_tokens exceeds the longest sequence of the run
std::vector<std::vector<TokenId>> generate_greedy(TrainState& s,
                                                  const std::vector<std::vector<TokenId>>& prompts,
                                                  std::int64_t max_new_tokens, TokenId stop,
                                                  const Mesh& mesh, const Exec& exec,
                                                  CacheForm form = CacheForm::wide);

}  // namespace stoa
