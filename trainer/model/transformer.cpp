#include "trainer/model/transformer.h"

#include <algorithm>

#include "kernels/device_memory.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/rms_norm.h"
#include "trainer/model/block.h"
#include "trainer/model/dp_traffic.h"
#include "trainer/model/sequence.h"

namespace stoa {
namespace {

BlockContext block_context(const TrainState& s, const Mesh& mesh, const Exec& exec) {
    return {.dims = s.dims,
            .state = s.model,
            .norm_eps = s.config.model.norm_eps,
            .acts = s.acts,
            .tp = mesh.tp,
            .exec = exec,
            .tp_beside = &mesh.tp_beside,
            .tp_queue = mesh.tp_queue.get(),
            .add_grads = s.shard_micro_batch > 0,
            .grad_pass = s.grad_pass,
            .training_rows = s.training_rows ? &*s.training_rows : nullptr};
}

TensorView flag(const Activations& a, std::int64_t pass, std::size_t layer) {
    const std::int64_t at = pass * a.nonfinite.shape[1] + static_cast<std::int64_t>(layer);
    return a.nonfinite.reshaped({a.nonfinite.numel()}).slice_rows(at, 1);
}

// (4): acts in the forward pass, grads in the backward.
TensorView loss_of(const TrainState& s, std::int64_t pass, std::size_t layer) {
    const std::size_t n_layers = s.dims.ffn.size();
    if (!s.sampling || !s.policy.layers[layer].adaptive) return {};
    const auto at = pass * static_cast<std::int64_t>(n_layers) + static_cast<std::int64_t>(layer);
    const TensorView& all = s.acts.quantization_loss;
    return all.reshaped({all.numel() / 4, 4}).slice_rows(at, 1).reshaped({4});
}

void inject(const Injection& fault, std::int64_t layer, TensorView d_x, const Exec& exec) {
    if (fault.layer != layer) return;
    dispatch_dtype(d_x.dtype, [&]<Element T>(T) {
        const T value = narrow_to<T>(fault.value);
        upload(d_x.reshaped({d_x.numel()}).slice_rows(0, 1), std::span(&value, 1), exec);
    });
}

// d_embed[token] += d_x, in the order of the tokens: at the shard's end where the output matrix has
// added its part of every micro-batch to the same tensor, else at once.
void embedding_gradient(TrainState& s, const Communicator& tp, const Exec& exec) {
    const Activations& a = s.acts;
    const TensorView& g = s.model.grads.embed;
    TensorView d_x = all_rows(a.d_x, a.scratch.whole, s.dims, tp, exec);  // tp, sequence
    TensorView tokens = a.tokens;
    if (!a.shard_d_x.empty()) {
        const std::int64_t rows = d_x.rows(), begin = s.shard_micro_batch * rows;
        cast(a.shard_d_x.slice_rows(begin, rows), d_x, exec);
        copy(a.shard_tokens.slice_rows(begin, rows), tokens, exec);
        if (s.shard_micro_batch + 1 < s.dims.shard_micro_batches) return;
        d_x = a.shard_d_x.slice_rows(0, begin + rows);
        tokens = a.shard_tokens.slice_rows(0, begin + rows);
    }
    StochasticRounding rounding = grad_rounding(s.model, g, s.grad_pass, 0);
    rounding.key = mix_key(rounding.key, 0x656d62);  // tied: apart from the output matrix's draws
    embedding_backward({.d_table = g,
                        .d_y = d_x,
                        .tokens = tokens,
                        .vocab_begin = s.dims.vocab.begin,
                        .rounding = rounding},
                       exec);
}

}  // namespace

namespace {

TrainState place_state(const RunConfig& config, int tp_rank, int tp_size, const Exec& exec,
                       int dp_rank, const MemoryPlan& plan) {
    TrainState s{.config = config,
                 .dims = local_dims(config, tp_rank, tp_size),
                 .device = exec.device,
                 .arena = make_buffer(plan.total_bytes(), exec.device)};
    Placer placer(s.arena.data(), plan.state_bytes, exec.device);
    s.model = layout_model_state(placer, config, s.dims, longest_sequence(config), tp_rank, tp_size,
                                 dp_rank);
    if (exec.device.is_cuda()) s.host = make_copy_buffer(plan.host_bytes, exec.device);
    Placer on_host(s.host.data(), s.host.bytes());
    s.snapshot = layout_snapshot(exec.device.is_cuda() ? on_host : placer, config, s.model, tp_rank,
                                 dp_rank, exec.device);
    s.state_bytes = placer.bytes();
    s.loss_scale = initial_loss_scale(s.dims.formats.attention == DType::fp16);
    s.policy = initial_policy(config);
    init_model_state(s.model, config, exec);
    return s;
}

}  // namespace

TrainState make_train_state(const RunConfig& config, int tp_rank, int tp_size, const Exec& exec,
                            int dp_rank) {
    return place_state(config, tp_rank, tp_size, exec, dp_rank,
                       plan_memory(config, tp_rank, tp_size, dp_rank, exec.device));
}

TrainState make_inference_state(const RunConfig& config, int tp_rank, int tp_size,
                                const Exec& exec) {
    MemoryPlan plan = plan_memory(config, tp_rank, tp_size, 0, exec.device);
    plan.activation_bytes = 0;
    return place_state(config, tp_rank, tp_size, exec, 0, plan);
}

void place_activations(TrainState& s, std::int64_t micro_batch, std::int64_t seq_len) {
    Placer placer(s.arena.data() + s.state_bytes, s.arena.bytes() - s.state_bytes, s.device);
    s.acts = layout_activations(placer, s.config, s.dims, micro_batch, seq_len);
}

void enter_stage(TrainState& s, const StageConfig& stage, const Exec& exec) {
    const AttentionConfig& rule = attention_of(s.config, stage);
    const AttentionConfig was = s.dims.attention_rule;
    if (rule == was) return;
    set_attention(s.dims, rule);
    s.acts.micro_batch = 0;  // placed anew
    s.graphs = {};
    if (rule.stretch != was.stretch) fill_rope(s.model, s.config, rule.stretch, exec);
}

void load_micro_batch(TrainState& s, const MicroBatch& mb, const Exec& exec) {
    if (mb.batch != s.acts.micro_batch || mb.seq_len != s.acts.seq_len)
        place_activations(s, mb.batch, mb.seq_len);
    std::vector<std::int32_t> positions(mb.tokens.size()), key_end(mb.tokens.size());
    for (std::size_t r = 0; r < positions.size(); ++r) {
        positions[r] = static_cast<std::int32_t>(r % static_cast<std::size_t>(mb.seq_len));
        key_end[r] = positions[r] + 1;  // causal
    }
    const Activations& a = s.acts;
    upload(a.tokens, std::span(mb.tokens), exec);
    upload(a.targets, std::span(mb.targets), exec);
    upload(a.key_begin, std::span(mb.key_begin), exec);
    upload<std::int32_t>(a.positions, positions, exec);
    upload<std::int32_t>(a.key_end, key_end, exec);
}

void set_grad_pass(TrainState& s, GradPass pass, const Exec& exec) {
    if (!s.acts.grad_call.empty()) {
        const std::uint64_t call = call_of(pass);
        const std::int32_t halves[2] = {static_cast<std::int32_t>(call),
                                        static_cast<std::int32_t>(call >> 32)};
        upload<std::int32_t>(s.acts.grad_call, halves, exec);
        if (exec.device.is_cuda())
            pass.device_call = reinterpret_cast<const std::uint64_t*>(s.acts.grad_call.data);
    }
    s.grad_pass = pass;
}

void model_forward(TrainState& s, const Mesh& mesh, const Exec& exec) {
    const Communicator& tp = mesh.tp;
    const Activations& a = s.acts;
    const Weights& w = s.model.work;
    BlockContext context = block_context(s, mesh, exec);
    const TensorView embedded = s.dims.row_ranks == 1 ? a.x[0] : a.scratch.whole;
    embedding_forward(
        {.y = embedded, .table = w.embed, .tokens = a.tokens, .vocab_begin = s.dims.vocab.begin},
        exec);
    const TensorView x_0 =
        sum_rows(embedded, s.dims, tp, exec);  // tp: a token's row is on one rank
    if (x_0.data != a.x[0].data) cast(a.x[0], x_0, exec);
    for (std::size_t l = 0; l < w.blocks.size(); ++l) {
        context.layer = static_cast<std::int64_t>(l);
        context.nonfinite = flag(a, 0, l);
        context.loss = loss_of(s, 0, l);
        await_block(s.model, context.layer, context.layer + 1, mesh, exec);  // dp, zero: 3
        run_block(s, {context.layer}, mesh, exec,
                  [&] { block_forward(context, w.blocks[l], a.saved[l], a.x[l], a.x[l + 1]); });
        board_pulse();
    }
    rms_norm_forward({.y = own_rows(a.h_final, s.dims, tp),
                      .rstd = a.rstd_final,
                      .x = a.x.back(),
                      .weight = w.final_norm,
                      .eps = s.config.model.norm_eps},
                     exec);
    share_rows(a.h_final, s.dims, tp, exec);  // tp, sequence
}

void model_backward(TrainState& s, const Mesh& mesh, const Exec& exec) {
    const Communicator& tp = mesh.tp;
    const Activations& a = s.acts;
    const Weights& w = s.model.work;
    const Weights& g = s.model.grads;
    BlockContext context = block_context(s, mesh, exec);
    const bool ends_shard = s.shard_micro_batch + 1 == s.dims.shard_micro_batches;
    const TensorView d_h = a.scratch.stream;  // (rows, d_model): of h_final, left by the loss
    zero(a.norm_segments, exec);
    rms_norm_backward({.d_x = a.d_x,
                       .d_weight = norm_segments_of(a, s.dims, tp, 2 * s.config.model.n_layers),
                       .d_y = sum_rows(d_h, s.dims, tp, exec),  // tp: d_h of the whole vocabulary
                       .x = a.x.back(),
                       .weight = w.final_norm,
                       .rstd = a.rstd_final,
                       .segment_rows = a.d_x.rows() / a.norm_segments.shape[2]},
                      exec);
    for (std::size_t l = w.blocks.size(); l-- > 0;) {
        context.layer = static_cast<std::int64_t>(l);
        context.nonfinite = flag(a, 1, l);
        inject(s.injection, context.layer, a.d_x, exec);
        await_block(s.model, context.layer, context.layer - 1, mesh, exec);  // dp, zero: 3
        await_grad_room(s.model, l, mesh, exec);                             // dp
        run_block(s, {context.layer, /*backward=*/true, context.add_grads}, mesh, exec, [&] {
            context.loss = {};  // a recomputed forward has been sampled already
            if (s.dims.recompute[l] == Recompute::full)
                block_forward(context, w.blocks[l], a.saved[l], a.x[l], TensorView{});
            if (s.dims.recompute[l] == Recompute::selective)
                block_recompute(context, w.blocks[l], a.saved[l], a.x[l]);
            context.loss = loss_of(s, 1, l);
            block_backward(context, w.blocks[l], g.blocks[l], a.saved[l], a.x[l], a.d_x);
        });
        board_pulse();
        if (ends_shard) start_grad_sum(s.model, l, s.shard > 0, mesh, exec);  // dp
    }
    embedding_gradient(s, tp, exec);
    add_norm_segments(s.model, a.norm_segments, s.dims, tp, exec);  // tp, sequence
    for (std::size_t u = w.blocks.size(); ends_shard && u < s.model.units.size(); ++u)
        start_grad_sum(s.model, u, s.shard > 0, mesh, exec);  // dp: embedding, output matrix
}

}  // namespace stoa
