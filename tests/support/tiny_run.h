#pragma once
// A small model trained on made-up tokens, without files: the subject of the mesh, gradient and
// determinism tests. Slot i of step s is a pure function of (s, i), as in the loader.
#include <cmath>
#include <vector>

#include "configs/recipe.h"
#include "kernels/core/philox.h"
#include "parallel/mesh.h"
#include "trainer/lr_schedule.h"
#include "trainer/train_step.h"

namespace stoa::test {

struct TinyOptions {
    std::int64_t vocab_size = 67;  // odd: padded for tp = 2 and 4
    std::int64_t micro_batch = 2;
    Recompute recompute = Recompute::none;
    bool tie_embeddings = true;
    Recipe recipe = Recipe::fp32;
    std::int64_t global_batch = 8;
    bool whole_blocks = false;   // sizes that fp8 and two tp ranks can take
    std::int64_t head_dim = 32;  // with whole_blocks; 64 for four tp ranks
    std::int64_t seq_len = 16;
    std::int64_t d_model = 128;                 // with whole_blocks
    std::int64_t dp_shards = 0, tp_chunks = 0;  // elastic with these sizes; 0: those of the mesh
    Determinism determinism = Determinism::automatic;
    std::int64_t zero = 1;
    bool overlap = true;
    bool sequence = false;
    AttentionConfig attention = {};
};

/// Small enough for 16 tokens; about half of them are far.
inline AttentionConfig tiny_attention(AttentionKind kind, KeySelector selector = KeySelector::tree,
                                      const std::string& layers = "") {
    return {.kind = kind,
            .selector = selector,
            .layers = layers,
            .window = 4,
            .sinks = 1,
            .leaf = 2,
            .fanout = 2,
            .beam = 2,
            .keep = 2};
}

/// By importance, with what helps it in training.
inline AttentionConfig helped_attention(double dense_rows, double distil) {
    AttentionConfig a = tiny_attention(AttentionKind::dynamic, KeySelector::importance);
    a.dense_rows = dense_rows;
    a.distil = distil;
    return a;
}

inline RunConfig tiny_config(const TinyOptions& o, std::int64_t dp, std::int64_t tp) {
    RunConfig c;
    c.run.seed = 7;
    c.model = {.vocab_size = o.vocab_size,
               .d_model = 32,
               .n_layers = 3,
               .n_heads = 8,
               .n_kv_heads = 4,
               .head_dim = 8,
               .d_ff = 64,
               .tie_embeddings = o.tie_embeddings,
               .attention = o.attention};
    if (o.whole_blocks) {
        c.model.d_model = o.d_model;
        c.model.head_dim = o.head_dim;
        c.model.d_ff = 512;
    }
    c.parallel = {.dp = dp,
                  .tp = tp,
                  .sequence = o.sequence,
                  .recompute = o.recompute,
                  .zero = o.zero,
                  .overlap = o.overlap ? Overlap::on : Overlap::off,
                  .determinism = o.determinism,
                  .dp_shards = o.dp_shards,
                  .tp_chunks = o.tp_chunks};
    c.precision.recipe = o.recipe;
    c.optimizer.lr = 1e-3;
    c.schedule.warmup = 0.1;
    c.batch = {.global_batch = o.global_batch,
               .micro_batch = o.micro_batch,
               .grad_accum = o.global_batch / (o.micro_batch * dp)};
    StageConfig stage;
    stage.name = "only";
    stage.seq_len = o.seq_len;
    stage.mix["made-up"] = 1.0;
    stage.tokens = 50 * o.global_batch * stage.seq_len;
    c.stages.push_back(stage);
    c.data.sources.push_back({.name = "made-up"});
    return c;
}

/// A walk token -> 3 token + 1 with noise, two documents a row, some positions without a target.
inline MicroBatch tiny_batch(const RunConfig& c, std::int64_t step, std::int64_t first_slot) {
    const std::int64_t seq_len = c.stages[0].seq_len, vocab = c.model.vocab_size;
    MicroBatch mb{.batch = c.batch.micro_batch, .seq_len = seq_len};
    for (std::int64_t b = 0; b < mb.batch; ++b) {
        Draws draws(mix_key(11, static_cast<std::uint64_t>(step)),
                    static_cast<std::uint64_t>(first_slot + b));
        const std::int64_t boundary = draws.between(3, seq_len - 3);
        std::int64_t token = draws.between(0, vocab - 1);
        for (std::int64_t t = 0; t < seq_len; ++t) {
            const std::int64_t next =
                draws.below(8) == 0 ? draws.between(0, vocab - 1) : (3 * token + 1) % vocab;
            mb.tokens.push_back(static_cast<std::int32_t>(token));
            mb.targets.push_back(
                t == boundary - 1 || draws.below(16) == 0 ? -1 : static_cast<std::int32_t>(next));
            mb.key_begin.push_back(static_cast<std::int32_t>(t < boundary ? 0 : boundary));
            token = next;
        }
    }
    return mb;
}

struct Trace {
    std::vector<double> loss, grad_norm;
};

/// Steps [begin, end) of a run whose state is `s`; `snapshot`: of a save, their updates wait for
/// it.
inline Trace tiny_steps(TrainState& s, const Mesh& mesh, std::int64_t begin, std::int64_t end,
                        const Exec& exec, const cuda::Event* snapshot = nullptr) {
    const RunConfig& config = s.config;
    CurriculumState curriculum = initial_curriculum(config);
    for (std::int64_t step = 0; step < begin; ++step)
        curriculum = advance(curriculum, config);
    Trace trace;
    const std::int64_t shards = virtual_mesh(config, mesh.dp_size(), mesh.tp_size()).dp_shards;
    const std::int64_t shard_rows = config.batch.global_batch / shards;
    for (std::int64_t step = begin; step < end; ++step) {
        StepInputs in{.lr = learning_rate(config, curriculum), .step = step, .snapshot = snapshot};
        for (std::int64_t shard = mesh.dp_rank(); shard < shards; shard += mesh.dp_size())
            for (std::int64_t row = 0; row < shard_rows; row += config.batch.micro_batch)
                in.micro_batches.push_back(tiny_batch(config, step, shard * shard_rows + row));
        const StepResult r = train_step(s, in, mesh, exec);
        trace.loss.push_back(r.loss);
        trace.grad_norm.push_back(r.grad_norm);
        curriculum = advance(curriculum, config);
    }
    return trace;
}

/// `steps` steps on `mesh`; every rank returns the same trace. `state`, if given, receives the end
/// state.
inline Trace tiny_run(const TinyOptions& options, const Mesh& mesh, std::int64_t steps,
                      TrainState* state = nullptr, const Exec& exec = {}) {
    const RunConfig config = tiny_config(options, mesh.dp_size(), mesh.tp_size());
    TrainState s = make_train_state(config, mesh.tp_rank(), mesh.tp_size(), exec, mesh.dp_rank());
    Trace trace = tiny_steps(s, mesh, 0, steps, exec);
    if (state != nullptr) *state = std::move(s);
    return trace;
}

/// Largest |a - b| / |b| over the trace.
inline double worst_relative(const std::vector<double>& a, const std::vector<double>& b) {
    double worst = a.size() == b.size() ? 0.0 : 1e300;
    for (std::size_t i = 0; i < a.size() && i < b.size(); ++i) {
        const double error = std::abs(a[i] - b[i]) / std::abs(b[i]);
        worst = error <= worst ? worst : error;  // a NaN is the worst
    }
    return worst;
}

}  // namespace stoa::test
