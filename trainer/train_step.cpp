#include "trainer/train_step.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>

#include "kernels/device_memory.h"
#include "kernels/elementwise.h"
#include "parallel/collectives.h"
#include "trainer/fault_hook.h"
#include "trainer/model/dp_traffic.h"
#include "trainer/model/loss.h"
#include "trainer/optimizer.h"
#include "trainer/precision_policy.h"

namespace stoa {
namespace {

std::int64_t count_valid(const std::vector<MicroBatch>& micro_batches) {
    std::int64_t n = 0;
    for (const MicroBatch& mb : micro_batches)
        n += mb.valid_tokens();
    return n;
}

// One message for all that every rank must decide alike: the words, then a flag per layer and pass.
struct Decisions {
    bool skip;
    StopRequest stop;
    bool save_due;
    SaveWords saving;
    std::vector<std::int32_t> nonfinite;  // (2, n_layers)
};
Decisions agree_decisions(const Decisions& mine, const Communicator& world, CollectiveFault fault) {
    std::vector<std::int32_t> words{mine.skip, static_cast<std::int32_t>(mine.stop), mine.save_due,
                                    mine.saving.busy, mine.saving.failed};
    const auto head = std::ssize(words);
    std::ranges::copy(mine.nonfinite, std::back_inserter(words));
    if (fault == CollectiveFault::skip) return mine;
    if (fault == CollectiveFault::swap) words.push_back(0);
    const TensorView view{reinterpret_cast<std::byte*>(words.data()),
                          DType::int32,
                          {static_cast<std::int64_t>(words.size())},
                          {}};
    all_reduce(view, ReduceOp::max, world, {});
    const bool nonfinite = std::any_of(words.begin() + head, words.end(), [](int f) { return f; });
    return {words[0] != 0 || nonfinite,
            static_cast<StopRequest>(words[1]),
            words[2] != 0,
            {words[3], words[4]},
            {words.begin() + head, words.end()}};
}

std::vector<std::int64_t> flagged(const std::vector<std::int32_t>& flags, std::size_t pass) {
    const std::size_t n_layers = flags.size() / 2;
    std::vector<std::int64_t> layers;
    for (std::size_t l = 0; l < n_layers; ++l)
        if (flags[pass * n_layers + l] != 0) layers.push_back(static_cast<std::int64_t>(l));
    if (pass == 1) std::ranges::reverse(layers);  // in the order in which the pass met them
    return layers;
}

bool takes_sample(const TrainState& s, std::int64_t step) {
    return step % kSampleEvery == kSampleEvery - 1 &&
           std::ranges::any_of(s.policy.layers, &LayerPolicy::adaptive);
}

std::vector<LayerSample> layer_samples(const Activations& a, const Mesh& mesh, const Exec& exec) {
    all_reduce(a.quantization_loss, ReduceOp::sum, mesh.dp, exec.stream);  // dp: all tokens
    const auto sums = read_back<double>(a.quantization_loss, exec);
    const std::size_t n_layers = sums.size() / 8;
    const auto loss = [&](std::size_t pass, std::size_t layer) {
        const double* const s = sums.data() + 4 * (pass * n_layers + layer);
        return QuantizationLoss{.underflow = s[0] > 0 ? s[1] / s[0] : 0.0,
                                .rel_error = s[3] > 0 ? std::sqrt(s[2] / s[3]) : 0.0};
    };
    std::vector<LayerSample> samples;
    for (std::size_t l = 0; l < n_layers; ++l)
        samples.push_back({loss(0, l), loss(1, l)});
    return samples;
}

// What the step left in step_words, of this rank.
struct StepWords {
    double loss_sum;
    ExactSum grad_squares;
    std::vector<std::int32_t> nonfinite;  // (2, n_layers)
};
StepWords read_step_words(const Activations& a, const Exec& exec) {
    const auto all = read_back<std::int32_t>(a.step_words, exec);
    const auto part = [&](const TensorView& t) {
        return std::span(all).subspan(
            static_cast<std::size_t>((t.data - a.step_words.data) / size_of(DType::int32)),
            static_cast<std::size_t>(t.bytes() / size_of(DType::int32)));
    };
    StepWords words{.grad_squares = exact_sum_of(part(a.grad_squares))};
    std::memcpy(&words.loss_sum, part(a.loss_total).data(), sizeof words.loss_sum);
    std::ranges::copy(part(a.nonfinite), std::back_inserter(words.nonfinite));
    return words;
}

// Where Inf or NaN began: forward before backward.
std::int64_t origin_of(const StepResult& r) {
    if (!r.forward_nonfinite.empty()) return r.forward_nonfinite.front();
    return r.backward_nonfinite.empty() ? -1 : r.backward_nonfinite.front();
}

}  // namespace

StepResult train_step(TrainState& s, const StepInputs& in, const Mesh& mesh, const Exec& exec) {
    ModelState& model = s.model;
    const std::int64_t tokens =
        all_reduce_scalar(count_valid(in.micro_batches), ReduceOp::sum, mesh.dp);
    const double scale = s.loss_scale.value;
    const double per_token = 1.0 / static_cast<double>(std::max<std::int64_t>(tokens, 1));
    s.sampling = takes_sample(s, in.step);
    for (std::size_t i = 0; i < in.micro_batches.size(); ++i) {
        const auto index = static_cast<std::int64_t>(i);
        s.shard = index / s.dims.shard_micro_batches;
        s.shard_micro_batch = index % s.dims.shard_micro_batches;
        load_micro_batch(s, in.micro_batches[i], exec);
        if (i == 0) zero(s.acts.quantization_loss, exec);
        if (i == 0) zero(s.acts.step_words, exec);
        set_grad_pass(
            s, {static_cast<std::uint64_t>(s.config.run.seed), in.step, index, mesh.dp_rank()},
            exec);
        const MicroBatch& rows = in.micro_batches[i];
        const std::int64_t shard = mesh.dp_rank() + s.shard * mesh.dp_size();
        s.training_rows = {
            .seed = static_cast<std::uint64_t>(s.config.run.seed),
            .step = in.step,
            .first_slot = (shard * s.dims.shard_micro_batches + s.shard_micro_batch) * rows.batch,
            .d_loss = scale * per_token};
        s.injection = fault_injection(in.step, mesh.world.rank(), i);
        zero(s.acts.loss_sum, exec);
        model_forward(s, mesh, exec);
        for (std::size_t u = model.work.blocks.size(); u < model.units.size(); ++u)
            await_grad_room(model, u, mesh, exec);  // dp: of the shard before
        if (s.shard_micro_batch == 0) zero_added_grads(model, exec);
        loss_forward_backward(s, s.training_rows->d_loss, mesh.tp, exec);
        model_backward(s, mesh, exec);  // grads +=; dp: sums of the matrices
        s.training_rows.reset();
        add(s.acts.loss_total, s.acts.loss_total, s.acts.loss_sum, exec);
        if (s.shard_micro_batch + 1 < s.dims.shard_micro_batches) continue;
        // dp: shard n of every rank, rank by rank, after all shards n - 1
        chain_sum(model.norm_sums, s.shard > 0, model.norm_grads, mesh.dp, exec.stream);
    }
    await_grad_sums(model, mesh, exec);
    all_reduce(model.head_sums, ReduceOp::sum, mesh.tp,
               exec.stream);  // tp: each rank has its heads
    fold_head_grads(model, exec);
    add_grad_squares(s.acts.grad_squares, model, s.dims.chunks, mesh, exec);
    await_device(exec, {&mesh.tp, &mesh.dp, &mesh.dp_beside});
    const StepWords mine = read_step_words(s.acts, exec);  // the one wait for the device
    const double loss_sum = all_reduce_scalar(mine.loss_sum, ReduceOp::sum, mesh.dp);
    const double norm = std::sqrt(all_reduce(mine.grad_squares, mesh.world).value()) / scale;
    const bool finite = std::isfinite(norm) && std::isfinite(loss_sum);
    const Decisions all = agree_decisions({.skip = !finite,
                                           .stop = in.stop,
                                           .save_due = in.save_due,
                                           .saving = in.saving,
                                           .nonfinite = mine.nonfinite},
                                          mesh.world, collective_fault(in.step, mesh.world.rank()));
    StepResult r{.loss = loss_sum * per_token,
                 .grad_norm = norm,
                 .loss_scale = scale,
                 .valid_tokens = tokens,
                 .overflow = all.skip,
                 .forward_nonfinite = flagged(all.nonfinite, 0),
                 .backward_nonfinite = flagged(all.nonfinite, 1),
                 .stop = all.stop,
                 .save_due = all.save_due,
                 .saving = all.saving};
    if (!r.overflow && s.config.optimizer.spike_z > 0.0)
        r.spike = judge_step(s.guard, r.loss, norm, {.z = s.config.optimizer.spike_z});
    r.skipped = r.overflow || r.spike.action != SpikeAction::accept;
    if (!r.skipped && in.snapshot != nullptr)
        in.snapshot->make_wait(exec.stream);  // the update waits until a save has copied the state
    if (!r.skipped)
        adamw_step(model, s.config, in.lr,
                   clip_coefficient(norm, s.config.optimizer.max_norm) / scale, ++s.optimizer_step,
                   mesh, exec);
    s.skipped_in_a_row = r.overflow ? s.skipped_in_a_row + 1 : 0;
    update(s.loss_scale, r.overflow);
    PolicyStep seen{
        .step = in.step + 1, .overflow = r.overflow, .loss_scale = scale, .origin = origin_of(r)};
    if (s.sampling) seen.layers = layer_samples(s.acts, mesh, exec);
    r.transitions = decide(s.policy, seen);
    return r;
}

}  // namespace stoa
