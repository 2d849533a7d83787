#include "trainer/inference/shared_prefill.h"

#include <algorithm>

#include "kernels/core/arena.h"
#include "kernels/core/philox.h"
#include "kernels/device_memory.h"
#include "kernels/elementwise.h"
#include "parallel/collectives.h"
#include "trainer/model/dp_traffic.h"

namespace stoa {
namespace {

// The positions of the texts in chunks, the same number of them for every rank.
struct Division {
    std::int64_t chunk = 0, per_rank = 0;  // positions; chunks
    std::int64_t count = 0;                // chunks that hold something
    int owner(std::int64_t g) const { return static_cast<int>(g / per_rank); }
    std::int64_t first(int rank) const { return std::min(count, rank * per_rank); }
};
Division divide(std::int64_t longest, int ranks) {
    const auto parts = [](std::int64_t n, std::int64_t of) { return (n + of - 1) / of; };
    const std::int64_t each = parts(longest, ranks), per_rank = parts(each, kPassTokens),
                       chunk = parts(each, per_rank);
    return {chunk, per_rank, parts(longest, chunk)};
}

// Of the own part, chunk after chunk, (batch * chunk) rows each; and keys that come from others.
struct PartRows {
    TensorView x, q, k, v, importance, key_gate;
    KeyRows incoming;
};
PartRows layout_rows(Placer& p, const LocalDims& d, std::int64_t batch, const Division& division) {
    const std::int64_t chunk = batch * division.chunk, all = chunk * division.per_rank;
    const bool selects = std::ranges::any_of(d.attention, selects_keys);
    const auto place = [&](const char* name, std::int64_t rows, std::int64_t cols, DType dtype) {
        return p.place(name, {rows, cols}, dtype, Lifetime::run);
    };
    const auto gates = [&](const char* name, std::int64_t rows) {
        return selects ? place(name, rows, d.n_kv_heads, d.formats.wide) : TensorView{};
    };
    const DType attention = d.formats.attention;
    return {.x = place("x", all, d.d_model, d.formats.residual),
            .q = place("q", all, d.q_cols(), attention),
            .k = place("k", all, d.kv_cols(), attention),
            .v = place("v", all, d.kv_cols(), attention),
            .importance = gates("importance", all),
            .key_gate = gates("key_gate", all),
            .incoming = {.k = place("incoming.k", chunk, d.kv_cols(), attention),
                         .v = place("incoming.v", chunk, d.kv_cols(), attention),
                         .importance = gates("incoming.importance", chunk),
                         .key_gate = gates("incoming.key_gate", chunk)}};
}

struct Prefill {
    TrainState& s;
    Decoder& d;
    const std::vector<std::vector<TokenId>>& texts;
    const Mesh& mesh;
    const Exec& exec;
    Division division;
    std::int64_t first = 0, end = 0;  // this rank's chunks
    Workspace space;
    Buffer memory;
    PartRows rows;
};

Part part_of(const Prefill& p, std::int64_t g) {
    Part part{.texts = p.texts, .begin = g * p.division.chunk, .rows = {}, .length = {}};
    for (const auto& t : p.texts) {
        part.rows.push_back(
            std::clamp<std::int64_t>(std::ssize(t) - part.begin, 0, p.division.chunk));
        part.length.push_back(part.rows.back() > 0 ? part.begin : 0);
    }
    return part;
}

// Rows of the own chunk g.
TensorView of_chunk(const Prefill& p, const TensorView& all, std::int64_t g) {
    const std::int64_t rows = std::ssize(p.texts) * p.division.chunk;
    return all.slice_rows((g - p.first) * rows, rows);
}
BlockSaved saved_of(const Prefill& p, std::size_t layer, std::int64_t g) {
    BlockSaved s = p.space.acts.saved[layer];
    s.q = of_chunk(p, p.rows.q, g);
    s.k = of_chunk(p, p.rows.k, g);
    s.v = of_chunk(p, p.rows.v, g);
    if (!selects_keys(p.s.dims.attention[layer])) return s;
    s.importance = of_chunk(p, p.rows.importance, g);
    s.key_gate = of_chunk(p, p.rows.key_gate, g);
    return s;
}
KeyRows keys_of(const Prefill& p, std::size_t layer, std::int64_t g) {
    if (p.first <= g && g < p.end) {
        const BlockSaved s = saved_of(p, layer, g);
        return {s.k, s.v, s.importance, s.key_gate};
    }
    if (selects_keys(p.s.dims.attention[layer])) return p.rows.incoming;
    return {p.rows.incoming.k, p.rows.incoming.v, {}, {}};
}

// Whether queries are answered from a state that goes on with the tokens.
bool has_state(LayerAttention kind) {
    return kind == LayerAttention::window || kind == LayerAttention::importance;
}

// What this rank's queries of a layer attend to, where it is not the cache that the rank keeps: all
// tokens up to the end of its part, or the state at the beginning of it.
struct Seen {
    bool needed = false;
    std::int64_t chunks = 0;  // that go into it
    std::int64_t capacity = 1;
};
Seen seen_by(const Division& division, LayerAttention kind, std::int64_t longest, bool mine,
             int rank) {
    const std::int64_t first = division.first(rank), end = division.first(rank + 1);
    if (first == end || (mine && !has_state(kind))) return {};
    const std::int64_t chunks = has_state(kind) ? first : end;
    return {true, chunks, std::max<std::int64_t>(1, std::min(longest, chunks * division.chunk))};
}

std::int64_t longest_of(const std::vector<std::vector<TokenId>>& texts) {
    std::int64_t n = 0;
    for (const auto& t : texts)
        n = std::max(n, static_cast<std::int64_t>(t.size()));
    return n;
}

void gather_keys(const Prefill& p, std::size_t layer, LayerCache* own, LayerCache& seen,
                 std::int64_t seen_chunks) {
    for (std::int64_t g = 0; g < p.division.count; ++g) {
        const int owner = p.division.owner(g);
        const KeyRows keys = keys_of(p, layer, g);
        std::vector<PartCopy> parts;
        for (const TensorView& t : {keys.k, keys.v, keys.importance, keys.key_gate})
            if (!t.empty()) parts.push_back({owner, t});
        all_gather(parts, p.mesh.dp, p.exec.stream);  // dp: the chunk's keys, from their rank
        const std::vector<std::int64_t> rows = part_of(p, g).rows;
        if (own != nullptr) cache_append(*own, keys, rows, p.exec);
        if (g < seen_chunks) cache_append(seen, keys, rows, p.exec);
    }
}

void prefill_layer(Prefill& p, std::int64_t layer) {
    const auto l = static_cast<std::size_t>(layer);
    const LayerAttention kind = p.s.dims.attention[l];
    BlockContext context = pass_context(p.s, p.space, p.mesh, p.exec);
    context.layer = layer;
    await_block(p.s.model, layer, layer + 1, p.mesh, p.exec);  // dp, zero: 3
    const BlockWeights& w = p.s.model.work.blocks[l];
    for (std::int64_t g = p.first; g < p.end; ++g) {
        load_part(p.space, part_of(p, g), p.exec);
        block_qkv(context, w, saved_of(p, l, g), of_chunk(p, p.rows.x, g));
        board_pulse();
    }

    LayerCache* const own = p.d.cache.holds(layer) ? &p.d.cache.layers[l] : nullptr;
    const Seen seen =
        seen_by(p.division, kind, longest_of(p.texts), own != nullptr, p.d.cache.rank);
    LayerCache passing;
    if (seen.needed) passing = make_layer_cache(p.s, l, std::ssize(p.texts), seen.capacity);
    gather_keys(p, l, own, passing, seen.chunks);

    for (std::int64_t g = p.first; g < p.end; ++g) {
        const Part part = part_of(p, g);
        const BlockSaved saved = saved_of(p, l, g);
        const TensorView x = of_chunk(p, p.rows.x, g);
        load_part(p.space, part, p.exec);
        if (has_state(kind))
            cache_attend(passing, context, w, saved, part.rows);
        else
            cache_query(seen.needed ? passing : *own, context, w, saved, part.rows, part.length);
        block_finish(context, w, saved, x, x);
        board_pulse();
    }
}

// The hidden row of each text's last token, on every rank.
void share_last(const Prefill& p) {
    zero(p.d.hidden, p.exec);
    for (std::int64_t g = p.first; g < p.end; ++g)
        keep_last(p.d.hidden, of_chunk(p, p.rows.x, g), part_of(p, g), p.exec);
    std::vector<PartCopy> rows;
    for (std::size_t b = 0; b < p.texts.size(); ++b)
        if (!p.texts[b].empty())
            rows.push_back({p.division.owner((std::ssize(p.texts[b]) - 1) / p.division.chunk),
                            p.d.hidden.view.slice_rows(static_cast<std::int64_t>(b), 1)});
    all_gather(rows, p.mesh.dp, p.exec.stream);  // dp: from the ranks that have them
}

void check_alike(const std::vector<std::vector<TokenId>>& texts, const Decoder& d,
                 const Communicator& dp) {
    std::uint64_t mixed = mix_key(static_cast<std::uint64_t>(d.cache.capacity), texts.size());
    for (const auto& t : texts) {
        mixed = mix_key(mixed, t.size());
        for (const TokenId id : t)
            mixed = mix_key(mixed, static_cast<std::uint64_t>(id));
    }
    const auto sum = static_cast<std::int64_t>(mixed);
    const bool alike = all_reduce_scalar(sum, ReduceOp::min, dp) ==
                       all_reduce_scalar(sum, ReduceOp::max, dp);  // dp: before anyone goes on
    require(alike, "prefill_shared: texts and capacity", "alike on all dp ranks",
            "texts or capacities that differ");
}

}  // namespace

std::vector<TokenId> prefill_shared(TrainState& s, Decoder& d,
                                    const std::vector<std::vector<TokenId>>& texts,
                                    const Mesh& mesh, const Exec& exec) {
    const std::int64_t longest = longest_of(texts), batch = std::ssize(texts);
    check_alike(texts, d, mesh.dp);
    require(d.cache.ranks == mesh.dp_size(), "prefill_shared: dp ranks",
            "as many as share the decoder",
            std::to_string(mesh.dp_size()) + " for " + std::to_string(d.cache.ranks));
    require(batch == d.cache.batch, "prefill_shared: texts", "as many as the decoder has",
            std::to_string(batch) + " for " + std::to_string(d.cache.batch));
    require(std::ranges::count(d.length, 0) == batch, "prefill_shared: decoder",
            "one that has read nothing; feed() goes on", "a text in it");
    require(longest >= 1 && longest <= d.cache.capacity, "prefill_shared: longest text",
            "1 or more tokens, at most the decoder's capacity",
            std::to_string(longest) + " for " + std::to_string(d.cache.capacity));
    require(longest <= s.model.rope_cos.shape[0], "prefill_shared: longest text",
            "at most the positions of the run",
            std::to_string(longest) + " for " + std::to_string(s.model.rope_cos.shape[0]));

    const Division division = divide(longest, mesh.dp_size());
    Placer list;
    layout_rows(list, s.dims, batch, division);
    Prefill p{.s = s,
              .d = d,
              .texts = texts,
              .mesh = mesh,
              .exec = exec,
              .division = division,
              .first = division.first(mesh.dp_rank()),
              .end = division.first(mesh.dp_rank() + 1),
              .space = make_workspace(s, batch, division.chunk),
              .memory = make_buffer(list.bytes(), s.device),
              .rows = {}};
    Placer placer(p.memory.data(), p.memory.bytes(), s.device);
    p.rows = layout_rows(placer, s.dims, batch, division);

    for (std::int64_t g = p.first; g < p.end; ++g) {
        load_part(p.space, part_of(p, g), p.exec);
        embed_part(s, p.space, of_chunk(p, p.rows.x, g), mesh, exec);  // tp
    }
    for (std::int64_t l = 0; l < std::ssize(s.model.work.blocks); ++l)
        prefill_layer(p, l);  // tp, dp
    share_last(p);            // dp
    for (std::size_t b = 0; b < texts.size(); ++b)
        d.length[b] = std::ssize(texts[b]);
    return pick_tokens(s, d.hidden, d.pick, mesh.tp, exec);  // tp
}

std::vector<TokenId> generate_shared(TrainState& s, const std::vector<TokenId>& prompt,
                                     std::int64_t max_new_tokens, TokenId stop, const Mesh& mesh,
                                     const Exec& exec) {
    require_prompt_fits(s, prompt, max_new_tokens);
    std::vector<TokenId> out;
    if (max_new_tokens == 0) return out;
    Decoder d = make_shared_decoder(s, 1, std::ssize(prompt) + max_new_tokens, mesh);
    TokenId next = prefill_shared(s, d, {prompt}, mesh, exec)[0];
    while (next != stop) {
        out.push_back(next);
        if (std::ssize(out) == max_new_tokens) break;
        next = feed(s, d, {{next}}, mesh, exec)[0];
    }
    return out;
}

SharedPrefillBytes shared_prefill_bytes(const TrainState& s, std::int64_t batch,
                                        std::int64_t capacity, std::int64_t n, int ranks,
                                        int rank) {
    const Division division = divide(n, ranks);
    const std::int64_t hidden = batch * s.dims.d_model * size_of(s.dims.formats.residual);
    SharedPrefillBytes bytes{.workspace = workspace_bytes(s, batch, division.chunk) +
                                          workspace_bytes(s, batch, 1) +
                                          pick_space_bytes(s, batch) + hidden};
    Placer list;
    layout_rows(list, s.dims, batch, division);
    bytes.rows = list.bytes();
    for (std::size_t l = 0; l < s.dims.attention.size(); ++l) {
        const bool mine = static_cast<int>(l) % ranks == rank;
        if (mine) bytes.own += layer_cache_bytes(s, l, batch, capacity);
        const Seen seen = seen_by(division, s.dims.attention[l], n, mine, rank);
        if (seen.needed)
            bytes.passing = std::max(bytes.passing, layer_cache_bytes(s, l, batch, seen.capacity));
    }
    return bytes;
}

}  // namespace stoa
