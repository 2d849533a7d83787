#include "trainer/model/ffn.h"

#include <algorithm>

#include "kernels/elementwise.h"
#include "kernels/fused_quantize.h"
#include "kernels/matmul.h"
#include "kernels/swiglu.h"
#include "trainer/model/chunk_sum.h"
#include "trainer/model/sequence.h"

namespace stoa {
namespace {

bool is_fp8(const Scaled& t) { return t.data.dtype == DType::e4m3; }

/// Rows [begin, begin + count); begin is a multiple of 128. Scales lie per row or per 128 rows.
Scaled rows_of(const Scaled& t, std::int64_t begin, std::int64_t count) {
    Scaled part{t.data.slice_rows(begin, count), {}};
    if (t.scale.empty()) return part;
    const bool per_row = t.scale.shape[0] == t.data.shape[0];
    part.scale =
        per_row ? t.scale.slice_rows(begin, count)
                : t.scale.slice_rows(begin / kQuantBlock, (count + kQuantBlock - 1) / kQuantBlock);
    return part;
}
Scaled head_rows(const Scaled& t, std::int64_t count) { return rows_of(t, 0, count); }
TensorView head_rows(const TensorView& t, std::int64_t count) { return t.slice_rows(0, count); }

// c (+)= op(a) op(b) of tensors that may be 8-bit.
struct Product {
    TensorView c;
    Scaled a, b;
    bool transpose_a = false, transpose_b = false, accumulate = false, chain = false;
    ChunkSpan k{0, 0};
    StochasticRounding rounding{};
};
void multiply(const Product& p, const Exec& exec) {
    matmul({.c = p.c,
            .a = p.a.data,
            .b = p.b.data,
            .transpose_a = p.transpose_a,
            .transpose_b = p.transpose_b,
            .accumulate = p.accumulate,
            .a_scale = p.a.scale,
            .b_scale = p.b.scale,
            .chain = p.chain,
            .k_begin = p.k.begin,
            .k_count = p.k.count,
            .rounding = p.rounding},
           exec);
}

// h = norm(x_mid) of all rows side by side: in h2, or before 8 bits in the stream's scratch, of
// which each chunk reads its rows before it writes its output there.
TensorView all_h(const BlockContext& c, const BlockSaved& s) {
    return is_fp8(s.gate) ? c.acts.scratch.stream : s.h2.data;
}

// The norm of own rows from `begin` on, into `h`.
RmsNormArgs norm_of(const BlockContext& c, const BlockWeights& w, const BlockSaved& s,
                    const MidSum& mid, std::int64_t begin, TensorView h) {
    const auto rows = [&](auto all) { return all.slice_rows(begin, h.rows()); };
    RmsNormArgs norm{.y = h,
                     .rstd = rows(s.rstd2),
                     .x = rows(s.x_mid),
                     .weight = w.post_norm,
                     .eps = c.norm_eps};
    if (mid.delta.empty()) return norm;
    norm.sum = rows(s.x_mid);
    norm.x = rows(mid.x_in);
    norm.delta = rows(mid.delta);
    return norm;
}

// The rows of one chunk, in the names of the formulas. In e4m3 `gate`, `up`, `act` are the wide
// values in scratch, else the saved tensors themselves.
struct Chunk {
    std::int64_t begin, count;
    RmsNormArgs norm;  // into h; absent where ranks share out rows, as h is there (gather_h)
    Scaled h2, saved_gate, saved_up, saved_act;
    TensorView h, stream;
    TensorView wide_gate, wide_up, wide_act;  // scratch
};
Chunk chunk_at(const BlockContext& c, const BlockWeights& w, const BlockSaved& s, const MidSum& mid,
               std::int64_t begin) {
    const BlockScratch& t = c.acts.scratch;
    const std::int64_t count = std::min(kFfnChunk, s.h2.data.rows() - begin);
    const bool sequence = c.dims.row_ranks > 1;
    const TensorView h =
        is_fp8(s.gate) && !sequence ? head_rows(t.h, count) : all_h(c, s).slice_rows(begin, count);
    return {.begin = begin,
            .count = count,
            .norm = sequence ? RmsNormArgs{} : norm_of(c, w, s, mid, begin, h),
            .h2 = rows_of(s.h2, begin, count),
            .saved_gate = rows_of(s.gate, begin, count),
            .saved_up = rows_of(s.up, begin, count),
            .saved_act = rows_of(s.act, begin, count),
            .h = h,
            .stream = t.stream.slice_rows(begin, count),
            .wide_gate = head_rows(t.gate, count),
            .wide_up = head_rows(t.up, count),
            .wide_act = head_rows(t.act, count)};
}

// Inf or NaN met while quantising is noted for the layer, before saturation hides it.
void quantize_to(const BlockContext& c, const Scaled& to, ConstTensorView x) {
    quantize({.codes = to.data, .scale = to.scale, .nonfinite = c.nonfinite, .x = x}, c.exec);
}
// A tensor as matmul operands: contracted over features, and over tokens.
struct Operands {
    Scaled row, col;
};
TwoWayCodes codes(const Operands& x) { return {x.row.data, x.row.scale, x.col.data, x.col.scale}; }
// y = the saved values in y's type.
void widen_to(const BlockContext& c, TensorView y, const Scaled& x) {
    if (is_fp8(x))
        dequantize({.y = y, .codes = x.data, .scale = x.scale}, c.exec);
    else
        cast(y, x.data, c.exec);
}

// h of all rows, with sequence parallel.
void gather_h(const BlockContext& c, const BlockWeights& w, const BlockSaved& s,
              const MidSum& mid) {
    if (c.dims.row_ranks == 1) return;
    const TensorView h = all_h(c, s);
    rms_norm_forward(norm_of(c, w, s, mid, 0, own_rows(h, c.dims, c.tp)), c.exec);
    share_rows(h, c.dims, c.tp, c.exec);  // tp
}
// Else h of a chunk's, and in e4m3 its codes.
void norm(const BlockContext& c, const Chunk& k) {
    if (!k.norm.y.empty()) rms_norm_forward(k.norm, c.exec);
}
void norm_codes(const BlockContext& c, const Chunk& k, const TwoWayCodes& to) {
    if (k.norm.y.empty())
        quantize_two_way({.codes = to, .nonfinite = c.nonfinite, .x = k.h}, c.exec);
    else
        rms_norm_quantize({.codes = to, .nonfinite = c.nonfinite, .norm = k.norm}, c.exec);
}
void swiglu_codes(const BlockContext& c, const Chunk& k, const TwoWayCodes& to) {
    widen_to(c, k.wide_gate, k.saved_gate);
    widen_to(c, k.wide_up, k.saved_up);
    swiglu_quantize({.codes = to,
                     .y = k.wide_act,
                     .nonfinite = c.nonfinite,
                     .gate = k.wide_gate,
                     .up = k.wide_up},
                    c.exec);
}

// For the precision policy, in the steps that take a sample.
void sample_loss(const BlockContext& c, ConstTensorView x) {
    if (!c.loss.empty()) quantization_loss({.sums = c.loss, .x = x}, c.exec);
}

// 16-bit layers have no quantiser that would meet it.
void flag_16_bit(const BlockContext& c, ConstTensorView x) {
    if (!c.nonfinite.empty()) flag_nonfinite(c.nonfinite, x, c.exec);
}

// y = act w^T, this rank's part: a sum over its columns of d_ff.
void down(const BlockContext& c, TensorView y, const Scaled& act, const Scaled& w) {
    const auto product = [&](std::int64_t chunk, TensorView out) {
        multiply({.c = out,
                  .a = act,
                  .b = w,
                  .transpose_b = true,
                  .k = chunk_span(c.dims.d_ff, c.dims.chunks, chunk)},
                 c.exec);
    };
    sum_chunks(y, 0, c.dims.chunks, c.acts.scratch, product, c.exec);
}

void forward_fp8(const BlockContext& c, const BlockWeights& w, const Chunk& k, bool output) {
    const BlockScratch& t = c.acts.scratch;
    const Scaled h_row = head_rows(t.h_row, k.count);
    const Scaled act_row = output ? head_rows(t.act_row, k.count) : Scaled{};
    norm_codes(c, k, codes({h_row, k.h2}));
    sample_loss(c, k.h);
    multiply({.c = k.wide_gate, .a = h_row, .b = w.gate, .transpose_b = true}, c.exec);
    multiply({.c = k.wide_up, .a = h_row, .b = w.up, .transpose_b = true}, c.exec);
    quantize_to(c, k.saved_gate, k.wide_gate);
    quantize_to(c, k.saved_up, k.wide_up);
    swiglu_codes(c, k, codes({act_row, k.saved_act}));
    if (output) down(c, k.stream, act_row, w.down);
}

void forward_16_bit(const BlockContext& c, const BlockWeights& w, const Chunk& k, bool output) {
    norm(c, k);
    flag_16_bit(c, k.h);
    sample_loss(c, k.h);
    multiply({.c = k.saved_gate.data, .a = k.h2, .b = w.gate, .transpose_b = true}, c.exec);
    multiply({.c = k.saved_up.data, .a = k.h2, .b = w.up, .transpose_b = true}, c.exec);
    swiglu_forward({.y = k.saved_act.data, .gate = k.saved_gate.data, .up = k.saved_up.data},
                   c.exec);
    if (output) down(c, k.stream, k.saved_act, w.down);
}

Operands grad_operands(bool fp8, TensorView d, const Scaled& row, const Scaled& col) {
    if (!fp8) return {{d, {}}, {d, {}}};
    return {head_rows(row, d.rows()), head_rows(col, d.rows())};
}

void backward_chunk(const BlockContext& c, const BlockWeights& w, const BlockWeights& g,
                    const Chunk& k, TensorView d_y) {
    const BlockScratch& t = c.acts.scratch;
    const bool fp8 = is_fp8(k.saved_gate);
    const TensorView d_act = k.wide_act, d_gate = k.wide_gate, d_up = k.wide_up;
    const Operands dy = grad_operands(fp8, d_y, t.d_y_row, t.d_y_col),
                   dg = grad_operands(fp8, d_gate, t.d_gate_row, t.d_gate_col),
                   du = grad_operands(fp8, d_up, t.d_up_row, t.d_up_col);
    const auto weight_gradient = [&](TensorView d_w, const Scaled& d, const Scaled& x) {
        multiply({.c = d_w,
                  .a = d,
                  .b = x,
                  .transpose_a = true,
                  .accumulate = c.add_grads || k.begin > 0,
                  .chain = c.dims.elastic,
                  .rounding = grad_rounding(c.state, d_w, c.grad_pass, k.begin)},
                 c.exec);
    };
    if (fp8) quantize_two_way({.codes = codes(dy), .nonfinite = c.nonfinite, .x = d_y}, c.exec);
    weight_gradient(g.down.data, dy.col, k.saved_act);
    multiply({.c = d_act, .a = dy.row, .b = w.down}, c.exec);

    TensorView gate = k.saved_gate.data, up = k.saved_up.data;
    if (gate.dtype != d_gate.dtype) {  // then in place: the widened values become the gradients
        widen_to(c, d_gate, k.saved_gate);
        widen_to(c, d_up, k.saved_up);
        gate = d_gate, up = d_up;
    }
    if (fp8)
        swiglu_quantize_backward({.d_gate_codes = codes(dg),
                                  .d_up_codes = codes(du),
                                  .d_gate = d_gate,
                                  .d_up = d_up,
                                  .nonfinite = c.nonfinite,
                                  .d_y = d_act,
                                  .gate = gate,
                                  .up = up},
                                 c.exec);
    else
        swiglu_backward({.d_gate = d_gate, .d_up = d_up, .d_y = d_act, .gate = gate, .up = up},
                        c.exec);
    weight_gradient(g.gate.data, dg.col, k.h2);
    weight_gradient(g.up.data, du.col, k.h2);
    const auto input_gradient = [&](std::int64_t chunk, TensorView out) {
        const ChunkSpan span = chunk_span(c.dims.d_ff, c.dims.chunks, chunk);
        multiply({.c = out, .a = dg.row, .b = w.gate, .k = span}, c.exec);
        multiply({.c = out, .a = du.row, .b = w.up, .accumulate = true, .k = span}, c.exec);
    };
    sum_chunks(k.stream, 0, c.dims.chunks, t, input_gradient, c.exec);
}

template <class Fn>
void for_chunks(const BlockContext& c, const BlockWeights& w, const BlockSaved& s,
                const MidSum& mid, const Fn& fn) {
    for (std::int64_t begin = 0; begin < s.h2.data.rows(); begin += kFfnChunk)
        fn(chunk_at(c, w, s, mid, begin));
}

}  // namespace

void ffn_forward(const BlockContext& c, const BlockWeights& w, const BlockSaved& s, RowSums* sums,
                 const MidSum& mid) {
    const bool output = sums != nullptr;
    gather_h(c, w, s, mid);
    for_chunks(c, w, s, mid, [&](const Chunk& k) {
        is_fp8(s.gate) ? forward_fp8(c, w, k, output) : forward_16_bit(c, w, k, output);
        if (output) sums->ready(k.begin, k.count);
    });
}

void ffn_recompute(const BlockContext& c, const BlockWeights& w, const BlockSaved& s) {
    gather_h(c, w, s, {});
    for_chunks(c, w, s, {}, [&](const Chunk& k) {
        if (!is_fp8(s.gate)) {
            norm(c, k);
            swiglu_forward(
                {.y = k.saved_act.data, .gate = k.saved_gate.data, .up = k.saved_up.data}, c.exec);
            return;
        }
        norm_codes(c, k, codes({{}, k.h2}));
        swiglu_codes(c, k, codes({{}, k.saved_act}));
    });
}

void ffn_backward(const BlockContext& c, const BlockWeights& w, const BlockWeights& g,
                  const BlockSaved& s, TensorView d_y, RowSums& sums) {
    if (!is_fp8(s.gate)) flag_16_bit(c, d_y);
    sample_loss(c, d_y);
    for_chunks(c, w, s, {}, [&](const Chunk& k) {
        backward_chunk(c, w, g, k, d_y.slice_rows(k.begin, k.count));
        sums.ready(k.begin, k.count);
    });
}

}  // namespace stoa
