#include "configs/config_schema.h"

#include <algorithm>

#include "configs/load_run_config.h"

namespace stoa {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr KeyRange kAny{};
constexpr KeyRange at_least(double low) { return {low, kInf}; }
constexpr KeyRange between(double low, double high) { return {low, high}; }
constexpr KeyRange above(double low, double high = kInf) { return {low, high, true, false}; }

using T = ConfigTarget;
using F = ConfigField;

}  // namespace

const std::vector<KeyRow>& key_rows() {
    using enum KeyRow::Flag;
    // clang-format off
    static const std::vector<KeyRow> rows = {
        {"run.name", "", kAny, plain, "name of the run: letters, digits, '-', '_', '.'", [](T t) -> F { return &t.run->run.name; }},
        {"run.dir", "", kAny, plain, "where runs are kept; the run writes to <dir>/<name>", [](T t) -> F { return &t.run->run.dir; }},
        {"run.seed", "", kAny, plain, "seed of initial weights, data order and generated problems", [](T t) -> F { return &t.run->run.seed; }},

        {"model.vocab_size", "", between(0, 1 << 24), automatic, "rows of the embedding; auto: as many as the tokenizer has", [](T t) -> F { return &t.run->model.vocab_size; }},
        {"model.d_model", "", between(1, 1 << 17), plain, "width of the residual stream", [](T t) -> F { return &t.run->model.d_model; }},
        {"model.n_layers", "", between(1, 1024), plain, "transformer blocks", [](T t) -> F { return &t.run->model.n_layers; }},
        {"model.n_heads", "", between(1, 1024), plain, "query heads; a multiple of n_kv_heads and of parallel.tp", [](T t) -> F { return &t.run->model.n_heads; }},
        {"model.n_kv_heads", "", between(1, 1024), plain, "key and value heads (fewer than n_heads: grouped-query attention)", [](T t) -> F { return &t.run->model.n_kv_heads; }},
        {"model.head_dim", "", between(2, 1024), plain, "width of one head; even, for the rotary embedding", [](T t) -> F { return &t.run->model.head_dim; }},
        {"model.d_ff", "", between(1, 1 << 19), plain, "inner width of the SwiGLU block; a multiple of parallel.tp", [](T t) -> F { return &t.run->model.d_ff; }},
        {"model.tie_embeddings", "", kAny, plain, "use the input embedding as output matrix, too", [](T t) -> F { return &t.run->model.tie_embeddings; }},
        {"model.rope_theta", "", between(1, 1e12), plain, "base of the rotary angles", [](T t) -> F { return &t.run->model.rope_theta; }},
        {"model.norm_eps", "", above(0, 1), plain, "epsilon of RMSNorm", [](T t) -> F { return &t.run->model.norm_eps; }},
        {"model.init_std", "", above(0, 10), plain, "standard deviation of the initial weights", [](T t) -> F { return &t.run->model.init_std; }},
        {"model.attention", "", kAny, plain, "which keys a query sees: dense, or keys of their own ({kind: dynamic, window: 512}; docs/dynamic-attention.md)", [](T t) -> F { return AttentionField{&t.run->model.attention, nullptr}; }},

        {"parallel.dp", "", between(0, 1 << 20), automatic, "data-parallel replicas; auto: ranks / tp", [](T t) -> F { return &t.run->parallel.dp; }},
        {"parallel.tp", "", between(1, 1024), plain, "ranks that share each layer (tensor parallel); 2 sequence: they share out the rows of the residual stream and the norms, too", [](T t) -> F { return TpField{&t.run->parallel.tp, &t.run->parallel.sequence}; }},
        {"parallel.zero", "", between(0, 3), plain, "what data-parallel ranks share out: 1 masters and moments (ZeRO-1), 2 gradients, too, 3 the blocks' weights, too (FSDP), 0 nothing; 1 beside: with threads that communicate beside the computation, 1 blocking: without, else where a group crosses machines; on a GPU on a stream of its own, unless blocking", [](T t) -> F { return ZeroField{&t.run->parallel.zero, &t.run->parallel.overlap}; }},
        {"parallel.recompute", "", kAny, plain, "what backward computes again instead of keeping it: selective: norms and SwiGLU; full: the whole block; of some blocks only: full 0-3 7", [](T t) -> F { return RecomputeField{&t.run->parallel.recompute, &t.run->parallel.recompute_layers}; }},
        {"parallel.device", "", between(1, 4096), plain, "where ranks compute. cuda: each on a GPU of its own; cuda shared: ranks may share GPUs; cpu 4: on the CPU with 4 threads each (cpu: the machine's cores / its ranks); auto, auto 4: cuda where there are GPUs, else cpu", [](T t) -> F { return DeviceField{&t.run->parallel.device, &t.run->parallel.threads}; }},
        {"parallel.determinism", "", between(1, 1 << 20), plain, "elastic: the same bits on every mesh that divides DPxTP (elastic 4x2; without: the mesh of the first start); fast: only on the same mesh; auto: elastic where gradients are fp32", [](T t) -> F { return DeterminismField{&t.run->parallel.determinism, &t.run->parallel.dp_shards, &t.run->parallel.tp_chunks}; }},

        {"precision.recipe", "", kAny, plain, "formats of weights, activations and optimizer state, see docs/precision.md; fp64 is the slow reference mode", [](T t) -> F { return &t.run->precision.recipe; }},
        {"precision.ffn", "", kAny, plain, "feed-forward weights and activations: fp8, bf16 or fp32; auto: by the recipe, as the others below", [](T t) -> F { return &t.run->precision.ffn; }},
        {"precision.attention", "", kAny, plain, "attention weights and activations: fp16 (with a loss scale), bf16 or fp32", [](T t) -> F { return &t.run->precision.attention; }},
        {"precision.grads", "", kAny, plain, "gradients and their all-reduce: fp32, or bf16 whose sums are rounded stochastically", [](T t) -> F { return &t.run->precision.grads; }},
        {"precision.master", "", kAny, plain, "master weights: fp32, or fp24 rounded stochastically", [](T t) -> F { return &t.run->precision.master; }},
        {"precision.moments", "", kAny, plain, "Adam m and v: fp32, bf16, fp8-bf16 or fp8", [](T t) -> F { return &t.run->precision.moments; }},
        {"precision.edge_blocks", "", between(0, 1024), plain, "first and last blocks whose feed-forward stays in 16 bits where the others use fp8", [](T t) -> F { return &t.run->precision.edge_blocks; }},
        {"precision.adaptive", "", kAny, plain, "take layers out of fp8, and attention out of fp16, where their numbers do not fit", [](T t) -> F { return &t.run->precision.adaptive; }},

        {"optimizer.lr", "", above(0, 1), plain, "peak learning rate of AdamW", [](T t) -> F { return &t.run->optimizer.lr; }},
        {"optimizer.betas", "", {0, 1, false, true}, plain, "decay of the first and second moment; a third number: epsilon of AdamW (1e-8)", [](T t) -> F { return BetasField{&t.run->optimizer.beta1, &t.run->optimizer.beta2, &t.run->optimizer.eps}; }},
        {"optimizer.weight_decay", "", between(0, 10), plain, "decoupled weight decay of the matrices", [](T t) -> F { return &t.run->optimizer.weight_decay; }},
        {"optimizer.max_norm", "", between(0, 1e9), plain, "clip the global gradient norm to this; 0: off", [](T t) -> F { return &t.run->optimizer.max_norm; }},
        {"optimizer.max_skips", "steps", between(1, 1e9), plain, "non-finite steps in a row after which the run stops (exit code 7)", [](T t) -> F { return &t.run->optimizer.max_skips; }},
        {"optimizer.spike_z", "", between(0, 1e9), plain, "skip a step whose loss or gradient norm is so many robust standard deviations above the recent ones; 0: never", [](T t) -> F { return &t.run->optimizer.spike_z; }},

        {"schedule.kind", "", kAny, plain, "wsd: warm up, stay, decay; the others decay all the way or never", [](T t) -> F { return &t.run->schedule.kind; }},
        {"schedule.warmup", "", at_least(0), plain, "linear warm-up: part of all tokens (1%) or tokens (2M tokens)", [](T t) -> F { return WarmupField{&t.run->schedule.warmup, &t.run->schedule.warmup_tokens}; }},
        {"schedule.decay", "", between(0, 1), plain, "wsd: part of all tokens in the final linear decay", [](T t) -> F { return FractionField{&t.run->schedule.decay}; }},
        {"schedule.final_lr", "", between(0, 1), plain, "learning rate at the end, as part of the peak", [](T t) -> F { return FractionField{&t.run->schedule.final_lr}; }},

        {"batch.global_batch", "sequences", between(1, 1 << 24), plain, "sequences per optimizer step over all ranks; each rank accumulates over global_batch / (micro_batch x dp) micro-batches", [](T t) -> F { return &t.run->batch.global_batch; }},
        {"batch.micro_batch", "sequences", between(1, 1 << 20), plain, "sequences of one forward and backward on one replica", [](T t) -> F { return &t.run->batch.micro_batch; }},

        {"stages[].name", "", kAny, required, "name of the curriculum stage", [](T t) -> F { return &t.stage->name; }},
        {"stages[].tokens", "tokens", between(1, 1e15), required, "token budget; the last step may go past it", [](T t) -> F { return &t.stage->tokens; }},
        {"stages[].seq_len", "tokens", between(8, 1 << 20), plain, "length of each sequence", [](T t) -> F { return &t.stage->seq_len; }},
        {"stages[].mix", "", above(0, 1), required, "share of each source; the shares sum to 1", [](T t) -> F { return &t.stage->mix; }},
        {"stages[].lr_scale", "", above(0, 100), plain, "multiplies the schedule within the stage", [](T t) -> F { return &t.stage->lr_scale; }},
        {"stages[].lr_warmup", "tokens", between(0, 1e15), plain, "warm the learning rate up again over the first tokens of the stage", [](T t) -> F { return &t.stage->lr_warmup_tokens; }},
        {"stages[].attention", "", kAny, plain, "what differs from model.attention in this stage ({kind: dense})", [](T t) -> F { return AttentionField{&t.run->model.attention, &t.stage->attention}; }},

        {"data.tokenizer", "", kAny, required, "path of tokenizer.json", [](T t) -> F { return &t.run->data.tokenizer; }},
        {"data.sources.<name>.kind", "", kAny, required, "shards: files of `stoa data build`; reasoning: generated problems", [](T t) -> F { return &t.source->kind; }},
        {"data.sources.<name>.path", "", kAny, plain, "shards: the directory with train-*.h5 and holdout-*.h5", [](T t) -> F { return &t.source->path; }},
        {"data.sources.<name>.families", "", kAny, plain, "reasoning: families of problems (`stoa reason gen --help`)", [](T t) -> F { return &t.source->families; }},
        {"data.sources.<name>.difficulty", "", between(1, 10), plain, "reasoning: 1 is easiest", [](T t) -> F { return &t.source->difficulty; }},
        {"data.sources.<name>.loss_on", "", kAny, plain, "reasoning: learn the whole text, or only steps and answer", [](T t) -> F { return &t.source->loss_on; }},

        {"checkpoint.every", "steps", between(0, 1e12), plain, "200 steps or 30min; 0: only at the end and when stopped; 200 steps blocking: training waits, and needs no memory for a snapshot", [](T t) -> F { return IntervalField{&t.run->checkpoint.every_steps, &t.run->checkpoint.every_seconds, &t.run->checkpoint.blocking}; }},
        {"checkpoint.keep", "", between(1, 1e6), plain, "newest checkpoints that are kept; 3 + every 5000 steps: and for ever those of such steps", [](T t) -> F { return KeepField{&t.run->checkpoint.keep, &t.run->checkpoint.keep_every_steps}; }},

        {"eval.every", "steps", between(0, 1e12), plain, "steps between evaluations; 0: only at stage ends", [](T t) -> F { return &t.run->eval.every_steps; }},
        {"eval.sequences", "sequences", between(0, 1e6), plain, "held-out sequences of each shards source", [](T t) -> F { return &t.run->eval.sequences; }},
        {"eval.problems", "problems", between(0, 1e6), plain, "held-out problems of each reasoning family; 100 of 96 tokens: and the longest answer", [](T t) -> F { return ProblemsField{&t.run->eval.problems, &t.run->eval.max_new_tokens}; }},

        {"log.every", "steps", between(1, 1e12), plain, "steps between log lines", [](T t) -> F { return &t.run->log.every_steps; }},
    };
    // clang-format on
    return rows;
}

const std::vector<KeyRow>& attention_rows() {
    using enum KeyRow::Flag;
    // clang-format off
    static const std::vector<KeyRow> rows = {
        {"kind", "", kAny, plain, "dense: all keys; window: the last ones; dynamic: those, and keys that the model selects", [](T t) -> F { return &t.attention->kind; }},
        {"selector", "", kAny, plain, "of dynamic: tree: each query descends a tree of key blocks; importance: the tokens that are most important to all queries", [](T t) -> F { return &t.attention->selector; }},
        {"layers", "", kAny, plain, "a letter per layer, repeated (PPPT): D dense, W window, T tree, P importance; without: all as kind and selector", [](T t) -> F { return &t.attention->layers; }},
        {"window", "tokens", between(1, 1 << 20), plain, "last tokens that are always seen", [](T t) -> F { return &t.attention->window; }},
        {"sinks", "tokens", between(0, 1 << 10), plain, "first tokens that are always seen", [](T t) -> F { return &t.attention->sinks; }},
        {"leaf", "tokens", between(2, 1 << 10), plain, "tree: tokens of a leaf", [](T t) -> F { return &t.attention->leaf; }},
        {"fanout", "", between(2, 64), plain, "tree: children of a node", [](T t) -> F { return &t.attention->fanout; }},
        {"beam", "", between(1, 1 << 10), plain, "tree: nodes of a level that a query expands; so many leaves it reads", [](T t) -> F { return &t.attention->beam; }},
        {"keep", "tokens", between(1, 1 << 16), plain, "importance: tokens that are kept of all that left the window", [](T t) -> F { return &t.attention->keep; }},
        {"dense_rows", "", between(0, 1), plain, "importance: part of the queries that see all keys, in training only", [](T t) -> F { return &t.attention->dense_rows; }},
        {"distil", "", between(0, 1e3), plain, "importance: weight of learning it from what the dense_rows see", [](T t) -> F { return &t.attention->distil; }},
        {"rotate", "", between(0, 1), automatic, "part of each head that the rotary embedding turns, the same in all stages; auto: half where a stage is dynamic, else all", [](T t) -> F { return &t.attention->rotate; }},
        {"stretch", "", between(1, 1 << 20), plain, "position interpolation: a context so many times the one learned before counts its positions in such parts", [](T t) -> F { return &t.attention->stretch; }},
    };
    // clang-format on
    return rows;
}

const KeyRow* find_key_row(const std::string& key) {
    for (const KeyRow& row : key_rows())
        if (key == row.key) return &row;
    return nullptr;
}

const std::map<std::string, std::string>& key_aliases() {
    static const std::map<std::string, std::string> aliases = {
        {"accumulate_grad_batches", "batch.global_batch"},
        {"adam_beta1", "optimizer.betas"},
        {"adam_beta2", "optimizer.betas"},
        {"adam_eps", "optimizer.betas"},
        {"batch_size", "batch.global_batch"},
        {"clip", "optimizer.max_norm"},
        {"clip_grad", "optimizer.max_norm"},
        {"compute", "precision.recipe"},
        {"context_length", "stages[].seq_len"},
        {"data_parallel", "parallel.dp"},
        {"dtype", "precision.recipe"},
        {"embed_dim", "model.d_model"},
        {"epochs", "stages[].tokens"},
        {"eps", "optimizer.betas"},
        {"eval_interval", "eval.every"},
        {"ffn_hidden_size", "model.d_ff"},
        {"grad_clip", "optimizer.max_norm"},
        {"grad_accum", "batch.global_batch"},
        {"gradient_accumulation", "batch.global_batch"},
        {"gradient_accumulation_steps", "batch.global_batch"},
        {"gradient_checkpointing", "parallel.recompute"},
        {"hidden_dim", "model.d_model"},
        {"hidden_size", "model.d_model"},
        {"initializer_range", "model.init_std"},
        {"intermediate_size", "model.d_ff"},
        {"learning_rate", "optimizer.lr"},
        {"log_interval", "log.every"},
        {"lr_scheduler", "schedule.kind"},
        {"lr_scheduler_type", "schedule.kind"},
        {"max_grad_norm", "optimizer.max_norm"},
        {"max_new_tokens", "eval.problems"},
        {"max_seq_len", "stages[].seq_len"},
        {"max_steps", "stages[].tokens"},
        {"micro_batch_size", "batch.micro_batch"},
        {"min_lr", "schedule.final_lr"},
        {"mixed_precision", "precision.recipe"},
        {"mixture", "stages[].mix"},
        {"multiple_of", "model.d_ff"},
        {"n_embd", "model.d_model"},
        {"n_head", "model.n_heads"},
        {"n_layer", "model.n_layers"},
        {"num_attention_heads", "model.n_heads"},
        {"num_epochs", "stages[].tokens"},
        {"num_heads", "model.n_heads"},
        {"num_hidden_layers", "model.n_layers"},
        {"num_key_value_heads", "model.n_kv_heads"},
        {"num_kv_heads", "model.n_kv_heads"},
        {"num_layers", "model.n_layers"},
        {"num_threads", "parallel.device"},
        {"output_dir", "run.dir"},
        {"per_device_batch_size", "batch.micro_batch"},
        {"per_device_train_batch_size", "batch.micro_batch"},
        {"recompute_layers", "parallel.recompute"},
        {"rms_norm_eps", "model.norm_eps"},
        {"rope_scaling", "model.attention"},
        {"save_every", "checkpoint.every"},
        {"save_interval", "checkpoint.every"},
        {"save_steps", "checkpoint.every"},
        {"save_total_limit", "checkpoint.keep"},
        {"scheduler", "schedule.kind"},
        {"seq_length", "stages[].seq_len"},
        {"sequence_length", "stages[].seq_len"},
        {"sliding_window", "model.attention"},
        {"steps", "stages[].tokens"},
        {"tensor_parallel", "parallel.tp"},
        {"threads", "parallel.device"},
        {"tie_word_embeddings", "model.tie_embeddings"},
        {"warmup_ratio", "schedule.warmup"},
        {"warmup_steps", "schedule.warmup"},
        {"wd", "optimizer.weight_decay"},
        {"zero_stage", "parallel.zero"},
    };
    return aliases;
}

bool is_plain_name(const std::string& name, bool dots) {
    constexpr std::size_t kMaxName = 128;
    if (name.empty() || name.size() > kMaxName || name.front() == '.' || name.front() == '-')
        return false;
    return std::all_of(name.begin(), name.end(), [dots](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
               c == '_' || c == '-' || (dots && c == '.');
    });
}

}  // namespace stoa
