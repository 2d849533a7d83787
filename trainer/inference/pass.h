#pragma once
// Some tokens of each text on their way through the blocks: memory, inputs, and what comes of the
// last hidden rows. Whoever runs the blocks (decode.h, shared_prefill.h) decides what they attend.
#include <cstdint>
#include <vector>

#include "data/tokenizer/tokenizer.h"
#include "kernels/core/exec.h"
#include "parallel/mesh.h"
#include "trainer/model/block.h"
#include "trainer/model/transformer.h"

namespace stoa {

constexpr std::int64_t kPassTokens = 2048;  // of each text that go through the model at once

/// Working memory of a pass over (batch, tokens); the blocks share one BlockSaved.
struct Workspace {
    LocalDims dims;  // rows are few: nobody shares them out
    Buffer memory;
    Activations acts;
};
Workspace make_workspace(const TrainState& s, std::int64_t batch, std::int64_t q_len);
std::int64_t workspace_bytes(const TrainState& s, std::int64_t batch, std::int64_t q_len);

/// What goes through at once: rows[b] tokens of each text, from `begin` on; they become tokens
/// length[b], length[b] + 1, ... of its sequence.
struct Part {
    const std::vector<std::vector<TokenId>>& texts;
    std::int64_t begin;
    std::vector<std::int64_t> rows, length;
};
/// Tokens, positions and key ranges of the part; the rows behind rows[b] repeat the last position.
void load_part(const Workspace& w, const Part& part, const Exec& exec);

/// `layer` is the caller's. References `s`, `w`, `mesh` and `exec`.
BlockContext pass_context(const TrainState& s, const Workspace& w, const Mesh& mesh,
                          const Exec& exec);

/// x (batch * q_len, d_model) of the part that is loaded.
/// comm: all_reduce(tp)
void embed_part(const TrainState& s, const Workspace& w, TensorView x, const Mesh& mesh,
                const Exec& exec);

/// Row b of `hidden` (batch, d_model) becomes the row of x (batch * q_len, d_model) of text b's
/// last token, where that is in this part.
void keep_last(TensorView hidden, ConstTensorView x, const Part& part, const Exec& exec);

/// Working memory of pick_tokens for `batch` texts: kept from token to token, so that none has to
/// be asked for, and waited for, in between.
struct PickSpace {
    Tensor normed, rstd, logits;  // (batch, d_model), (batch), (batch, vocab_local)
    Tensor on_host;               // the logits, pinned where the others are on a GPU
};
PickSpace make_pick_space(const TrainState& s, std::int64_t batch);
/// On the device.
std::int64_t pick_space_bytes(const TrainState& s, std::int64_t batch);

/// The best next token of each text from the hidden row of its last; ties go to the smaller id. Of
/// all that a token takes this alone waits for the device: once, for the logits.
/// comm: all_reduce(tp, max) and all_reduce(tp, min) over (batch)
std::vector<TokenId> pick_tokens(const TrainState& s, const Tensor& hidden, const PickSpace& space,
                                 const Communicator& tp, const Exec& exec);

}  // namespace stoa
