#include "trainer/model/params.h"

#include <cmath>

#include "kernels/core/philox.h"
#include "kernels/elementwise.h"
#include "kernels/random_normal.h"
#include "kernels/rope.h"

namespace stoa {
namespace {

std::uint64_t name_hash(
    const std::string& name) {  // FNV-1a: names parameters in the random streams
    std::uint64_t h = 0xcbf29ce484222325u;
    for (const char c : name)
        h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
    return h;
}

// The logical model as a table, in the order of the flat buffers: q/k norms first (see
// ModelState::tp_partial_grads), then top to bottom.
std::vector<Param> param_table(const RunConfig& config) {
    const ModelConfig& m = config.model;
    const double std = m.init_std;
    const double residual_std = std / std::sqrt(2.0 * static_cast<double>(m.n_layers));  // [GPT-2]
    const std::int64_t q = m.n_heads * m.head_dim, kv = m.n_kv_heads * m.head_dim;
    std::vector<Param> table;
    const auto norm = [&](const std::string& name, std::int64_t n) {
        table.push_back({.name = name, .global_shape = {n}});
    };
    const auto matrix = [&](const std::string& name, std::int64_t out, std::int64_t in, TpCut cut,
                            double s) {
        table.push_back(
            {.name = name, .global_shape = {out, in}, .cut = cut, .decay = true, .init_std = s});
    };
    const auto layer = [](std::int64_t l) { return "model.layers." + std::to_string(l) + "."; };
    for (std::int64_t l = 0; l < m.n_layers; ++l) {
        norm(layer(l) + "self_attn.q_norm.weight", m.head_dim);
        norm(layer(l) + "self_attn.k_norm.weight", m.head_dim);
    }
    matrix("model.embed_tokens.weight", m.vocab_size, m.d_model, TpCut::rows, std);
    for (std::int64_t l = 0; l < m.n_layers; ++l) {
        norm(layer(l) + "input_layernorm.weight", m.d_model);
        matrix(layer(l) + "self_attn.q_proj.weight", q, m.d_model, TpCut::rows, std);
        matrix(layer(l) + "self_attn.k_proj.weight", kv, m.d_model, TpCut::rows, std);
        matrix(layer(l) + "self_attn.v_proj.weight", kv, m.d_model, TpCut::rows, std);
        matrix(layer(l) + "self_attn.o_proj.weight", m.d_model, q, TpCut::cols, residual_std);
        norm(layer(l) + "post_attention_layernorm.weight", m.d_model);
        matrix(layer(l) + "mlp.gate_proj.weight", m.d_ff, m.d_model, TpCut::rows, std);
        matrix(layer(l) + "mlp.up_proj.weight", m.d_ff, m.d_model, TpCut::rows, std);
        matrix(layer(l) + "mlp.down_proj.weight", m.d_model, m.d_ff, TpCut::cols, residual_std);
    }
    norm("model.norm.weight", m.d_model);
    if (!m.tie_embeddings) matrix("lm_head.weight", m.vocab_size, m.d_model, TpCut::rows, std);
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

// Views of one member (work or grad) in the shape of the model. The table's order is known here
// only.
Weights model_views(const std::vector<Param>& params, const RunConfig& config,
                    TensorView Param::*member) {
    const auto n_layers = static_cast<std::size_t>(config.model.n_layers);
    Weights w;
    w.blocks.resize(n_layers);
    std::size_t i = 0;
    const auto next = [&] { return params[i++].*member; };
    for (BlockWeights& b : w.blocks) {
        b.q_norm = next();
        b.k_norm = next();
    }
    w.embed = next();
    for (BlockWeights& b : w.blocks) {
        b.input_norm = next();
        b.q = next();
        b.k = next();
        b.v = next();
        b.out = next();
        b.post_norm = next();
        b.gate = next();
        b.up = next();
        b.down = next();
    }
    w.final_norm = next();
    w.lm_head = config.model.tie_embeddings ? w.embed : next();
    return w;
}

}  // namespace

DType compute_dtype(ComputeDType c) {
    return c == ComputeDType::bf16   ? DType::bf16
           : c == ComputeDType::fp64 ? DType::fp64
                                     : DType::fp32;
}

LocalDims local_dims(const RunConfig& config, int tp_rank, int tp_size) {
    const ModelConfig& m = config.model;
    const DType compute = compute_dtype(config.precision.compute);
    return {.d_model = m.d_model,
            .n_heads = m.n_heads / tp_size,
            .n_kv_heads = m.n_kv_heads / tp_size,
            .head_dim = m.head_dim,
            .d_ff = m.d_ff / tp_size,
            .vocab = shard_range(m.vocab_size, tp_rank, tp_size),
            .compute = compute,
            .wide = wide_dtype(compute)};
}

ModelState layout_model_state(Placer& placer, const RunConfig& config, const LocalDims& dims,
                              std::int64_t max_positions, int tp_rank, int tp_size) {
    ModelState s;
    s.params = param_table(config);
    std::int64_t flat = 0, partial = 0;  // elements
    std::vector<std::int64_t> offsets;
    for (Param& p : s.params) {
        const int axis = p.cut == TpCut::cols ? 1 : 0;
        p.range = p.cut == TpCut::replicated ? ShardRange{0, p.global_shape[0], p.global_shape[0]}
                                             : shard_range(p.global_shape[axis], tp_rank, tp_size);
        offsets.push_back(flat);
        flat = align_up(flat + local_shape(p).numel(), kAlignment);
        if (offsets.size() == static_cast<std::size_t>(2 * config.model.n_layers)) partial = flat;
    }
    s.master_flat = placer.place("params.master", {flat}, dims.wide, Lifetime::run);
    s.work_flat = dims.compute == dims.wide
                      ? s.master_flat  // fp32 training computes with the masters themselves
                      : placer.place("params.work", {flat}, dims.compute, Lifetime::run);
    s.grad_flat = placer.place("grads", {flat}, dims.wide, Lifetime::run);
    s.m_flat = placer.place("optimizer.m", {flat}, dims.wide, Lifetime::run);
    s.v_flat = placer.place("optimizer.v", {flat}, dims.wide, Lifetime::run);
    s.tp_partial_grads = piece(s.grad_flat, 0, {partial});
    for (std::size_t i = 0; i < s.params.size(); ++i) {
        Param& p = s.params[i];
        const Shape shape = local_shape(p);
        p.master = piece(s.master_flat, offsets[i], shape);
        p.work = piece(s.work_flat, offsets[i], shape);
        p.grad = piece(s.grad_flat, offsets[i], shape);
        p.m = piece(s.m_flat, offsets[i], shape);
        p.v = piece(s.v_flat, offsets[i], shape);
    }
    s.work = model_views(s.params, config, &Param::work);
    s.grads = model_views(s.params, config, &Param::grad);
    s.rope_cos =
        placer.place("rope.cos", {max_positions, dims.head_dim / 2}, dims.wide, Lifetime::run);
    s.rope_sin =
        placer.place("rope.sin", {max_positions, dims.head_dim / 2}, dims.wide, Lifetime::run);
    return s;
}

void init_model_state(ModelState& state, const RunConfig& config, const Exec& exec) {
    zero(state.master_flat, exec);
    zero(state.m_flat, exec);
    zero(state.v_flat, exec);
    for (Param& p : state.params) {
        if (p.init_std == 0.0) {
            dispatch_dtype(p.master.dtype, [&]<Element T>(T) {
                for (T& x : p.master.as<T>())
                    x = narrow_to<T>(1);
            });
            continue;
        }
        random_normal({.x = p.master,
                       .key = mix_key(config.run.seed, name_hash(p.name)),
                       .std = p.init_std,
                       .row_begin = p.cut == TpCut::rows ? p.range.begin : 0,
                       .col_begin = p.cut == TpCut::cols ? p.range.begin : 0,
                       .logical_rows = p.global_shape[0],
                       .logical_cols = p.global_shape[1]},
                      exec);
    }
    rope_table(state.rope_cos, state.rope_sin, config.model.rope_theta, exec);
    refresh_work(state, exec);
}

void refresh_work(ModelState& state, const Exec& exec) {
    if (state.work_flat.data != state.master_flat.data)
        cast(state.work_flat, state.master_flat, exec);
}

std::vector<TensorShard> checkpoint_shards(const ModelState& state) {
    std::vector<TensorShard> shards;
    const auto add_shard = [&](const std::string& prefix, const Param& p, const TensorView& view) {
        TensorShard s{.name = prefix + p.name,
                      .global_shape = p.global_shape,
                      .view = view,
                      .replicated = p.cut == TpCut::replicated};
        const std::int64_t rows = p.global_shape.rank == 1 ? 1 : p.global_shape[0];
        const std::int64_t cols = p.global_shape.rank == 1 ? p.global_shape[0] : p.global_shape[1];
        s.row_count = rows;
        s.col_count = cols;
        if (p.cut == TpCut::rows) {
            s.row_begin = p.range.begin;
            s.row_count = p.range.count;
        } else if (p.cut == TpCut::cols) {
            s.col_begin = p.range.begin;
            s.col_count = p.range.count;
        }
        shards.push_back(s);
    };
    for (const Param& p : state.params)
        add_shard("", p, p.master);
    for (const Param& p : state.params)
        add_shard("optimizer.m/", p, p.m);
    for (const Param& p : state.params)
        add_shard("optimizer.v/", p, p.v);
    return shards;
}

std::int64_t count_parameters(const RunConfig& config) {
    std::int64_t n = 0;
    for (const Param& p : param_table(config))
        n += p.global_shape.numel();
    return n;
}

}  // namespace stoa
