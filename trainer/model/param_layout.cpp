// The logical model as a table, its cuts over tp and dp, and where each tensor lies.
#include <algorithm>
#include <cmath>
#include <span>

#include "kernels/core/philox.h"
#include "kernels/quantize.h"
#include "trainer/model/params.h"

namespace stoa {
namespace {

std::uint64_t name_hash(
    const std::string& name) {  // FNV-1a: names parameters in the random streams
    std::uint64_t h = 0xcbf29ce484222325u;
    for (const char c : name)
        h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
    return h;
}

// An importance gate starts open: sigmoid(4) = 0.98.
constexpr double kOpenGate = 4.0;

// The logical model as a table: vectors by head first (see ModelState::head_sums), then the norms,
// then the matrices from top to bottom.
std::vector<Param> param_table(const RunConfig& config) {
    const ModelConfig& m = config.model;
    const Formats formats = formats_of(config.precision);
    const double std = m.init_std;
    const double residual_std = std / std::sqrt(2.0 * static_cast<double>(m.n_layers));  // [GPT-2]
    const std::int64_t q = m.n_heads * m.head_dim, kv = m.n_kv_heads * m.head_dim;
    std::vector<Param> table;
    const auto norm = [&](const std::string& name, std::int64_t n) {
        table.push_back({.name = name, .global_shape = {n}, .format = formats.wide});
    };
    const auto per_head = [&](const std::string& name, std::int64_t n, double fill) {
        norm(name, n);
        table.back().fill = fill;
        table.back().heads = n;
        table.back().per_head = true;
    };
    const auto matrix = [&](const std::string& name, std::int64_t out, std::int64_t in, TpCut cut,
                            double s, DType format) {
        table.push_back({.name = name,
                         .global_shape = {out, in},
                         .cut = cut,
                         .decay = true,
                         .init_std = s,
                         .format = format});
    };
    const auto layer = [](std::int64_t l) { return "model.layers." + std::to_string(l) + "."; };
    for (std::int64_t l = 0; l < m.n_layers; ++l) {
        norm(layer(l) + "self_attn.q_norm.weight", m.head_dim);
        table.back().heads = m.n_heads;
        norm(layer(l) + "self_attn.k_norm.weight", m.head_dim);
        table.back().heads = m.n_kv_heads;
        if (!learns_importance(config, l)) continue;
        per_head(layer(l) + "self_attn.sinks", m.n_heads, 0.0);
        per_head(layer(l) + "self_attn.importance.bias", m.n_kv_heads, kOpenGate);
    }
    for (std::int64_t l = 0; l < m.n_layers; ++l) {
        norm(layer(l) + "input_layernorm.weight", m.d_model);
        norm(layer(l) + "post_attention_layernorm.weight", m.d_model);
    }
    norm("model.norm.weight", m.d_model);
    matrix("model.embed_tokens.weight", m.vocab_size, m.d_model, TpCut::rows, std,
           formats.residual);
    for (std::int64_t l = 0; l < m.n_layers; ++l) {
        const DType attention = formats.attention, ffn = ffn_format(formats, config, l);
        matrix(layer(l) + "self_attn.q_proj.weight", q, m.d_model, TpCut::rows, std, attention);
        matrix(layer(l) + "self_attn.k_proj.weight", kv, m.d_model, TpCut::rows, std, attention);
        matrix(layer(l) + "self_attn.v_proj.weight", kv, m.d_model, TpCut::rows, std, attention);
        matrix(layer(l) + "self_attn.o_proj.weight", m.d_model, q, TpCut::cols, residual_std,
               attention);
        if (learns_importance(config, l)) {
            matrix(layer(l) + "self_attn.importance.weight", m.n_kv_heads, m.d_model, TpCut::rows,
                   std, attention);
            table.back().decay = false;
        }
        matrix(layer(l) + "mlp.gate_proj.weight", m.d_ff, m.d_model, TpCut::rows, std, ffn);
        matrix(layer(l) + "mlp.up_proj.weight", m.d_ff, m.d_model, TpCut::rows, std, ffn);
        matrix(layer(l) + "mlp.down_proj.weight", m.d_model, m.d_ff, TpCut::cols, residual_std,
               ffn);
    }
    if (!m.tie_embeddings)
        matrix("lm_head.weight", m.vocab_size, m.d_model, TpCut::rows, std, formats.residual);
    return table;
}

Shape local_shape(const Param& p) {
    if (p.cut == TpCut::rows) return {p.range.local, p.global_shape[1]};
    if (p.cut == TpCut::cols) return {p.global_shape[0], p.range.local};
    return p.global_shape;
}

// The piece of a flat buffer that starts at element `offset`.
TensorView piece(const TensorView& flat, std::int64_t offset, const Shape& shape) {
    return {flat.data == nullptr ? nullptr : flat.data + offset * size_of(flat.dtype), flat.dtype,
            shape, flat.device};
}

// Views of one kind (work or grad) in the shape of the model. The table's order is known here only.
template <class Pick>
Weights model_views(const std::vector<Param>& params, const RunConfig& config, const Pick& pick) {
    const auto n_layers = static_cast<std::size_t>(config.model.n_layers);
    Weights w;
    w.blocks.resize(n_layers);
    std::size_t i = 0;
    const auto next = [&]() -> Scaled { return pick(params[i++]); };
    const auto learns = [&](const BlockWeights& b) {
        return learns_importance(config, &b - w.blocks.data());
    };
    for (BlockWeights& b : w.blocks) {
        b.q_norm = next().data;
        b.k_norm = next().data;
        if (!learns(b)) continue;
        b.sinks = next().data;
        b.importance_bias = next().data;
    }
    for (BlockWeights& b : w.blocks) {
        b.input_norm = next().data;
        b.post_norm = next().data;
    }
    w.final_norm = next().data;
    w.embed = next().data;
    for (BlockWeights& b : w.blocks) {
        b.q = next().data;
        b.k = next().data;
        b.v = next().data;
        b.out = next().data;
        if (learns(b)) b.importance = next().data;
        b.gate = next();
        b.up = next();
        b.down = next();
    }
    w.lm_head = config.model.tie_embeddings ? w.embed : next().data;
    return w;
}

// A tensor of the run, with block scales when it is 8-bit.
Scaled place_scaled(Placer& placer, const std::string& name, const Shape& shape, DType dtype,
                    QuantBlocks blocks) {
    Scaled t{placer.place(name, shape, dtype, Lifetime::run), {}};
    if (dtype == DType::e4m3)
        t.scale =
            placer.place(name + ".scale", scale_shape(shape, blocks), DType::e8m0, Lifetime::run);
    return t;
}

// Blocks, embedding, output matrix: the table has norms first, then the units one after the other.
std::vector<Unit> units_of(const std::vector<Param>& params, const RunConfig& config) {
    const auto embedding = static_cast<std::size_t>(
        std::ranges::find_if(params, [](const Param& p) { return !p.is_norm(); }) - params.begin());
    std::vector<Unit> units;
    std::size_t at = embedding + 1;
    for (std::int64_t l = 0; l < config.model.n_layers; ++l) {
        units.push_back({.first = at, .count = learns_importance(config, l) ? 8u : 7u});
        at += units.back().count;
    }
    units.push_back({.first = embedding, .count = 1});
    if (at < params.size()) units.push_back({.first = at, .count = 1});
    return units;
}

std::span<Param> params_of(ModelState& s, const Unit& u) {
    return std::span(s.params).subspan(u.first, u.count);
}

// Of tensors that lie side by side.
std::int64_t matrix_elements(std::span<const Param> params) {
    std::int64_t end = 0;
    for (const Param& p : params)
        end = align_up(end + local_shape(p).numel());
    return end;
}

// What backward writes. With zero: 2 and 3 blocks take turns in a few buffers: a block's gradients
// are summed before another needs the room.
void place_shard_grads(Placer& placer, ModelState& s, DType dtype, std::int64_t buffers) {
    std::int64_t flat = 0, largest = 0;
    for (const Unit& u : s.units) {
        const std::int64_t n = matrix_elements(params_of(s, u));
        if (u.grad_buffer >= 0)
            largest = std::max(largest, n);
        else
            flat += n;
    }
    std::vector<TensorView> shared;
    for (std::int64_t b = 0; b < buffers; ++b)
        shared.push_back(
            placer.place("grads.buffer." + std::to_string(b), {largest}, dtype, Lifetime::run));
    s.matrix_grads = placer.place("grads.matrices", {flat}, dtype, Lifetime::run);
    std::int64_t own = 0;  // of matrix_grads, in the order of the table
    for (Param& p : s.params) {
        if (p.is_norm()) continue;
        const auto unit = std::ranges::find_if(s.units, [&](const Unit& u) {
            const auto i = static_cast<std::size_t>(&p - s.params.data());
            return i >= u.first && i < u.first + u.count;
        });
        if (unit->grad_buffer < 0) {
            p.shard_grad = piece(s.matrix_grads, own, local_shape(p));
            own = align_up(own + local_shape(p).numel());
            continue;
        }
        const auto before = std::span(s.params).subspan(
            unit->first, static_cast<std::size_t>(&p - s.params.data()) - unit->first);
        p.shard_grad = piece(shared[static_cast<std::size_t>(unit->grad_buffer)],
                             matrix_elements(before), local_shape(p));
    }
}

// What the optimizer reads, of the rows that are this rank's. In place where a rank has one shard
// and its gradients have their own place.
void place_grad_sums(Placer& placer, ModelState& s, DType dtype, std::int64_t shards) {
    for (const Unit& u : s.units)
        for (Param& p : params_of(s, u)) {
            const Shape mine{p.mine.count, local_shape(p)[1]};
            p.grad = shards > 1 || u.grad_buffer >= 0
                         ? placer.place("grads.sum/" + p.name, mine, dtype, Lifetime::run)
                         : piece(p.shard_grad, p.mine.begin * mine[1], mine);
        }
}

// Gradients of the norms lie flat, so that they are one message: first those by head.
void place_norm_grads(Placer& placer, ModelState& s, DType wide, std::int64_t shards) {
    std::int64_t heads = 0;  // elements
    for (const Param& p : s.params)
        heads += p.head_elements();
    std::int64_t norms = align_up(heads);
    std::vector<std::int64_t> offsets;
    for (const Param& p : s.params) {
        if (!p.is_norm()) break;
        offsets.push_back(norms);
        norms = align_up(norms + local_shape(p).numel());
    }
    s.norm_grads = placer.place("grads.norms", {norms}, wide, Lifetime::run);
    s.norm_sums =
        shards > 1 ? placer.place("grads.norms.sum", {norms}, wide, Lifetime::run) : s.norm_grads;
    s.head_sums = piece(s.norm_sums, 0, {heads});
    for (std::size_t i = 0; i < offsets.size(); ++i) {
        Param& p = s.params[i];
        p.shard_grad = piece(s.norm_grads, offsets[i], local_shape(p));
        p.grad = piece(s.norm_sums, offsets[i], local_shape(p));
    }
}

// This rank's heads: what backward adds the gradients of vectors by head to, and of sinks and
// importance biases what it computes with.
void view_heads(ModelState& s, int tp_rank, int tp_size) {
    std::size_t i = 0;
    std::int64_t at = 0;
    const auto next = [&](TensorView& grad, TensorView* work) {
        const Param& p = s.params[i++];
        const std::int64_t local = p.heads / tp_size, of_head = p.head_elements() / p.heads;
        grad = piece(s.norm_grads, at + tp_rank * local * of_head, {local, of_head});
        at += p.head_elements();
        if (work != nullptr) *work = piece(*work, tp_rank * local, {local});
    };
    for (std::size_t l = 0; l < s.grads.blocks.size(); ++l) {
        BlockWeights &g = s.grads.blocks[l], &w = s.work.blocks[l];
        next(g.q_norm, nullptr);
        next(g.k_norm, nullptr);
        if (w.sinks.shape.rank == 0) continue;
        next(g.sinks, &w.sinks);
        next(g.importance_bias, &w.importance_bias);
    }
}

// Deals out the blocks of 128 rows of one unit's matrices, in the order of the table, so that each
// dp rank gets its part of the elements, within a block. `turn`: who begins.
void share_out(std::span<Param> params, int dp_rank, std::int64_t dp, std::int64_t turn) {
    std::int64_t total = 0, at = 0;
    for (const Param& p : params)
        total += local_shape(p).numel();
    for (Param& p : params) {
        const Shape shape = local_shape(p);
        p.mine = {dp_rank, 0, 0};
        for (std::int64_t row = 0; row < p.local_rows; row += kQuantBlock) {
            const std::int64_t count = std::min(kQuantBlock, p.local_rows - row);
            const auto share = static_cast<std::int64_t>(
                static_cast<double>(at) / static_cast<double>(total) * static_cast<double>(dp));
            const auto owner = static_cast<int>((share + turn) % dp);
            if (p.owners.empty() || p.owners.back().dp_rank != owner)
                p.owners.push_back({owner, row, 0});
            p.owners.back().count += count;
            at += count * shape[1];
        }
        for (const OwnedRows& o : p.owners)
            if (o.dp_rank == dp_rank) p.mine = o;
    }
}

// Masters, moments, and working copies that have their own place.
void place_param(Placer& placer, Param& p, const Formats& formats) {
    const Shape shape = local_shape(p);
    const bool norm = p.is_norm();  // few values: kept wide
    const Shape mine = norm ? shape : Shape{p.mine.count, shape[1]};
    const DType master = norm ? formats.wide : formats.master;
    if (p.format == master && !p.gathered) {  // fp32 training computes with the masters themselves
        const TensorView all = placer.place("master/" + p.name, shape, master, Lifetime::run);
        p.work = {all, {}};
        p.master = norm ? all : piece(all, p.mine.begin * shape[1], mine);
    } else {
        p.master = placer.place("master/" + p.name, mine, master, Lifetime::run);
        if (!p.gathered)
            p.work = place_scaled(placer, "work/" + p.name, shape, p.format, QuantBlocks::square);
    }
    p.m = place_scaled(placer, "adam.m/" + p.name, mine, norm ? formats.wide : formats.m,
                       QuantBlocks::row);
    p.v = place_scaled(placer, "adam.v/" + p.name, mine, norm ? formats.wide : formats.v,
                       QuantBlocks::row);
}

// zero: 3: the working copies of one block at a time, in buffers that the blocks take in turns.
void place_gathered(Placer& placer, ModelState& s, std::int64_t buffers) {
    const auto place_block = [&](const Unit& u, Placer block) {
        for (Param& p : params_of(s, u))
            p.work = place_scaled(block, p.name, local_shape(p), p.format, QuantBlocks::square);
        return block.bytes();
    };
    std::int64_t largest = 0;
    for (const Unit& u : s.units)
        if (u.work_buffer >= 0) largest = std::max(largest, place_block(u, Placer{}));
    std::vector<TensorView> shared;
    for (std::int64_t b = 0; b < buffers; ++b)
        shared.push_back(placer.place("work.buffer." + std::to_string(b), {largest}, DType::e8m0,
                                      Lifetime::run));  // bytes
    for (const Unit& u : s.units)
        if (u.work_buffer >= 0)
            place_block(u, Placer(shared[static_cast<std::size_t>(u.work_buffer)].data, largest,
                                  shared.front().device));
    s.gathered.assign(static_cast<std::size_t>(buffers), -1);
}

}  // namespace

std::uint64_t Param::key(std::uint64_t seed) const { return mix_key(seed, name_hash(name)); }

LocalDims local_dims(const RunConfig& config, int tp_rank, int tp_size) {
    const ModelConfig& m = config.model;
    const std::int64_t dp = std::max<std::int64_t>(1, config.parallel.dp);
    const VirtualMesh sums = virtual_mesh(config, dp, tp_size);
    LocalDims d{.d_model = m.d_model,
                .n_heads = m.n_heads / tp_size,
                .n_kv_heads = m.n_kv_heads / tp_size,
                .head_dim = m.head_dim,
                .d_ff = m.d_ff / tp_size,
                .vocab = shard_range(m.vocab_size, tp_rank, tp_size, sums.tp_chunks),
                .formats = formats_of(config.precision)};
    d.chunks = sums.tp_chunks / tp_size;
    d.elastic = is_elastic(config);
    d.row_ranks = config.parallel.sequence ? tp_size : 1;
    d.segments = sums.tp_chunks;
    d.shard_micro_batches = std::max<std::int64_t>(
        1, config.batch.global_batch / (sums.dp_shards * config.batch.micro_batch));
    for (std::int64_t l = 0; l < m.n_layers; ++l) {
        d.ffn.push_back(ffn_format(d.formats, config, l));
        d.recompute.push_back(recompute_of(config, l));
    }
    set_attention(
        d, config.stages.empty() ? m.attention : attention_of(config, config.stages.front()));
    return d;
}

void set_attention(LocalDims& d, const AttentionConfig& rule) {
    d.attention_rule = rule;
    d.attention.clear();
    for (std::size_t l = 0; l < d.ffn.size(); ++l)
        d.attention.push_back(layer_attention(rule, static_cast<std::int64_t>(l)));
}

ModelState layout_model_state(Placer& placer, const RunConfig& config, const LocalDims& dims,
                              std::int64_t max_positions, int tp_rank, int tp_size, int dp_rank) {
    ModelState s;
    s.params = param_table(config);
    const std::int64_t dp = std::max<std::int64_t>(1, config.parallel.dp);
    const VirtualMesh sums = virtual_mesh(config, dp, tp_size);
    for (Param& p : s.params) {
        const int axis = p.cut == TpCut::cols ? 1 : 0;
        p.range = p.cut == TpCut::replicated
                      ? ShardRange{0, p.global_shape[0], p.global_shape[0]}
                      : shard_range(p.global_shape[axis], tp_rank, tp_size, sums.tp_chunks);
    }
    for (Param& p : s.params) {
        p.local_rows = p.global_shape.rank == 2 ? local_shape(p)[0] : 1;
        p.mine = {dp_rank, 0, p.local_rows};
    }
    s.units = units_of(s.params, config);
    const std::int64_t zero = dp > 1 ? config.parallel.zero : 0;
    const std::int64_t buffers =
        config.parallel.overlap != Overlap::off ? 2 : 1;  // one in use, one on its way
    for (std::size_t u = 0; u < s.units.size(); ++u) {
        Unit& unit = s.units[u];
        const auto turn = static_cast<std::int64_t>(u);
        if (zero > 0) share_out(params_of(s, unit), dp_rank, dp, turn);
        if (turn >= config.model.n_layers) continue;  // embeddings are whole everywhere
        if (zero >= 2) unit.grad_buffer = turn % buffers;
        if (zero < 3) continue;
        unit.work_buffer = turn % buffers;
        for (Param& p : params_of(s, unit))
            p.gathered = true;
    }
    for (Param& p : s.params)
        place_param(placer, p, dims.formats);
    if (zero >= 3) place_gathered(placer, s, buffers);
    place_norm_grads(placer, s, dims.formats.wide, sums.dp_shards / dp);
    place_shard_grads(placer, s, dims.formats.grad, zero >= 2 ? buffers : 0);
    place_grad_sums(placer, s, dims.formats.grad, sums.dp_shards / dp);
    s.work = model_views(s.params, config, [](const Param& p) { return p.work; });
    s.grads = model_views(s.params, config, [](const Param& p) {
        return Scaled{p.shard_grad, {}};
    });
    view_heads(s, tp_rank, tp_size);
    const Shape angles{max_positions, dims.head_dim / 2};
    s.rope_cos = placer.place("rope.cos", angles, dims.formats.wide, Lifetime::run);
    s.rope_sin = placer.place("rope.sin", angles, dims.formats.wide, Lifetime::run);
    return s;
}

std::int64_t count_parameters(const RunConfig& config) {
    std::int64_t n = 0;
    for (const Param& p : param_table(config))
        n += p.global_shape.numel();
    return n;
}

}  // namespace stoa
