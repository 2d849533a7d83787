#include "trainer/model/activations.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <map>
#include <set>
#include <thread>

#include "checkpoints/rank_file.h"
#include "configs/attention_config.h"
#include "kernels/core/tree.h"
#include "kernels/elementwise.h"
#include "kernels/quantize.h"
#include "kernels/working_memory.h"
#include "trainer/model/attend.h"
#include "trainer/model/gpu_plan.h"

namespace stoa {
namespace {

Scaled place_scaled(Placer& p, const std::string& name, const Shape& shape, DType dtype,
                    QuantBlocks blocks, Lifetime life) {
    Scaled t{p.place(name, shape, dtype, life), {}};
    if (dtype == DType::e4m3)
        t.scale = p.place(name + ".scale", scale_shape(shape, blocks), DType::e8m0, life);
    return t;
}

// `kept`: what this call places; the rest of the struct stays absent.
struct Parts {
    bool kept = true;     // what selective recompute keeps
    bool derived = true;  // what it makes again
};
// What decides the shapes of a layer's tensors.
struct LayerKind {
    DType ffn;
    LayerAttention attention;
    auto operator<=>(const LayerKind&) const = default;
};
// What a layer's attention keeps beside q, k, v.
void layout_selection(Placer& p, BlockSaved& s, const std::string& name, const LocalDims& d,
                      LayerAttention kind, std::int64_t micro_batch, std::int64_t seq_len,
                      Lifetime life) {
    const auto place = [&](const char* n, const Shape& shape, DType dtype) {
        return p.place(name + n, shape, dtype, life);
    };
    const Shape gates{micro_batch * seq_len, d.n_kv_heads};
    if (selects_keys(kind)) {
        s.importance = place("importance", gates, d.formats.wide);
        s.key_gate = place("key_gate", gates, d.formats.wide);
    }
    if (kind == LayerAttention::tree)
        s.selection =
            place("selection",
                  selection_shape(tree_rule(d.attention_rule), micro_batch * d.n_kv_heads, seq_len),
                  DType::int32);
    else if (kind != LayerAttention::dense)
        s.selection = place("expiry", {micro_batch, d.n_kv_heads, seq_len}, DType::int32);
}

BlockSaved layout_saved(Placer& p, const std::string& name, const LocalDims& d,
                        const LayerKind& kind, std::int64_t micro_batch, std::int64_t seq_len,
                        Lifetime life, Parts parts) {
    const DType ffn = kind.ffn;
    const std::int64_t rows = micro_batch * seq_len;
    const auto attn = [&](const char* n, std::int64_t cols) {
        return p.place(name + n, {rows, cols}, d.formats.attention, life);
    };
    const auto stat = [&](const char* n, std::int64_t count) {
        return p.place(name + n, {count}, d.formats.wide, life);
    };
    const auto scaled = [&](const char* n, std::int64_t cols, QuantBlocks blocks) {
        return place_scaled(p, name + n, {rows, cols}, ffn, blocks, life);
    };
    BlockSaved s;
    if (parts.derived) {
        s.h1 = attn("h1", d.d_model);
        s.q = attn("q", d.q_cols());
        s.k = attn("k", d.kv_cols());
        s.h2 = scaled("h2", d.d_model, QuantBlocks::column);
        s.act = scaled("act", d.d_ff, QuantBlocks::column);
    }
    if (!parts.kept) return s;
    s.rstd1 = stat("rstd1", rows / d.row_ranks);
    s.q_pre = attn("q_pre", d.q_cols());
    s.k_pre = attn("k_pre", d.kv_cols());
    s.rstd_q = stat("rstd_q", rows * d.n_heads);
    s.rstd_k = stat("rstd_k", rows * d.n_kv_heads);
    s.v = attn("v", d.kv_cols());
    s.attn = attn("attn", d.q_cols());
    s.lse = p.place(name + "lse", {micro_batch, d.n_heads, seq_len}, d.formats.wide, life);
    layout_selection(p, s, name, d, kind.attention, micro_batch, seq_len, life);
    s.x_mid = p.place(name + "x_mid", {rows / d.row_ranks, d.d_model}, d.formats.residual, life);
    s.rstd2 = stat("rstd2", rows / d.row_ranks);
    s.gate = scaled("gate", d.d_ff, QuantBlocks::row);
    s.up = scaled("up", d.d_ff, QuantBlocks::row);
    return s;
}

// One layer's share of what layout_saved placed for all of them.
void share_derived(BlockSaved& s, const BlockSaved& from) {
    s.h1 = from.h1;
    s.q = from.q;
    s.k = from.k;
    s.h2 = from.h2;
    s.act = from.act;
}

BlockScratch layout_scratch(Placer& p, const LocalDims& d, std::int64_t micro_batch,
                            std::int64_t seq_len) {
    const std::int64_t rows = micro_batch * seq_len;
    const Lifetime block = Lifetime::block;
    const std::int64_t chunk = std::min(rows, kFfnChunk);
    const auto place = [&](const char* n, std::int64_t r, std::int64_t cols, DType dtype) {
        return p.place(std::string("scratch.") + n, {r, cols}, dtype, block);
    };
    const Formats& f = d.formats;
    BlockScratch s{.stream = place("stream", rows, d.d_model, f.wide),
                   .d_attn = place("d_attn", rows, d.q_cols(), f.attention),
                   .d_q = place("d_q", rows, d.q_cols(), f.attention),
                   .d_k = place("d_k", rows, d.kv_cols(), f.attention),
                   .d_v = place("d_v", rows, d.kv_cols(), f.attention)};
    if (std::ranges::any_of(d.attention, selects_keys)) {
        s.d_gate = place("d_gate", rows, d.n_kv_heads, f.wide);
        s.d_sink = place("d_sink", rows, d.n_heads, f.wide);
        s.d_importance = place("d_importance", rows, d.n_kv_heads, f.attention);
    }
    if (const std::int64_t dense = dense_row_count(d, seq_len); dense > 0) {
        s.dense_rows = place("dense_rows", micro_batch, dense, DType::int32);
        if (d.attention_rule.distil > 0.0)
            s.far_mass = place("far_mass", rows, d.n_kv_heads, f.wide);
    }
    for (std::int64_t n = d.chunks; n > 1; n = tree_half(n))
        s.tree.push_back(place("tree", rows, d.d_model, f.wide));
    if (d.row_ranks > 1) s.whole = place("whole", rows, d.d_model, f.residual);
    const auto uses = [&](DType t) { return std::ranges::find(d.ffn, t) != d.ffn.end(); };
    const bool fp8 = uses(DType::e4m3);
    // Without 8-bit layers the forward writes its operands in place, and gradients are 16-bit. The
    // layers decide, not the recipe: all of them may be edge blocks.
    const DType between = fp8 ? f.wide : d.ffn.front();
    s.gate = place("gate", chunk, d.d_ff, between);
    s.up = place("up", chunk, d.d_ff, between);
    s.act = place("act", chunk, d.d_ff, between);
    if (!fp8) return s;
    s.h = place("h", chunk, d.d_model, f.wide);
    const auto codes = [&](const char* n, std::int64_t cols, QuantBlocks blocks) {
        return place_scaled(p, std::string("scratch.") + n, {chunk, cols}, DType::e4m3, blocks,
                            block);
    };
    s.h_row = codes("h.row", d.d_model, QuantBlocks::row);
    s.act_row = codes("act.row", d.d_ff, QuantBlocks::row);
    s.d_gate_row = codes("d_gate.row", d.d_ff, QuantBlocks::row);
    s.d_up_row = codes("d_up.row", d.d_ff, QuantBlocks::row);
    s.d_gate_col = codes("d_gate.col", d.d_ff, QuantBlocks::column);
    s.d_up_col = codes("d_up.col", d.d_ff, QuantBlocks::column);
    s.d_y_row = codes("d_y.row", d.d_model, QuantBlocks::row);
    s.d_y_col = codes("d_y.col", d.d_model, QuantBlocks::column);
    return s;
}

// A copy that layers of one kind share while they are computed again.
const BlockSaved& shared_copy(std::map<LayerKind, BlockSaved>& copies, const LayerKind& kind,
                              const std::function<BlockSaved()>& place) {
    const auto at = copies.find(kind);
    return at != copies.end() ? at->second : copies.emplace(kind, place()).first->second;
}

std::vector<BlockSaved> layout_blocks(Placer& p, const LocalDims& d, std::int64_t micro_batch,
                                      std::int64_t seq_len) {
    std::map<LayerKind, BlockSaved> whole, derived;
    std::vector<BlockSaved> saved;
    for (std::size_t l = 0; l < d.ffn.size(); ++l) {
        const LayerKind kind{d.ffn[l], d.attention[l]};
        // What selective recompute makes again knows no attention.
        const LayerKind of_ffn{d.ffn[l], LayerAttention::dense};
        const std::string kept = "saved." + std::to_string(l) + ".";
        const std::string again = std::string("recomputed.") + dtype_name(kind.ffn) + ".";
        const auto place = [&](const std::string& name, Lifetime life, Parts parts) {
            return layout_saved(p, name, d, kind, micro_batch, seq_len, life, parts);
        };
        switch (d.recompute[l]) {
            case Recompute::none:
                saved.push_back(place(kept, Lifetime::micro_batch, {}));
                break;
            case Recompute::selective:
                saved.push_back(place(kept, Lifetime::micro_batch, {.derived = false}));
                share_derived(saved.back(), shared_copy(derived, of_ffn, [&] {
                                  return place(again, Lifetime::block, {.kept = false});
                              }));
                break;
            case Recompute::full:
                saved.push_back(
                    shared_copy(whole, kind, [&] { return place(again, Lifetime::block, {}); }));
                break;
        }
    }
    return saved;
}

}  // namespace

namespace {

void place_step_words(Placer& p, Activations& a, std::int64_t n_layers) {
    const std::int64_t squares = 4, flags = squares + kExactSumWords;
    a.step_words = p.place("step_words", {flags + 2 * n_layers}, DType::int32, Lifetime::run);
    const auto part = [&](std::int64_t begin, std::int64_t words, DType dtype, const Shape& shape) {
        const TensorView t = a.step_words.slice_rows(begin, words);
        return TensorView{t.data, dtype, shape, t.device};
    };
    a.loss_sum = part(0, 2, DType::fp64, {1});
    a.loss_total = part(2, 2, DType::fp64, {1});
    a.grad_squares = part(squares, kExactSumWords, DType::int32, {kExactSumWords});
    a.nonfinite = part(flags, 2 * n_layers, DType::int32, {2, n_layers});
}

}  // namespace

Activations layout_activations(Placer& p, const RunConfig& config, const LocalDims& d,
                               std::int64_t micro_batch, std::int64_t seq_len) {
    const std::int64_t rows = micro_batch * seq_len, chunk = std::min(rows, kLossChunk);
    const std::int64_t own = rows / d.row_ranks;
    const Lifetime mb = Lifetime::micro_batch;
    const auto n_layers = config.model.n_layers;
    const DType wide = d.formats.wide, residual = d.formats.residual;
    Activations a{.micro_batch = micro_batch, .seq_len = seq_len};
    for (std::int64_t l = 0; l <= n_layers; ++l)
        a.x.push_back(p.place("x." + std::to_string(l), {own, d.d_model}, residual, mb));
    a.saved = layout_blocks(p, d, micro_batch, seq_len);
    a.scratch = layout_scratch(p, d, micro_batch, seq_len);
    a.h_final = p.place("h_final", {rows, d.d_model}, residual, mb);
    a.rstd_final = p.place("rstd_final", {own}, wide, mb);
    a.logits = p.place("logits", {chunk, d.vocab.local}, wide, Lifetime::block);
    a.row_max = p.place("row_max", {chunk}, wide, Lifetime::block);
    // exp_sum and target_logit lie together, so that one all-reduce sums both
    const TensorView sums = p.place("exp_sum+target_logit", {2, chunk}, wide, Lifetime::block);
    a.exp_sum = sums.slice_rows(0, 1).reshaped({chunk});
    a.target_logit = sums.slice_rows(1, 1).reshaped({chunk});
    a.d_x = p.place("d_x", {own, d.d_model}, residual, mb);
    // Whole sequences where the segments do not divide them: then nobody shares out rows.
    const std::int64_t segments = seq_len % d.segments == 0 ? d.segments : 1;
    a.norm_segments = p.place(
        "norm_segments",
        {d.row_ranks, 2 * n_layers + 1, micro_batch * segments / d.row_ranks, d.d_model}, wide, mb);
    if (config.model.tie_embeddings && d.elastic && d.shard_micro_batches > 1) {
        const std::int64_t shard_rows = rows * d.shard_micro_batches;
        a.shard_d_x = p.place("shard.d_x", {shard_rows, d.d_model}, residual, Lifetime::run);
        a.shard_tokens = p.place("shard.tokens", {shard_rows}, DType::int32, Lifetime::run);
    }
    place_step_words(p, a, n_layers);
    a.quantization_loss =
        p.place("quantization_loss", {2, n_layers, 4}, DType::fp64, Lifetime::run);
    for (TensorView* t : {&a.tokens, &a.targets, &a.positions, &a.key_begin, &a.key_end})
        *t = p.place("ids", {rows}, DType::int32, mb);
    if (d.formats.grad == DType::bf16) a.grad_call = p.place("grad_call", {2}, DType::int32, mb);
    return a;
}

std::int64_t longest_sequence(const RunConfig& config) {
    std::int64_t n = 0;
    for (const StageConfig& s : config.stages)
        n = std::max(n, s.seq_len);
    return n;
}

TensorView layout_snapshot(Placer& p, const RunConfig& config, const ModelState& state, int tp_rank,
                           int dp_rank, Device device) {
    if (config.checkpoint.blocking && !device.is_cuda()) return {};
    const std::int64_t bytes = snapshot_bytes(checkpoint_shards(state), tp_rank, dp_rank);
    if (bytes == 0) return {};  // another rank writes it all
    return p.place("checkpoint.snapshot", {bytes / size_of(DType::int32)}, DType::int32,
                   Lifetime::run);
}

namespace {

// What each kind of attention takes in a stage, whose dims these are.
std::map<LayerAttention, std::int64_t> kernel_bytes(const RunConfig& config, const LocalDims& d,
                                                    std::int64_t seq_len) {
    AttentionSizes n{config.batch.micro_batch, seq_len, d.n_heads, d.n_kv_heads, d.head_dim,
                     d.formats.attention};
    const AttentionConfig& a = d.attention_rule;
    const auto bytes_of = [&](LayerAttention kind) {
        using enum LayerAttention;
        const bool far_mass = kind == importance && a.distil > 0.0;
        return kind == dense  ? dense_working_bytes(n)
               : kind == tree ? tree_working_bytes(n, tree_rule(a))
                              : importance_working_bytes(n, key_rule(a, kind), far_mass);
    };
    // auto: how many threads a rank will have is not known here, and fewer may take more.
    const auto given = static_cast<int>(config.parallel.threads);
    const int most = given > 0 ? given : std::max(1u, std::thread::hardware_concurrency());
    std::map<LayerAttention, std::int64_t> bytes;
    for (const LayerAttention kind : std::set(d.attention.begin(), d.attention.end()))
        for (n.threads = given > 0 ? given : 1; n.threads <= most; ++n.threads)
            bytes[kind] = std::max(bytes[kind], bytes_of(kind));
    // Windows and importance are one kernel.
    if (bytes.contains(LayerAttention::window)) {
        std::int64_t& both = bytes[LayerAttention::importance];
        both = std::max(both, bytes[LayerAttention::window]);
        bytes.erase(LayerAttention::window);
    }
    return bytes;
}

}  // namespace

namespace {

// Of each op the most of both lists, largest first.
void add_most(std::vector<PlannedScratch>& all, const std::vector<PlannedScratch>& more) {
    for (const PlannedScratch& m : more) {
        const auto same = std::ranges::find(all, m.op, &PlannedScratch::op);
        if (same == all.end())
            all.push_back(m);
        else
            same->bytes = std::max(same->bytes, m.bytes);
    }
    std::ranges::stable_sort(all, std::greater{}, &PlannedScratch::bytes);
}

}  // namespace

MemoryPlan plan_memory(const RunConfig& config, int tp_rank, int tp_size, int dp_rank,
                       Device device, const GpuSetup& gpu) {
    LocalDims dims = local_dims(config, tp_rank, tp_size);
    Placer state;
    const ModelState model = layout_model_state(state, config, dims, longest_sequence(config),
                                                tp_rank, tp_size, dp_rank);
    Placer host;
    layout_snapshot(device.is_cuda() ? host : state, config, model, tp_rank, dp_rank, device);
    Placer activations;  // of the stage that needs most
    std::map<LayerAttention, std::int64_t> kernels;
    std::vector<PlannedScratch> scratch;
    PlannedStaging staging;
    for (const StageConfig& stage : config.stages) {
        set_attention(dims, attention_of(config, stage));
        Placer here;
        layout_activations(here, config, dims, config.batch.micro_batch, stage.seq_len);
        if (here.bytes() > activations.bytes()) activations = here;
        if (device.is_cuda()) {  // its kernels keep nothing of their own from call to call
            add_most(scratch,
                     plan_scratch(config, dims, stage.seq_len, tp_rank, tp_size, dp_rank, gpu.has));
            const PlannedStaging s =
                plan_staging(config, dims, stage.seq_len, tp_rank, tp_size, dp_rank, gpu.nccl);
            staging = {std::max(staging.tp, s.tp), std::max(staging.dp, s.dp),
                       std::max(staging.dp_beside, s.dp_beside)};
            continue;
        }
        for (const auto& [kind, bytes] : kernel_bytes(config, dims, stage.seq_len))
            kernels[kind] = std::max(kernels[kind], bytes);
    }
    MemoryPlan plan{.tensors = state.tensors(),
                    .state_bytes = state.bytes(),
                    .activation_bytes = activations.bytes(),
                    .scratch = std::move(scratch),
                    .host_bytes = host.bytes(),
                    .staging_bytes = staging.bytes()};
    if (!plan.scratch.empty()) plan.kernel_bytes = plan.scratch.front().bytes;
    if (device.is_cuda() && tp_size == 1) plan.graph_bytes = plan.kernel_bytes;
    for (const auto& [kind, bytes] : kernels)
        plan.kernel_bytes += bytes;
    for (PlannedTensor t : activations.tensors()) {
        t.offset_bytes += state.bytes();
        plan.tensors.push_back(std::move(t));
    }
    return plan;
}

std::string describe_beside(const MemoryPlan& plan) {
    const auto line = [](std::int64_t bytes, const std::string& what) {
        return fmt::format("  {:>14} B  {}\n", bytes, what);
    };
    if (plan.scratch.empty())
        return line(plan.kernel_bytes, "beside the plan: working memory of the attention kernels");
    std::string text = line(plan.kernel_bytes, "beside the arena: scratch of the largest op");
    for (const PlannedScratch& s : plan.scratch)
        text += line(s.bytes, "    " + s.op);
    text += line(plan.graph_bytes, "beside both: scratch in CUDA graphs, an estimate");
    return text + line(plan.host_bytes, "pinned host memory: the snapshot of a checkpoint") +
           line(plan.staging_bytes, "pinned host memory: collectives that go through the host");
}

std::string describe_plan(const MemoryPlan& plan) {
    constexpr double kMiB = 1 << 20;
    std::vector<PlannedTensor> sorted = plan.tensors;
    std::stable_sort(
        sorted.begin(), sorted.end(),
        [](const PlannedTensor& a, const PlannedTensor& b) { return a.bytes() > b.bytes(); });
    std::string text = fmt::format("memory plan: {:.1f} MiB = state {:.1f} + activations {:.1f}\n",
                                   static_cast<double>(plan.total_bytes()) / kMiB,
                                   static_cast<double>(plan.state_bytes) / kMiB,
                                   static_cast<double>(plan.activation_bytes) / kMiB);
    for (const PlannedTensor& t : sorted)
        text += fmt::format("  {:>12} B  {:<11} {:<5} {:<28} {}\n", t.bytes(),
                            lifetime_name(t.lifetime), dtype_name(t.dtype), t.shape.str(), t.name);
    return text + describe_beside(plan);
}

}  // namespace stoa
