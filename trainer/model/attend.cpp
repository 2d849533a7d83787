#include "trainer/model/attend.h"

#include <algorithm>
#include <cmath>

#include "kernels/attention.h"
#include "kernels/core/philox.h"
#include "kernels/device_memory.h"
#include "kernels/elementwise.h"
#include "kernels/importance_distil.h"
#include "kernels/importance_gate.h"
#include "kernels/matmul.h"

namespace stoa {
namespace {

constexpr std::uint64_t kDenseRowDraws = 0x726f7773;  // "rows"

LayerAttention kind_of(const BlockContext& c) {
    return c.dims.attention[static_cast<std::size_t>(c.layer)];
}

// (rows, heads) as (micro_batch, seq_len, heads).
template <class View>
View by_token(const View& x, const Activations& a) {
    return x.empty() ? View{} : View(x.reshaped({a.micro_batch, a.seq_len, x.cols()}));
}

// What forward and backward of the sparse kinds read alike.
template <class Args>
void set_inputs(Args& args, const BlockContext& c, const BlockWeights& w, const BlockSaved& s) {
    args.q = by_batch(ConstTensorView(s.q), c.acts, c.dims.head_dim);
    args.key_begin = c.acts.key_begin;
    args.scale = attention_scale(c.dims);
    if (!selects_keys(kind_of(c))) return;
    args.gate = by_token(ConstTensorView(s.key_gate), c.acts);
    args.sink_logit = w.sinks;
}

// The dense rows of this layer, drawn by what they are in the run: all heads, ranks and passes draw
// the same. Absent outside training.
ConstTensorView dense_rows(const BlockContext& c) {
    const TensorView& rows = c.acts.scratch.dense_rows;
    if (rows.empty() || c.training_rows == nullptr) return {};
    const TrainingRows& r = *c.training_rows;
    const std::uint64_t of_step =
        mix_key(mix_key(r.seed, kDenseRowDraws), static_cast<std::uint64_t>(r.step));
    std::vector<std::int32_t> all(static_cast<std::size_t>(rows.numel()));
    for (std::int64_t b = 0; b < rows.rows(); ++b) {
        const auto tokens = std::span(all).subspan(static_cast<std::size_t>(b * rows.cols()),
                                                   static_cast<std::size_t>(rows.cols()));
        const std::uint64_t of_sequence =
            mix_key(of_step, mix_key(static_cast<std::uint64_t>(c.layer),
                                     static_cast<std::uint64_t>(r.first_slot + b)));
        for (std::size_t i = 0; i < tokens.size(); ++i)
            tokens[i] = static_cast<std::int32_t>(
                permute(of_sequence, static_cast<std::uint64_t>(c.acts.seq_len), i));
        std::ranges::sort(tokens);
    }
    upload<std::int32_t>(rows, all, c.exec);
    return rows;
}
template <class Args>
void set_gradients(Args& args, const BlockContext& c, const BlockSaved& s) {
    const BlockScratch& t = c.acts.scratch;
    const std::int64_t hd = c.dims.head_dim;
    args.d_q = by_batch(t.d_q, c.acts, hd);
    args.d_k = by_batch(t.d_k, c.acts, hd);
    args.d_v = by_batch(t.d_v, c.acts, hd);
    args.d_out = by_batch(ConstTensorView(t.d_attn), c.acts, hd);
    args.out = by_batch(ConstTensorView(s.attn), c.acts, hd);
    args.lse = s.lse;
    args.k = by_batch(ConstTensorView(s.k), c.acts, hd);
    args.v = by_batch(ConstTensorView(s.v), c.acts, hd);
}
template <class Args>
void set_sparse_gradients(Args& args, const BlockContext& c) {
    if (!selects_keys(kind_of(c))) return;
    args.d_gate = by_token(c.acts.scratch.d_gate, c.acts);
    args.d_sink = by_token(c.acts.scratch.d_sink, c.acts);
}

// What importance learns from the dense rows, from their far mass; absent without them. It stays
// with the importance weights: what the layers before make is for the loss of the targets.
TensorView distilled(const BlockContext& c, const BlockSaved& s) {
    const TensorView& far_mass = c.acts.scratch.far_mass;
    if (kind_of(c) != LayerAttention::importance || far_mass.empty() || c.training_rows == nullptr)
        return {};
    const AttentionConfig& rule = c.dims.attention_rule;
    importance_distil({.d_importance = by_token(far_mass, c.acts),
                       .importance = by_token(ConstTensorView(s.importance), c.acts),
                       .key_begin = c.acts.key_begin,
                       .targets = c.acts.targets,
                       .rule = key_rule(rule, LayerAttention::importance),
                       .d_loss = rule.distil * c.training_rows->d_loss},
                      c.exec);
    return far_mass;
}

// From d_gate and d_sink to the gradients of the layer's own weights, and to d_importance.
void importance_backward(const BlockContext& c, const BlockWeights& g, const BlockSaved& s) {
    const BlockScratch& t = c.acts.scratch;
    add_rows(g.sinks, t.d_sink, c.exec);
    importance_gate_backward(
        {.d_gate = t.d_gate, .d_bias = g.importance_bias, .importance = s.importance}, c.exec);
    const TensorView learned = distilled(c, s);
    if (!learned.empty()) add(learned, learned, t.d_gate, c.exec);
    cast(t.d_importance, learned.empty() ? t.d_gate : learned, c.exec);
    weight_gradient(c, g.importance, t.d_importance, s.h1);
    if (!learned.empty()) cast(t.d_importance, t.d_gate, c.exec);  // to the layer's input
}

}  // namespace

TreeRule tree_rule(const AttentionConfig& a) {
    return {
        .window = a.window, .leaf = a.leaf, .fanout = a.fanout, .beam = a.beam, .sinks = a.sinks};
}

KeyRule key_rule(const AttentionConfig& a, LayerAttention kind) {
    return {.window = a.window,
            .sinks = a.sinks,
            .keep = kind == LayerAttention::importance ? a.keep : 0};
}

std::int64_t dense_row_count(const LocalDims& d, std::int64_t seq_len) {
    if (std::ranges::find(d.attention, LayerAttention::importance) == d.attention.end()) return 0;
    return std::llround(std::ceil(d.attention_rule.dense_rows * static_cast<double>(seq_len)));
}

Shape selection_shape(const TreeRule& rule, std::int64_t heads, std::int64_t seq_len) {
    return {heads, seq_len, tree_levels(rule, seq_len), tree_slots(rule)};
}

double attention_scale(const LocalDims& d) {
    return 1.0 / std::sqrt(static_cast<double>(d.head_dim));
}

void importance_forward(const BlockContext& c, const BlockWeights& w, const BlockSaved& s) {
    if (!selects_keys(kind_of(c))) return;
    matmul({.c = s.importance, .a = s.h1, .b = w.importance, .transpose_b = true}, c.exec);
    importance_gate_forward(
        {.gate = s.key_gate, .importance = s.importance, .bias = w.importance_bias}, c.exec);
}

void attend_forward(const BlockContext& c, const BlockWeights& w, const BlockSaved& s,
                    ConstTensorView k, ConstTensorView v, bool causal) {
    const LayerAttention kind = kind_of(c);
    const auto run = [&](auto args, auto forward) {
        args.out = by_batch(s.attn, c.acts, c.dims.head_dim);
        args.lse = s.lse;
        args.k = k;
        args.v = v;
        forward(args, c.exec);
    };
    if (kind == LayerAttention::dense) {
        AttentionArgs args{.key_begin = c.acts.key_begin,
                           .key_end = c.acts.key_end,
                           .scale = attention_scale(c.dims),
                           .causal = causal};
        args.q = by_batch(ConstTensorView(s.q), c.acts, c.dims.head_dim);
        return run(args, attention_forward);
    }
    if (kind == LayerAttention::tree) {
        TreeAttentionArgs args{.selection = s.selection, .rule = tree_rule(c.dims.attention_rule)};
        set_inputs(args, c, w, s);
        return run(args, tree_attention_forward);
    }
    ImportanceAttentionArgs args{.expiry = s.selection,
                                 .rule = key_rule(c.dims.attention_rule, kind)};
    set_inputs(args, c, w, s);
    if (kind == LayerAttention::importance) args.dense_rows = dense_rows(c);
    select_keys({.expiry = s.selection,
                 .importance = by_token(ConstTensorView(s.importance), c.acts),
                 .key_begin = c.acts.key_begin,
                 .rule = args.rule},
                c.exec);
    run(args, importance_attention_forward);
}

void attend_backward(const BlockContext& c, const BlockWeights& w, const BlockWeights& g,
                     const BlockSaved& s) {
    const LayerAttention kind = kind_of(c);
    if (kind == LayerAttention::dense) {
        AttentionBackwardArgs args{.key_begin = c.acts.key_begin,
                                   .key_end = c.acts.key_end,
                                   .scale = attention_scale(c.dims),
                                   .causal = true};
        args.q = by_batch(ConstTensorView(s.q), c.acts, c.dims.head_dim);
        set_gradients(args, c, s);
        attention_backward(args, c.exec);
    } else if (kind == LayerAttention::tree) {
        TreeAttentionBackwardArgs args{.selection = s.selection,
                                       .rule = tree_rule(c.dims.attention_rule)};
        set_inputs(args, c, w, s);
        set_gradients(args, c, s);
        set_sparse_gradients(args, c);
        tree_attention_backward(args, c.exec);
    } else {
        ImportanceAttentionBackwardArgs args{.expiry = s.selection,
                                             .rule = key_rule(c.dims.attention_rule, kind)};
        set_inputs(args, c, w, s);
        set_gradients(args, c, s);
        set_sparse_gradients(args, c);
        if (kind == LayerAttention::importance) args.dense_rows = dense_rows(c);
        if (!args.dense_rows.empty()) args.far_mass = by_token(c.acts.scratch.far_mass, c.acts);
        importance_attention_backward(args, c.exec);
    }
    if (selects_keys(kind))
        importance_backward(c, g, s);
    else if (!g.importance.empty() && !c.add_grads)
        zero(g.importance, c.exec);  // learned in other stages
}

}  // namespace stoa
