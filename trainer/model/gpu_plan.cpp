#include "trainer/model/gpu_plan.h"

#include <algorithm>
#include <limits>
#include <map>

#include "parallel/staged.h"
#include "trainer/model/attend.h"
#include "trainer/model/dp_traffic.h"
#include "trainer/model/ffn.h"

namespace stoa {
namespace {

// All tensors of a rank in one stage, at addresses that nobody reads.
struct Layout {
    ModelState model;
    Activations acts;
};
Layout lay_out(const RunConfig& config, const LocalDims& dims, std::int64_t seq_len, int tp_rank,
               int tp_size, int dp_rank) {
    Placer placer(reinterpret_cast<std::byte*>(kAlignment),
                  std::numeric_limits<std::int64_t>::max());
    Layout l;
    l.model = layout_model_state(placer, config, dims, longest_sequence(config), tp_rank, tp_size,
                                 dp_rank);
    l.acts = layout_activations(placer, config, dims, config.batch.micro_batch, seq_len);
    return l;
}

Scaled first_rows(const Scaled& t, std::int64_t count) {
    if (t.data.empty()) return t;
    Scaled part{t.data.slice_rows(0, count), t.scale};
    if (t.scale.empty()) return part;
    const bool per_row = t.scale.shape[0] == t.data.shape[0];
    part.scale = t.scale.slice_rows(0, per_row ? count : (count + kQuantBlock - 1) / kQuantBlock);
    return part;
}

class ScratchList {
public:
    explicit ScratchList(GpuLibraries has) : has_(has) {}
    void note(const char* op, std::int64_t bytes) {
        std::int64_t& most = most_[op];
        most = std::max(most, bytes);
    }
    void product(const MatmulArgs& args) { note("matmul", scratch_bytes(args, has_)); }
    /// c (+)= op(a) op(b) of what may be 8-bit.
    void product(TensorView c, const Scaled& a, const Scaled& b, MatmulArgs how) {
        how.c = c, how.a = a.data, how.b = b.data;
        how.a_scale = a.scale, how.b_scale = b.scale;
        product(how);
    }
    /// d_w (+)= d^T x
    void weight_gradient(TensorView d_w, const Scaled& d, const Scaled& x, bool add) {
        // Rounded at random where bf16 is added to (grad_rounding).
        const std::int64_t draws = d_w.dtype == DType::bf16 ? 1 : 0;
        product(d_w, d, x,
                {.transpose_a = true, .accumulate = add, .rounding = {.logical_cols = draws}});
    }
    const GpuLibraries& libraries() const { return has_; }
    std::vector<PlannedScratch> list() const {
        std::vector<PlannedScratch> all;
        for (const auto& [op, bytes] : most_)
            if (bytes > 0) all.push_back({op, bytes});
        std::ranges::stable_sort(all, std::greater{}, &PlannedScratch::bytes);
        return all;
    }

private:
    GpuLibraries has_;
    std::map<std::string, std::int64_t> most_;
};

Scaled plain(const TensorView& t) { return {t, {}}; }

struct Block {
    const LocalDims& dims;
    const Activations& acts;
    const BlockWeights &w, &g;
    const BlockSaved& s;
    LayerAttention attention;
    bool adds;  // a dp shard has several micro-batches
};

// As attention in trainer/model/block.cpp.
void list_projections(ScratchList& list, const Block& b) {
    const BlockScratch& t = b.acts.scratch;
    const bool selects = selects_keys(b.attention);
    const auto linear = [&](const TensorView& y, const TensorView& w) {
        list.product({.c = y, .a = b.s.h1, .b = w, .transpose_b = true});
    };
    linear(b.s.q_pre, b.w.q);
    linear(b.s.k_pre, b.w.k);
    linear(b.s.v, b.w.v);
    if (selects) linear(b.s.importance, b.w.importance);
    list.product({.c = t.stream,
                  .a = b.s.attn,
                  .b = b.w.out,
                  .transpose_b = true,
                  .k_count = b.dims.q_cols() / b.dims.chunks});
    // d_x comes in the stream's format, of all rows.
    const TensorView& x = b.acts.h_final;
    list.weight_gradient(b.g.out, plain(x), plain(b.s.attn), b.adds);
    list.product({.c = t.d_attn, .a = x, .b = b.w.out});
    const auto back = [&](const TensorView& d, const TensorView& w, const TensorView& d_w) {
        list.weight_gradient(d_w, plain(d), plain(b.s.h1), b.adds);
        list.product({.c = t.stream,
                      .a = d,
                      .b = w,
                      .accumulate = true,
                      .k_count = d.cols() / b.dims.chunks});
    };
    back(t.d_q, b.w.q, b.g.q);
    back(t.d_k, b.w.k, b.g.k);
    back(t.d_v, b.w.v, b.g.v);
    if (selects) back(t.d_importance, b.w.importance, b.g.importance);
}

template <class Args>
Args attention_args(const Block& b) {
    const std::int64_t hd = b.dims.head_dim;
    Args args;
    args.q = by_batch(ConstTensorView(b.s.q), b.acts, hd);
    args.k = by_batch(ConstTensorView(b.s.k), b.acts, hd);
    return args;
}

// As trainer/model/attend.cpp.
void list_attention(ScratchList& list, const Block& b) {
    if (b.attention == LayerAttention::dense) {
        auto forward = attention_args<AttentionArgs>(b);
        auto backward = attention_args<AttentionBackwardArgs>(b);
        forward.causal = backward.causal = true;
        list.note("attention", scratch_bytes(forward, list.libraries()));
        list.note("attention_backward", scratch_bytes(backward, list.libraries()));
        return;
    }
    if (b.attention == LayerAttention::tree) {
        auto forward = attention_args<TreeAttentionArgs>(b);
        auto backward = attention_args<TreeAttentionBackwardArgs>(b);
        forward.rule = backward.rule = tree_rule(b.dims.attention_rule);
        list.note("tree_attention", scratch_bytes(forward));
        list.note("tree_attention_backward", scratch_bytes(backward));
        return;
    }
    const KeyRule rule = key_rule(b.dims.attention_rule, b.attention);
    auto forward = attention_args<ImportanceAttentionArgs>(b);
    auto backward = attention_args<ImportanceAttentionBackwardArgs>(b);
    forward.rule = backward.rule = rule;
    if (b.attention == LayerAttention::importance) backward.dense_rows = b.acts.scratch.dense_rows;
    list.note("select_keys",
              scratch_bytes(SelectKeysArgs{
                  .expiry = b.s.selection, .importance = b.s.importance, .rule = rule}));
    list.note("importance_attention", scratch_bytes(forward));
    list.note("importance_attention_backward", scratch_bytes(backward));
}

// One chunk of `count` rows, as trainer/model/ffn.cpp.
void list_ffn(ScratchList& list, const Block& b, std::int64_t count, bool adds) {
    const BlockScratch& t = b.acts.scratch;
    const bool fp8 = b.s.gate.data.dtype == DType::e4m3;
    const auto rows = [&](const TensorView& x) { return x.slice_rows(0, count); };
    const TensorView stream = rows(t.stream), x = rows(b.acts.h_final);
    const std::int64_t span = b.dims.d_ff / b.dims.chunks;
    const Scaled h2 = first_rows(b.s.h2, count), act = first_rows(b.s.act, count);
    const Scaled h = fp8 ? first_rows(t.h_row, count) : h2;
    const Scaled down = fp8 ? first_rows(t.act_row, count) : act;
    const auto operand = [&](const Scaled& code, const TensorView& wide) {
        return fp8 ? first_rows(code, count) : plain(rows(wide));
    };
    const auto up = [&](const TensorView& wide, const Scaled& saved, const Scaled& w,
                        const Scaled& d_w, const Scaled& d_row, const Scaled& d_col) {
        list.product(fp8 ? rows(wide) : rows(saved.data), h, w, {.transpose_b = true});
        list.weight_gradient(d_w.data, operand(d_col, wide), h2, adds);
        list.product(stream, operand(d_row, wide), w, {.accumulate = true, .k_count = span});
    };
    up(t.gate, b.s.gate, b.w.gate, b.g.gate, t.d_gate_row, t.d_gate_col);
    up(t.up, b.s.up, b.w.up, b.g.up, t.d_up_row, t.d_up_col);
    list.product(stream, down, b.w.down, {.transpose_b = true, .k_count = span});
    list.weight_gradient(b.g.down.data, operand(t.d_y_col, x), act, adds);
    list.product(rows(t.act), operand(t.d_y_row, x), b.w.down, {});
}

// As trainer/model/loss.cpp.
void list_loss(ScratchList& list, const Layout& l, const LocalDims& d, std::int64_t count,
               bool adds) {
    const TensorView h = l.acts.h_final.slice_rows(0, count),
                     logits = l.acts.logits.slice_rows(0, count), w = l.model.work.lm_head;
    list.product({.c = logits, .a = h, .b = w, .transpose_b = true});
    list.weight_gradient(l.model.grads.lm_head, plain(logits), plain(h), adds);
    list.product({.c = l.acts.scratch.stream.slice_rows(0, count),
                  .a = logits,
                  .b = w,
                  .k_count = d.vocab.local / d.chunks});
}

// fn(count, whether there are others before) for the lengths of chunks of `rows`.
template <class Fn>
void for_chunk_lengths(std::int64_t rows, std::int64_t chunk, const Fn& fn) {
    if (rows >= chunk) fn(chunk, rows >= 2 * chunk);
    if (rows % chunk != 0) fn(rows % chunk, rows > chunk);
}

}  // namespace

std::vector<PlannedScratch> plan_scratch(const RunConfig& config, const LocalDims& dims,
                                         std::int64_t seq_len, int tp_rank, int tp_size,
                                         int dp_rank, const GpuLibraries& has) {
    const Layout l = lay_out(config, dims, seq_len, tp_rank, tp_size, dp_rank);
    const Activations& a = l.acts;
    const std::int64_t rows = a.micro_batch * a.seq_len;
    const bool several = dims.shard_micro_batches > 1;
    ScratchList list(has);
    for (std::size_t i = 0; i < a.saved.size(); ++i) {
        const Block b{dims,
                      a,
                      l.model.work.blocks[i],
                      l.model.grads.blocks[i],
                      a.saved[i],
                      dims.attention[i],
                      several};
        list_projections(list, b);
        list_attention(list, b);
        for_chunk_lengths(rows, kFfnChunk, [&](std::int64_t count, bool adds) {
            list_ffn(list, b, count, adds || several);
        });
    }
    for_chunk_lengths(rows, kLossChunk, [&](std::int64_t count, bool adds) {
        list_loss(list, l, dims, count, adds || several);
    });
    list.note(
        "embedding_backward",
        scratch_bytes(EmbeddingBackwardArgs{.d_y = a.shard_d_x.empty() ? a.h_final : a.shard_d_x}));
    if (std::ranges::find(dims.ffn, DType::e4m3) != dims.ffn.end())  // sampled by the policy
        list.note("quantization_loss", scratch_bytes(QuantizationLossArgs{.x = a.h_final}));
    return list.list();
}

namespace {

// Of one row-parallel sum, or of its half, and of one gather of rows (trainer/model/sequence.h).
std::int64_t sum_rows_staging(const TensorView& t, const LocalDims& d) {
    return d.row_ranks == 1 ? t.bytes() : d.row_ranks * 2 * align_up(t.bytes() / d.row_ranks);
}
std::int64_t share_rows_staging(const TensorView& t, const LocalDims& d) {
    return d.row_ranks == 1 ? 0 : d.row_ranks * align_up(t.bytes() / d.row_ranks);
}

}  // namespace

PlannedStaging plan_staging(const RunConfig& config, const LocalDims& dims, std::int64_t seq_len,
                            int tp_rank, int tp_size, int dp_rank, bool nccl) {
    const Layout l = lay_out(config, dims, seq_len, tp_rank, tp_size, dp_rank);
    const Activations& a = l.acts;
    const bool copies = !nccl, sums = !nccl || is_elastic(config);
    PlannedStaging need;
    if (tp_size > 1 && sums) {
        const TensorView& embedded = dims.row_ranks == 1 ? a.x[0] : a.scratch.whole;
        need.tp =
            std::max({sum_rows_staging(a.scratch.stream, dims), sum_rows_staging(embedded, dims),
                      a.exp_sum.bytes() + a.target_logit.bytes(), l.model.head_sums.bytes()});
    }
    if (tp_size > 1 && copies) {
        need.tp = std::max({need.tp, a.row_max.bytes(), share_rows_staging(a.norm_segments, dims)});
        for (const TensorView& t : {a.saved[0].h1, a.h_final, a.scratch.whole, a.saved[0].h2.data})
            need.tp = std::max(need.tp, share_rows_staging(t, dims));
        if (std::ranges::find(dims.ffn, DType::e4m3) != dims.ffn.end())
            need.tp = std::max(need.tp, share_rows_staging(a.scratch.stream, dims));
    }
    if (config.parallel.dp <= 1) return need;
    need.dp = staged_chain_bytes(l.model.norm_grads);
    need.dp_beside = dp_staging_bytes(l.model, sums, copies);
    return need;
}

}  // namespace stoa
