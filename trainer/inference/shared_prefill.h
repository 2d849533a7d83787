#pragma once
// Sequence parallel for a prompt that is too long for one rank: the dp ranks divide its tokens, and
// the layers' caches. A rank has the hidden rows of its own part only, and each layer's keys only
// while they pass. What is said and kept has the bits of feed() on one rank, however many ranks
// there are: a query sees the same keys in the same order. Tensor parallel cuts the heads as ever.
#include <cstdint>
#include <vector>

#include "trainer/inference/decode.h"

namespace stoa {

/// Reads whole texts into an empty shared decoder; feed() goes on from there. Says the best next
/// token of each, the same on all ranks. The texts, alike on all ranks, are cut at the same
/// positions into one part per rank; the last parts may be shorter, or empty. Layer by layer:
/// norm, q, k, v of the own part; every rank's keys pass by in order, and go into the caches that
/// need them; the own queries attend; feed-forward of the own part.
/// memory: SharedPrefillBytes
/// comm:  per layer and chunk of at most 2,048 tokens of each text an all_gather(dp) of its k, v
///        (and importance, gates) from the rank that computed them; per own chunk as block_forward;
///        one all_reduce(tp) per own chunk; then an all_gather(dp) of (batch, d_model),
///        pick_tokens; 2 scalars all_reduce(dp) before all; dp as await_block
/// errors: ShapeError on all ranks alike: texts that differ between ranks, are all empty, or longer
///        than the capacity or the table of positions; a decoder that has read something, or is
///        shared by other ranks
std::vector<TokenId> prefill_shared(TrainState& s, Decoder& decoder,
                                    const std::vector<std::vector<TokenId>>& texts,
                                    const Mesh& mesh, const Exec& exec);

/// Continues one prompt, alike on all ranks, as generate_greedy does, with its bits.
/// comm: as prefill_shared, then per token as feed     errors: ConfigError when prompt +
/// max_new_tokens exceeds the longest sequence of the run
std::vector<TokenId> generate_shared(TrainState& s, const std::vector<TokenId>& prompt,
                                     std::int64_t max_new_tokens, TokenId stop, const Mesh& mesh,
                                     const Exec& exec);

/// What a rank holds at most while it reads texts of up to n tokens (beside weights and kernels'
/// working memory), with N = n / ranks of them in its part:
///   own        the caches of its layers, about n_layers / ranks of them, for `capacity` tokens
///   passing    one layer that is not its own, up to the end of its part: at most n tokens (dense,
///              tree), or one state (window, importance)
///   rows       N (x: d_model residual; q, k, v: (n_heads + 2 n_kv_heads) head_dim attention;
///              importance and gate: 2 n_kv_heads wide), and k, v of one chunk on the way
///   workspace  of a pass over one chunk, at most 2,048 tokens of each text; the decoder's own
struct SharedPrefillBytes {
    std::int64_t own = 0, passing = 0, rows = 0, workspace = 0;
    std::int64_t total() const { return own + passing + rows + workspace; }
};
SharedPrefillBytes shared_prefill_bytes(const TrainState& s, std::int64_t batch,
                                        std::int64_t capacity, std::int64_t n, int ranks, int rank);

}  // namespace stoa
