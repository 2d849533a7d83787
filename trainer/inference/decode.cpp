#include "trainer/inference/decode.h"

#include <algorithm>
#include <limits>
#include <tuple>

#include "kernels/core/arena.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/matmul.h"
#include "kernels/rms_norm.h"
#include "parallel/collectives.h"
#include "trainer/model/block.h"
#include "trainer/model/dp_traffic.h"

namespace stoa {
namespace {

constexpr std::size_t kBatch = 64;       // prompts decoded side by side
constexpr std::int64_t kPrefill = 2048;  // tokens of each that go through the model at once

Workspace make_workspace(const TrainState& s, std::int64_t batch, std::int64_t q_len) {
    LocalDims dims = s.dims;
    for (Recompute& r : dims.recompute)
        r = Recompute::full;
    dims.row_ranks = 1;
    Placer list;
    layout_activations(list, s.config, dims, batch, q_len);
    Workspace w{.dims = dims, .memory = Buffer(list.bytes())};
    Placer placer(w.memory.data(), w.memory.bytes());
    w.acts = layout_activations(placer, s.config, w.dims, batch, q_len);
    return w;
}

// What goes through the model at once: rows[b] tokens of each text, from `begin` on; they become
// tokens length[b], length[b] + 1, ... of its sequence.
struct Part {
    const std::vector<std::vector<TokenId>>& texts;
    std::int64_t begin;
    std::vector<std::int64_t> rows, length;
};
void load_part(const Workspace& w, const Part& part) {
    const std::int64_t q_len = w.acts.seq_len;
    const auto tokens = w.acts.tokens.as<std::int32_t>(),
               positions = w.acts.positions.as<std::int32_t>(),
               key_begin = w.acts.key_begin.as<std::int32_t>(),
               key_end = w.acts.key_end.as<std::int32_t>();
    for (std::size_t b = 0; b < part.texts.size(); ++b)
        for (std::int64_t t = 0; t < q_len; ++t) {
            const std::size_t at =
                b * static_cast<std::size_t>(q_len) + static_cast<std::size_t>(t);
            const auto source = static_cast<std::size_t>(part.begin + t);
            const std::int64_t last = std::max<std::int64_t>(0, part.rows[b] - 1);
            tokens[at] = t < part.rows[b] ? part.texts[b][source] : 0;
            positions[at] = static_cast<std::int32_t>(part.length[b] + std::min(t, last));
            key_begin[at] = 0;
            key_end[at] = positions[at] + 1;
        }
}

// x[0] .. x[n_layers] of a part whose tokens, positions and key ranges are set.
void trunk_forward(TrainState& s, const Workspace& space, KvCache& cache, const Part& part,
                   const Mesh& mesh, const Exec& exec) {
    const Activations& a = space.acts;
    const Communicator& tp = mesh.tp;
    const Weights& w = s.model.work;
    BlockContext context{.dims = space.dims,
                         .state = s.model,
                         .norm_eps = s.config.model.norm_eps,
                         .acts = a,
                         .tp = tp,
                         .exec = exec};
    embedding_forward(
        {.y = a.x[0], .table = w.embed, .tokens = a.tokens, .vocab_begin = s.dims.vocab.begin},
        exec);
    all_reduce(a.x[0], ReduceOp::sum, tp, exec.stream);  // tp: each token's row lives on one rank
    for (std::size_t l = 0; l < w.blocks.size(); ++l) {
        context.layer = static_cast<std::int64_t>(l);
        await_block(s.model, context.layer, context.layer + 1, mesh, exec);  // dp, zero: 3
        block_qkv(context, w.blocks[l], a.saved[l], a.x[l]);
        cache_attend(cache.layers[l], context, w.blocks[l], a.saved[l], part.rows);
        block_finish(context, w.blocks[l], a.saved[l], a.x[l], a.x[l + 1]);
        board_pulse();
    }
}

// The hidden row of the last token of each text that ends in this part.
void keep_last(const Tensor& hidden, const Activations& a, const Part& part) {
    const std::int64_t row_bytes = hidden.view.cols() * size_of(hidden.view.dtype);
    for (std::size_t b = 0; b < part.texts.size(); ++b) {
        if (part.rows[b] == 0 || part.begin + part.rows[b] != std::ssize(part.texts[b])) continue;
        const auto entry = static_cast<std::int64_t>(b);
        std::copy_n(a.x.back().data + (entry * a.seq_len + part.rows[b] - 1) * row_bytes, row_bytes,
                    hidden.view.data + entry * row_bytes);
    }
}

// The next token of each batch entry from the hidden row of its last.
std::vector<TokenId> pick_tokens(const TrainState& s, const Tensor& hidden, const Communicator& tp,
                                 const Exec& exec) {
    const std::int64_t batch = hidden.view.rows();
    const auto& [residual, wide] = std::tie(s.dims.formats.residual, s.dims.formats.wide);
    Tensor normed({batch, s.dims.d_model}, residual);
    Tensor rstd({batch}, wide), logits({batch, s.dims.vocab.local}, wide);
    rms_norm_forward({.y = normed,
                      .rstd = rstd,
                      .x = hidden,
                      .weight = s.model.work.final_norm,
                      .eps = s.config.model.norm_eps},
                     exec);
    matmul({.c = logits, .a = normed, .b = s.model.work.lm_head, .transpose_b = true}, exec);

    Tensor best({batch}, DType::fp64), winner({batch}, DType::int32);
    std::vector<double> local_best(static_cast<std::size_t>(batch));
    std::vector<std::int32_t> local_id(static_cast<std::size_t>(batch));
    dispatch_dtype(wide, [&]<Element T>(T) {
        for (std::int64_t b = 0; b < batch; ++b) {
            const auto row =
                logits.view.row<T>(b).first(static_cast<std::size_t>(s.dims.vocab.count));
            double top = -std::numeric_limits<double>::infinity();
            std::int64_t id = 0;
            for (std::size_t c = 0; c < row.size(); ++c)
                if (widen(row[c]) > top) {
                    top = widen(row[c]);
                    id = static_cast<std::int64_t>(c);
                }
            best.as<double>()[static_cast<std::size_t>(b)] =
                local_best[static_cast<std::size_t>(b)] = top;
            local_id[static_cast<std::size_t>(b)] =
                static_cast<std::int32_t>(id + s.dims.vocab.begin);
        }
    });
    all_reduce(best, ReduceOp::max, tp, exec.stream);  // tp: the best logit of the whole vocabulary
    const auto ids = winner.as<std::int32_t>();
    for (std::size_t b = 0; b < ids.size(); ++b)
        ids[b] = local_best[b] == best.as<double>()[b] ? local_id[b]
                                                       : std::numeric_limits<std::int32_t>::max();
    all_reduce(winner, ReduceOp::min, tp, exec.stream);  // tp: the smallest id that has it
    return {ids.begin(), ids.end()};
}

// Whether this rank makes another forward pass: with weights that come from the others (zero: 3)
// where any of them does.     comm: dp, with zero: 3
bool another_pass(const TrainState& s, bool mine, const Mesh& mesh) {
    if (s.model.gathered.empty()) return mine;
    return all_reduce_scalar(std::int64_t{mine}, ReduceOp::max, mesh.dp) != 0;
}

void pass_for_others(TrainState& s, const Mesh& mesh, const Exec& exec) {
    while (another_pass(s, false, mesh))
        take_part_in_forward(s.model, mesh, exec);
}

std::vector<std::vector<TokenId>> generate_batch(TrainState& s,
                                                 std::span<const std::vector<TokenId>> prompts,
                                                 std::int64_t max_new_tokens, TokenId stop,
                                                 const Mesh& mesh, const Exec& exec) {
    std::int64_t longest = 0;
    for (const auto& p : prompts)
        longest = std::max(longest, static_cast<std::int64_t>(p.size()));
    Decoder decoder = make_decoder(s, std::ssize(prompts), longest + max_new_tokens);
    std::vector<std::vector<TokenId>> more(prompts.begin(), prompts.end()), out(prompts.size());
    std::vector<bool> done(prompts.size());
    for (std::int64_t n = 0; n < max_new_tokens; ++n) {
        if (n > 0) another_pass(s, true, mesh);
        const std::vector<TokenId> next = feed(s, decoder, more, mesh, exec);
        for (std::size_t b = 0; b < next.size(); ++b) {
            if (next[b] == stop) done[b] = true;
            if (!done[b]) out[b].push_back(next[b]);
            more[b] = {next[b]};
        }
        if (std::ranges::find(done, false) == done.end()) break;
    }
    pass_for_others(s, mesh, exec);
    return out;
}

}  // namespace

Decoder make_decoder(const TrainState& s, std::int64_t batch, std::int64_t capacity) {
    return {.cache = make_kv_cache(s, batch, capacity),
            .length = std::vector<std::int64_t>(static_cast<std::size_t>(batch)),
            .one_token = make_workspace(s, batch, 1)};
}

std::vector<TokenId> feed(TrainState& s, Decoder& d, const std::vector<std::vector<TokenId>>& texts,
                          const Mesh& mesh, const Exec& exec) {
    std::int64_t longest = 1;
    for (const auto& t : texts)
        longest = std::max(longest, static_cast<std::int64_t>(t.size()));
    const Tensor hidden({std::ssize(texts), s.dims.d_model}, s.dims.formats.residual);
    zero(hidden, exec);
    for (std::int64_t begin = 0; begin < longest; begin += kPrefill) {
        const std::int64_t q_len = std::min(kPrefill, longest - begin);
        Workspace parts;
        if (q_len > 1) parts = make_workspace(s, std::ssize(texts), q_len);
        const Workspace& w = q_len > 1 ? parts : d.one_token;
        Part part{.texts = texts, .begin = begin, .rows = {}, .length = d.length};
        for (const auto& t : texts)
            part.rows.push_back(std::clamp<std::int64_t>(std::ssize(t) - begin, 0, q_len));
        load_part(w, part);
        if (begin > 0) another_pass(s, true, mesh);
        trunk_forward(s, w, d.cache, part, mesh, exec);
        keep_last(hidden, w.acts, part);
        for (std::size_t b = 0; b < texts.size(); ++b)
            d.length[b] += part.rows[b];
    }
    return pick_tokens(s, hidden, mesh.tp, exec);
}

std::vector<std::vector<TokenId>> generate_greedy(TrainState& s,
                                                  const std::vector<std::vector<TokenId>>& prompts,
                                                  std::int64_t max_new_tokens, TokenId stop,
                                                  const Mesh& mesh, const Exec& exec) {
    const std::int64_t positions = s.model.rope_cos.shape[0];
    for (const auto& p : prompts)
        if (p.empty() || static_cast<std::int64_t>(p.size()) + max_new_tokens > positions)
            throw ConfigError({.what = "prompt does not fit the trained context",
                               .expected = "1 or more tokens, with max_new_tokens at most " +
                                           std::to_string(positions),
                               .actual = std::to_string(p.size()) + " + " +
                                         std::to_string(max_new_tokens) + " tokens",
                               .hint = "shorten the prompt or lower --max-new-tokens"});
    std::vector<std::vector<TokenId>> out;
    for (std::size_t begin = 0; another_pass(s, begin < prompts.size(), mesh); begin += kBatch) {
        const auto count = std::min(kBatch, prompts.size() - std::min(begin, prompts.size()));
        if (count == 0) {  // the others' prompts, then their tokens
            take_part_in_forward(s.model, mesh, exec);
            pass_for_others(s, mesh, exec);
            continue;
        }
        auto part = generate_batch(s, std::span(prompts).subspan(begin, count), max_new_tokens,
                                   stop, mesh, exec);
        std::ranges::move(part, std::back_inserter(out));
    }
    return out;
}

}  // namespace stoa
