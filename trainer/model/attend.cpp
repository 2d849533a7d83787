#include "trainer/model/attend.h"

#include <cmath>

#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/importance_gate.h"
#include "kernels/matmul.h"

namespace stoa {
namespace {

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

// From d_gate and d_sink to the gradients of the layer's own weights, and to d_importance.
void importance_backward(const BlockContext& c, const BlockWeights& g, const BlockSaved& s) {
    const BlockScratch& t = c.acts.scratch;
    add_rows(g.sinks, t.d_sink, c.exec);
    importance_gate_backward(
        {.d_gate = t.d_gate, .d_bias = g.importance_bias, .importance = s.importance}, c.exec);
    cast(t.d_importance, t.d_gate, c.exec);
    weight_gradient(c, g.importance, t.d_importance, s.h1);
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
                    ConstTensorView k, ConstTensorView v) {
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
                           .scale = attention_scale(c.dims)};
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
                                   .scale = attention_scale(c.dims)};
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
        importance_attention_backward(args, c.exec);
    }
    if (selects_keys(kind))
        importance_backward(c, g, s);
    else if (!g.importance.empty() && !c.add_grads)
        zero(g.importance, c.exec);  // learned in other stages
}

}  // namespace stoa
