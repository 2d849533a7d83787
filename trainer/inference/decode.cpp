#include "trainer/inference/decode.h"

#include <algorithm>

#include "kernels/device_memory.h"
#include "kernels/elementwise.h"
#include "parallel/collectives.h"
#include "trainer/model/block.h"
#include "trainer/model/dp_traffic.h"

namespace stoa {
namespace {

constexpr std::size_t kBatch = 64;  // prompts decoded side by side

// x[0] .. x[n_layers] of a part whose tokens, positions and key ranges are set.
void trunk_forward(TrainState& s, const Workspace& space, KvCache& cache, const Part& part,
                   const Mesh& mesh, const Exec& exec) {
    const Activations& a = space.acts;
    const Weights& w = s.model.work;
    BlockContext context = pass_context(s, space, mesh, exec);
    embed_part(s, space, a.x[0], mesh, exec);  // tp
    for (std::size_t l = 0; l < w.blocks.size(); ++l) {
        context.layer = static_cast<std::int64_t>(l);
        await_block(s.model, context.layer, context.layer + 1, mesh, exec);  // dp, zero: 3
        block_qkv(context, w.blocks[l], a.saved[l], a.x[l]);
        if (cache.holds(context.layer))
            cache_attend(cache.layers[l], context, w.blocks[l], a.saved[l], part.rows);
        if (cache.ranks > 1)  // dp: what its one holder reads from the cache
            broadcast(a.saved[l].attn, cache.owner(context.layer), mesh.dp, exec.stream);
        block_finish(context, w.blocks[l], a.saved[l], a.x[l], a.x[l + 1]);
        board_pulse();
    }
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
                                                 const Mesh& mesh, const Exec& exec,
                                                 CacheForm form) {
    std::int64_t longest = 0;
    for (const auto& p : prompts)
        longest = std::max(longest, static_cast<std::int64_t>(p.size()));
    Decoder decoder = make_decoder(s, std::ssize(prompts), longest + max_new_tokens, form);
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

Decoder decoder_of(const TrainState& s, KvCache cache) {
    const std::int64_t batch = cache.batch;
    return {.cache = std::move(cache),
            .length = std::vector<std::int64_t>(static_cast<std::size_t>(batch)),
            .one_token = make_workspace(s, batch, 1),
            .pick = make_pick_space(s, batch),
            .hidden = make_tensor({batch, s.dims.d_model}, s.dims.formats.residual, s.device)};
}

// With a shared cache only its holder would notice, while the others wait for it.
void check_shared(const Decoder& d, const std::vector<std::vector<TokenId>>& texts,
                  const Mesh& mesh) {
    if (d.cache.ranks == 1) return;
    require(d.cache.ranks == mesh.dp_size(), "feed: dp ranks", "as many as share the cache",
            std::to_string(mesh.dp_size()) + " for " + std::to_string(d.cache.ranks));
    for (std::size_t b = 0; b < texts.size(); ++b)
        require(d.length[b] + std::ssize(texts[b]) <= d.cache.capacity, "feed: text",
                "room for it in the capacity",
                std::to_string(texts[b].size()) + " behind " + std::to_string(d.length[b]) +
                    " of " + std::to_string(d.cache.capacity));
}

}  // namespace

Decoder make_decoder(const TrainState& s, std::int64_t batch, std::int64_t capacity,
                     CacheForm form) {
    return decoder_of(s, make_kv_cache(s, batch, capacity, 1, 0, form));
}

Decoder make_shared_decoder(const TrainState& s, std::int64_t batch, std::int64_t capacity,
                            const Mesh& mesh) {
    return decoder_of(s, make_kv_cache(s, batch, capacity, mesh.dp_size(), mesh.dp_rank()));
}

std::int64_t decoding_bytes(const TrainState& s, std::int64_t batch, std::int64_t capacity,
                            std::int64_t longest) {
    std::int64_t bytes = workspace_bytes(s, batch, 1) + pick_space_bytes(s, batch) +
                         batch * s.dims.d_model * size_of(s.dims.formats.residual);
    if (longest > 1) bytes += workspace_bytes(s, batch, std::min(longest, kPassTokens));
    for (std::size_t l = 0; l < s.dims.attention.size(); ++l)
        bytes += layer_cache_bytes(s, l, batch, capacity);
    return bytes;
}

std::vector<TokenId> feed(TrainState& s, Decoder& d, const std::vector<std::vector<TokenId>>& texts,
                          const Mesh& mesh, const Exec& exec) {
    check_shared(d, texts, mesh);
    std::int64_t longest = 1;
    for (const auto& t : texts)
        longest = std::max(longest, static_cast<std::int64_t>(t.size()));
    zero(d.hidden, exec);
    for (std::int64_t begin = 0; begin < longest; begin += kPassTokens) {
        const std::int64_t q_len = std::min(kPassTokens, longest - begin);
        Workspace parts;
        if (q_len > 1) parts = make_workspace(s, std::ssize(texts), q_len);
        const Workspace& w = q_len > 1 ? parts : d.one_token;
        Part part{.texts = texts, .begin = begin, .rows = {}, .length = d.length};
        for (const auto& t : texts)
            part.rows.push_back(std::clamp<std::int64_t>(std::ssize(t) - begin, 0, q_len));
        load_part(w, part, exec);
        if (begin > 0) another_pass(s, true, mesh);
        trunk_forward(s, w, d.cache, part, mesh, exec);
        keep_last(d.hidden, w.acts.x.back(), part, exec);
        for (std::size_t b = 0; b < texts.size(); ++b)
            d.length[b] += part.rows[b];
    }
    return pick_tokens(s, d.hidden, d.pick, mesh.tp, exec);
}

void require_prompt_fits(const TrainState& s, const std::vector<TokenId>& prompt,
                         std::int64_t max_new_tokens) {
    const std::int64_t positions = s.model.rope_cos.shape[0];
    if (!prompt.empty() && std::ssize(prompt) + max_new_tokens <= positions) return;
    throw ConfigError(
        {.what = "prompt does not fit the trained context",
         .expected = "1 or more tokens, with max_new_tokens at most " + std::to_string(positions),
         .actual =
             std::to_string(prompt.size()) + " + " + std::to_string(max_new_tokens) + " tokens",
         .hint = "shorten the prompt or lower --max-new-tokens"});
}

std::vector<std::vector<TokenId>> generate_greedy(TrainState& s,
                                                  const std::vector<std::vector<TokenId>>& prompts,
                                                  std::int64_t max_new_tokens, TokenId stop,
                                                  const Mesh& mesh, const Exec& exec,
                                                  CacheForm form) {
    for (const auto& p : prompts)
        require_prompt_fits(s, p, max_new_tokens);
    std::vector<std::vector<TokenId>> out;
    for (std::size_t begin = 0; another_pass(s, begin < prompts.size(), mesh); begin += kBatch) {
        const auto count = std::min(kBatch, prompts.size() - std::min(begin, prompts.size()));
        if (count == 0) {  // the others' prompts, then their tokens
            take_part_in_forward(s.model, mesh, exec);
            pass_for_others(s, mesh, exec);
            continue;
        }
        auto part = generate_batch(s, std::span(prompts).subspan(begin, count), max_new_tokens,
                                   stop, mesh, exec, form);
        std::ranges::move(part, std::back_inserter(out));
    }
    return out;
}

}  // namespace stoa
