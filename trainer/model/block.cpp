#include "trainer/model/block.h"

#include <algorithm>
#include <tuple>

#include "kernels/elementwise.h"
#include "kernels/matmul.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "trainer/model/attend.h"
#include "trainer/model/chunk_sum.h"
#include "trainer/model/ffn.h"
#include "trainer/model/sequence.h"

namespace stoa {
namespace {

// y = x w^T for a weight stored (out, in).
void linear(TensorView y, ConstTensorView x, ConstTensorView w, const Exec& exec) {
    matmul({.c = y, .a = x, .b = w, .transpose_b = true}, exec);
}

// product(begin, count) for all rows of the stream, whose sums over tp begin as chunks are done.
template <class Product>
TensorView summed_rows(const BlockContext& c, const Product& product) {
    RowSums sums = stream_sums(c);
    const std::int64_t rows = c.acts.scratch.stream.rows();
    const std::int64_t chunk = c.tp_queue != nullptr && c.tp_queue->own_thread() ? kFfnChunk : rows;
    for (std::int64_t begin = 0; begin < rows; begin += chunk) {
        const std::int64_t count = std::min(chunk, rows - begin);
        product(begin, count);
        sums.ready(begin, count);
    }
    return sums.finish();
}

// attn w^T, a sum over all heads.     comm: tp
TensorView attention_output(const BlockContext& c, ConstTensorView attn, ConstTensorView w) {
    const BlockScratch& t = c.acts.scratch;
    return summed_rows(c, [&](std::int64_t begin, std::int64_t count) {
        const auto product = [&](std::int64_t chunk, TensorView out) {
            const auto [first, n] = chunk_span(c.dims.q_cols(), c.dims.chunks, chunk);
            matmul({.c = out,
                    .a = attn.slice_rows(begin, count),
                    .b = w,
                    .transpose_b = true,
                    .k_begin = first,
                    .k_count = n},
                   c.exec);
        };
        sum_chunks(t.stream.slice_rows(begin, count), 0, c.dims.chunks, t, product, c.exec);
    });
}

// d_h = d_q w_q + d_k w_k + d_v w_v (+ d_importance w_importance), a sum over all heads.     comm:
// tp
TensorView attention_input_gradient(const BlockContext& c, const BlockWeights& w) {
    const BlockScratch& t = c.acts.scratch;
    return summed_rows(c, [&](std::int64_t begin, std::int64_t count) {
        const auto product = [&](std::int64_t chunk, TensorView out) {
            const auto add_part = [&](ConstTensorView d, ConstTensorView weight, bool accumulate) {
                const auto [first, n] = chunk_span(d.cols(), c.dims.chunks, chunk);
                matmul({.c = out,
                        .a = d.slice_rows(begin, count),
                        .b = weight,
                        .accumulate = accumulate,
                        .k_begin = first,
                        .k_count = n},
                       c.exec);
            };
            add_part(t.d_q, w.q, false);
            add_part(t.d_k, w.k, true);
            add_part(t.d_v, w.v, true);
            if (selects_keys(c.dims.attention[static_cast<std::size_t>(c.layer)]))
                add_part(t.d_importance, w.importance, true);
        };
        sum_chunks(t.stream.slice_rows(begin, count), 0, c.dims.chunks, t, product, c.exec);
    });
}

// (rows, heads * head_dim) as (rows, heads, head_dim) and as (rows * heads, head_dim).
template <class View>
View by_head(View x, std::int64_t head_dim) {
    return x.reshaped({x.rows(), x.cols() / head_dim, head_dim});
}
template <class View>
View head_rows(View x, std::int64_t head_dim) {
    return x.reshaped({x.numel() / head_dim, head_dim});
}

// (segments, d_model) of one of the block's norms, of this rank's rows.
TensorView norm_gradient(const BlockContext& c, std::int64_t norm) {
    return norm_segments_of(c.acts, c.dims, c.tp, norm);
}
std::int64_t segment_rows(const BlockContext& c, ConstTensorView own) {
    return own.rows() / c.acts.norm_segments.shape[2];
}

}  // namespace

void weight_gradient(const BlockContext& c, TensorView d_w, ConstTensorView d_y,
                     ConstTensorView x) {
    matmul({.c = d_w,
            .a = d_y,
            .b = x,
            .transpose_a = true,
            .accumulate = c.add_grads,
            .chain = c.dims.elastic,
            .rounding = grad_rounding(c.state, d_w, c.grad_pass, 0)},
           c.exec);
}

RowSums stream_sums(const BlockContext& c) {
    return {c.acts.scratch.stream, c.dims, {c.tp, c.tp_beside, c.tp_queue}, c.exec};
}

void block_forward(const BlockContext& c, const BlockWeights& w, const BlockSaved& s,
                   ConstTensorView x_in, TensorView x_out) {
    block_qkv(c, w, s, x_in);
    attend_forward(c, w, s, by_batch(s.k, c.acts, c.dims.head_dim),
                   by_batch(s.v, c.acts, c.dims.head_dim), true);
    block_finish(c, w, s, x_in, x_out);
}

namespace {

void input_norm(const BlockContext& c, const BlockWeights& w, const BlockSaved& s,
                ConstTensorView x_in) {
    rms_norm_forward({.y = own_rows(s.h1, c.dims, c.tp),
                      .rstd = s.rstd1,
                      .x = x_in,
                      .weight = w.input_norm,
                      .eps = c.norm_eps},
                     c.exec);
    share_rows(s.h1, c.dims, c.tp, c.exec);  // tp, sequence
}

// q = rope(norm(q_pre)), k likewise.
void norm_and_rope(const BlockContext& c, const BlockWeights& w, const BlockSaved& s) {
    const std::int64_t hd = c.dims.head_dim;
    const auto& [cos, sin] = std::tie(c.state.rope_cos, c.state.rope_sin);
    rms_norm_forward({.y = head_rows(s.q, hd),
                      .rstd = s.rstd_q,
                      .x = head_rows(s.q_pre, hd),
                      .weight = w.q_norm,
                      .eps = c.norm_eps},
                     c.exec);
    rms_norm_forward({.y = head_rows(s.k, hd),
                      .rstd = s.rstd_k,
                      .x = head_rows(s.k_pre, hd),
                      .weight = w.k_norm,
                      .eps = c.norm_eps},
                     c.exec);
    rope({.x = by_head(s.q, hd), .cos = cos, .sin = sin, .positions = c.acts.positions}, c.exec);
    rope({.x = by_head(s.k, hd), .cos = cos, .sin = sin, .positions = c.acts.positions}, c.exec);
}

}  // namespace

void block_qkv(const BlockContext& c, const BlockWeights& w, const BlockSaved& s,
               ConstTensorView x_in) {
    input_norm(c, w, s, x_in);
    linear(s.q_pre, s.h1, w.q, c.exec);  // (rows, q_cols): this rank's heads
    linear(s.k_pre, s.h1, w.k, c.exec);  // (rows, kv_cols)
    linear(s.v, s.h1, w.v, c.exec);      // (rows, kv_cols)
    importance_forward(c, w, s);
    norm_and_rope(c, w, s);
}

void block_recompute(const BlockContext& c, const BlockWeights& w, const BlockSaved& s,
                     ConstTensorView x_in) {
    input_norm(c, w, s, x_in);
    norm_and_rope(c, w, s);
    ffn_recompute(c, w, s);
}

void block_finish(const BlockContext& c, const BlockWeights& w, const BlockSaved& s,
                  ConstTensorView x_in, TensorView x_out) {
    const TensorView attended = attention_output(c, s.attn, w.out);  // tp: attention output
    RowSums sums = stream_sums(c);
    ffn_forward(c, w, s, x_out.empty() ? nullptr : &sums, {.x_in = x_in, .delta = attended});
    if (x_out.empty()) return;                   // recompute: the backward needs nothing below
    add(x_out, s.x_mid, sums.finish(), c.exec);  // tp: FFN output
}

void block_backward(const BlockContext& c, const BlockWeights& w, const BlockWeights& g,
                    const BlockSaved& s, ConstTensorView x_in, TensorView d_x) {
    const LocalDims& d = c.dims;
    const std::int64_t hd = d.head_dim;
    const BlockScratch& t = c.acts.scratch;
    const auto& [cos, sin] = std::tie(c.state.rope_cos, c.state.rope_sin);

    // FFN: x_out = x_mid + ffn(norm(x_mid)). d_x is d_x_out and, through the residual, part of
    // d_x_mid.
    RowSums sums = stream_sums(c);
    ffn_backward(c, w, g, s, all_rows(d_x, t.whole, d, c.tp, c.exec), sums);  // tp, sequence
    rms_norm_backward({.d_x = d_x,
                       .d_weight = norm_gradient(c, 2 * c.layer + 1),
                       .d_y = sums.finish(),  // tp: d_h2 of all of d_ff
                       .x = s.x_mid,
                       .weight = w.post_norm,
                       .rstd = s.rstd2,
                       .accumulate = true,
                       .segment_rows = segment_rows(c, s.x_mid)},
                      c.exec);

    // Attention: x_mid = x_in + out(attn). d_x is now d_x_mid.
    const TensorView d_mid = all_rows(d_x, t.whole, d, c.tp, c.exec);  // tp, sequence
    weight_gradient(c, g.out, d_mid, s.attn);
    matmul({.c = t.d_attn, .a = d_mid, .b = w.out}, c.exec);
    attend_backward(c, w, g, s);
    rope({.x = by_head(t.d_q, hd),
          .cos = cos,
          .sin = sin,
          .positions = c.acts.positions,
          .inverse = true},
         c.exec);
    rope({.x = by_head(t.d_k, hd),
          .cos = cos,
          .sin = sin,
          .positions = c.acts.positions,
          .inverse = true},
         c.exec);
    // in place: d_q becomes the gradient before q norm. g.q_norm holds this rank's heads, apart.
    rms_norm_backward({.d_x = head_rows(t.d_q, hd),
                       .d_weight = g.q_norm,
                       .d_y = head_rows(t.d_q, hd),
                       .x = head_rows(s.q_pre, hd),
                       .weight = w.q_norm,
                       .rstd = s.rstd_q},
                      c.exec);
    rms_norm_backward({.d_x = head_rows(t.d_k, hd),
                       .d_weight = g.k_norm,
                       .d_y = head_rows(t.d_k, hd),
                       .x = head_rows(s.k_pre, hd),
                       .weight = w.k_norm,
                       .rstd = s.rstd_k},
                      c.exec);
    weight_gradient(c, g.q, t.d_q, s.h1);
    weight_gradient(c, g.k, t.d_k, s.h1);
    weight_gradient(c, g.v, t.d_v, s.h1);
    rms_norm_backward({.d_x = d_x,
                       .d_weight = norm_gradient(c, 2 * c.layer),
                       .d_y = attention_input_gradient(c, w),  // tp: d_h1 of all heads
                       .x = x_in,
                       .weight = w.input_norm,
                       .rstd = s.rstd1,
                       .accumulate = true,
                       .segment_rows = segment_rows(c, x_in)},
                      c.exec);
}

}  // namespace stoa
