#include "trainer/inference/decode.h"

#include <algorithm>
#include <limits>
#include <tuple>

#include "kernels/core/arena.h"
#include "kernels/embedding.h"
#include "kernels/matmul.h"
#include "kernels/rms_norm.h"
#include "parallel/collectives.h"
#include "trainer/model/block.h"
#include "trainer/model/dp_traffic.h"

namespace stoa {
namespace {

constexpr std::size_t kBatch = 64;  // prompts decoded side by side

// Working memory for (batch, q_len) queries; the blocks share one BlockSaved.
struct Workspace {
    LocalDims dims;  // rows are few: nobody shares them out
    Buffer memory;
    Activations acts;
};
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

KvCache make_cache(const TrainState& s, std::int64_t batch, std::int64_t capacity) {
    KvCache cache{.batch = batch, .capacity = capacity};
    const Shape shape{batch, capacity, s.dims.n_kv_heads, s.dims.head_dim};
    for (std::int64_t l = 0; l < s.config.model.n_layers; ++l) {
        cache.k.emplace_back(shape, s.dims.formats.attention);
        cache.v.emplace_back(shape, s.dims.formats.attention);
    }
    return cache;
}

// Row (b, t) of `rows` goes to position positions[b, t] of batch entry b.
void store(const Tensor& cache, ConstTensorView rows, ConstTensorView positions,
           std::int64_t q_len) {
    const std::int64_t capacity = cache.view.shape[1];
    const std::int64_t row_bytes = rows.cols() * size_of(rows.dtype);
    for (std::int64_t r = 0; r < rows.rows(); ++r) {
        const std::int64_t at =
            (r / q_len) * capacity + positions.as<std::int32_t>()[static_cast<std::size_t>(r)];
        std::copy_n(rows.data + r * row_bytes, row_bytes, cache.view.data + at * row_bytes);
    }
}

// x[0] .. x[n_layers] of the queries in `a`, whose tokens, positions and key ranges are set.
void trunk_forward(TrainState& s, const Workspace& space, const KvCache& cache, const Mesh& mesh,
                   const Exec& exec) {
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
        store(cache.k[l], a.saved[l].k, a.positions, a.seq_len);
        store(cache.v[l], a.saved[l].v, a.positions, a.seq_len);
        block_attend(context, w.blocks[l], a.saved[l], cache.k[l], cache.v[l], a.x[l], a.x[l + 1]);
        board_pulse();
    }
}

// The next token of each batch entry from its hidden row `last[b]`.
std::vector<TokenId> pick_tokens(const TrainState& s, const Activations& a,
                                 const std::vector<std::int64_t>& last, const Communicator& tp,
                                 const Exec& exec) {
    const auto batch = static_cast<std::int64_t>(last.size());
    const ConstTensorView x = a.x.back();
    const auto& [residual, wide] = std::tie(s.dims.formats.residual, s.dims.formats.wide);
    Tensor hidden({batch, s.dims.d_model}, residual), normed({batch, s.dims.d_model}, residual);
    Tensor rstd({batch}, wide), logits({batch, s.dims.vocab.local}, wide);
    const std::int64_t row_bytes = s.dims.d_model * size_of(residual);
    for (std::int64_t b = 0; b < batch; ++b)
        std::copy_n(x.data + last[static_cast<std::size_t>(b)] * row_bytes, row_bytes,
                    hidden.view.data + b * row_bytes);
    rms_norm_forward({.y = normed,
                      .rstd = rstd,
                      .x = hidden,
                      .weight = s.model.work.final_norm,
                      .eps = s.config.model.norm_eps},
                     exec);
    matmul({.c = logits, .a = normed, .b = s.model.work.lm_head, .transpose_b = true}, exec);

    Tensor best({batch}, DType::fp64), winner({batch}, DType::int32);
    std::vector<double> local_best(last.size());
    std::vector<std::int32_t> local_id(last.size());
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
    const Communicator& tp = mesh.tp;
    const auto batch = static_cast<std::int64_t>(prompts.size());
    std::int64_t longest = 0;
    for (const auto& p : prompts)
        longest = std::max(longest, static_cast<std::int64_t>(p.size()));
    const KvCache cache = make_cache(s, batch, longest + max_new_tokens);

    // Prefill: prompts side by side, padded on the right; padding is never attended to.
    std::vector<std::int64_t> last(prompts.size()), length(prompts.size());
    std::vector<TokenId> next;
    {
        const Workspace w = make_workspace(s, batch, longest);
        for (std::int64_t r = 0; r < batch * longest; ++r) {
            const auto& prompt = prompts[static_cast<std::size_t>(r / longest)];
            const auto t = static_cast<std::size_t>(r % longest), at = static_cast<std::size_t>(r);
            w.acts.tokens.as<std::int32_t>()[at] = t < prompt.size() ? prompt[t] : 0;
            w.acts.positions.as<std::int32_t>()[at] = static_cast<std::int32_t>(t);
            w.acts.key_begin.as<std::int32_t>()[at] = 0;
            w.acts.key_end.as<std::int32_t>()[at] = static_cast<std::int32_t>(t) + 1;
        }
        for (std::size_t b = 0; b < prompts.size(); ++b) {
            length[b] = static_cast<std::int64_t>(prompts[b].size());
            last[b] = static_cast<std::int64_t>(b) * longest + length[b] - 1;
        }
        trunk_forward(s, w, cache, mesh, exec);
        next = pick_tokens(s, w.acts, last, tp, exec);
    }

    const Workspace w = make_workspace(s, batch, 1);
    for (std::size_t b = 0; b < last.size(); ++b)
        last[b] = static_cast<std::int64_t>(b);
    std::vector<std::vector<TokenId>> out(prompts.size());
    std::vector<bool> done(prompts.size());
    for (std::int64_t n = 0; n < max_new_tokens; ++n) {
        for (std::size_t b = 0; b < next.size(); ++b) {
            if (next[b] == stop) done[b] = true;
            if (!done[b]) out[b].push_back(next[b]);
        }
        if (std::ranges::find(done, false) == done.end() || n + 1 == max_new_tokens) break;
        another_pass(s, true, mesh);
        for (std::size_t b = 0; b < next.size(); ++b) {
            const auto at = static_cast<std::int32_t>(length[b] + n);
            w.acts.tokens.as<std::int32_t>()[b] = next[b];
            w.acts.positions.as<std::int32_t>()[b] = at;
            w.acts.key_begin.as<std::int32_t>()[b] = 0;
            w.acts.key_end.as<std::int32_t>()[b] = at + 1;
        }
        trunk_forward(s, w, cache, mesh, exec);
        next = pick_tokens(s, w.acts, last, tp, exec);
    }
    pass_for_others(s, mesh, exec);
    return out;
}

}  // namespace

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
