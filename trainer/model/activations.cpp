#include "trainer/model/activations.h"

#include <fmt/format.h>

#include <algorithm>

namespace stoa {
namespace {

BlockSaved layout_saved(Placer& p, const std::string& name, const LocalDims& d,
                        std::int64_t micro_batch, std::int64_t seq_len, Lifetime life) {
    const std::int64_t rows = micro_batch * seq_len;
    const auto act = [&](const char* n, std::int64_t cols) {
        return p.place(name + n, {rows, cols}, d.compute, life);
    };
    const auto stat = [&](const char* n, std::int64_t count) {
        return p.place(name + n, {count}, d.wide, life);
    };
    return {.h1 = act("h1", d.d_model),
            .rstd1 = stat("rstd1", rows),
            .q_pre = act("q_pre", d.q_cols()),
            .k_pre = act("k_pre", d.kv_cols()),
            .rstd_q = stat("rstd_q", rows * d.n_heads),
            .rstd_k = stat("rstd_k", rows * d.n_kv_heads),
            .q = act("q", d.q_cols()),
            .k = act("k", d.kv_cols()),
            .v = act("v", d.kv_cols()),
            .attn = act("attn", d.q_cols()),
            .lse = p.place(name + "lse", {micro_batch, d.n_heads, seq_len}, d.wide, life),
            .x_mid = act("x_mid", d.d_model),
            .h2 = act("h2", d.d_model),
            .rstd2 = stat("rstd2", rows),
            .gate = act("gate", d.d_ff),
            .up = act("up", d.d_ff),
            .act = act("act", d.d_ff)};
}

BlockScratch layout_scratch(Placer& p, const LocalDims& d, std::int64_t rows) {
    const auto act = [&](const char* n, std::int64_t cols) {
        return p.place(std::string("scratch.") + n, {rows, cols}, d.compute, Lifetime::block);
    };
    return {.partial = act("partial", d.d_model),
            .d_h = act("d_h", d.d_model),
            .d_attn = act("d_attn", d.q_cols()),
            .d_q = act("d_q", d.q_cols()),
            .d_k = act("d_k", d.kv_cols()),
            .d_v = act("d_v", d.kv_cols()),
            .d_gate = act("d_gate", d.d_ff),
            .d_up = act("d_up", d.d_ff),
            .d_act = act("d_act", d.d_ff)};
}

}  // namespace

Activations layout_activations(Placer& p, const RunConfig& config, const LocalDims& d,
                               std::int64_t micro_batch, std::int64_t seq_len) {
    const std::int64_t rows = micro_batch * seq_len;
    const Lifetime mb = Lifetime::micro_batch;
    const auto n_layers = config.model.n_layers;
    const bool recompute = config.parallel.recompute == Recompute::full;
    Activations a{.micro_batch = micro_batch, .seq_len = seq_len};
    for (std::int64_t l = 0; l <= n_layers; ++l)
        a.x.push_back(p.place("x." + std::to_string(l), {rows, d.d_model}, d.compute, mb));
    if (recompute) {
        const BlockSaved shared =
            layout_saved(p, "recomputed.", d, micro_batch, seq_len, Lifetime::block);
        a.saved.assign(static_cast<std::size_t>(n_layers), shared);
    } else {
        for (std::int64_t l = 0; l < n_layers; ++l)
            a.saved.push_back(
                layout_saved(p, "saved." + std::to_string(l) + ".", d, micro_batch, seq_len, mb));
    }
    a.scratch = layout_scratch(p, d, rows);
    a.h_final = p.place("h_final", {rows, d.d_model}, d.compute, mb);
    a.rstd_final = p.place("rstd_final", {rows}, d.wide, mb);
    a.logits = p.place("logits", {rows, d.vocab.local}, d.compute, mb);
    a.row_max = p.place("row_max", {rows}, d.wide, mb);
    // exp_sum and target_logit lie together, so that one all-reduce sums both
    const TensorView sums = p.place("exp_sum+target_logit", {2, rows}, d.wide, mb);
    a.exp_sum = sums.slice_rows(0, 1).reshaped({rows});
    a.target_logit = sums.slice_rows(1, 1).reshaped({rows});
    a.d_x = p.place("d_x", {rows, d.d_model}, d.compute, mb);
    a.loss_sum =
        p.place("loss_sum", {1}, DType::fp64, Lifetime::run);  // over a step's micro-batches
    for (TensorView* t : {&a.tokens, &a.targets, &a.positions, &a.key_begin, &a.key_end})
        *t = p.place("ids", {rows}, DType::int32, mb);
    return a;
}

std::int64_t longest_sequence(const RunConfig& config) {
    std::int64_t n = 0;
    for (const StageConfig& s : config.stages)
        n = std::max(n, s.seq_len);
    return n;
}

MemoryPlan plan_memory(const RunConfig& config, int tp_rank, int tp_size) {
    const LocalDims dims = local_dims(config, tp_rank, tp_size);
    Placer state;
    layout_model_state(state, config, dims, longest_sequence(config), tp_rank, tp_size);
    Placer activations;  // every activation grows with seq_len: the longest stage is the largest
    layout_activations(activations, config, dims, config.batch.micro_batch,
                       longest_sequence(config));
    MemoryPlan plan{.tensors = state.tensors(),
                    .state_bytes = state.bytes(),
                    .activation_bytes = activations.bytes()};
    for (PlannedTensor t : activations.tensors()) {
        t.offset_bytes += state.bytes();
        plan.tensors.push_back(std::move(t));
    }
    return plan;
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
    return text;
}

}  // namespace stoa
