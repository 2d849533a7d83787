#pragma once
// The plain structs that a YAML file loads into. Every key of the schema is one field here; its
// documentation, unit, default and range stand in config_schema.cpp (the schema table).
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace stoa {

enum class Recompute { none, selective, full };
enum class Recipe { fp32, bf16, r30, r45, r50, fp64 };  // fp64: the reference mode of the tests
enum class Format { automatic, fp32, bf16, fp16, fp8, fp24 };
enum class Moments { automatic, fp32, bf16, fp8_bf16, fp8 };  // Adam m and v
enum class ScheduleKind { wsd, cosine, linear, constant };
enum class SourceKind { shards, reasoning };
enum class LossOn { all, solution };
enum class Determinism { automatic, elastic, fast };
/// Threads that communicate beside the computation: automatic: where a group crosses machines; on
/// one machine they would take their time from the computation's cores.
enum class Overlap { automatic, on, off };

/// Where ranks compute: automatic: each on a GPU of its own, where every rank has one, else on the
/// CPU; shared: ranks of a machine may share its GPUs.
enum class DeviceChoice { automatic, cpu, cuda, cuda_shared };

/// run.*
struct RunSection {
    std::string name = "run";
    std::string dir = "runs";  // the run directory is <dir>/<name>
    std::uint64_t seed = 42;
};

enum class AttentionKind { dense, window, dynamic };
enum class KeySelector { tree, importance };

/// model.attention, and stages[].attention where a stage differs: which keys a query sees
/// (configs/attention_config.h, docs/dynamic-attention.md).
struct AttentionConfig {
    AttentionKind kind = AttentionKind::dense;
    KeySelector selector = KeySelector::tree;  // of dynamic layers
    std::string layers;  // a letter per layer, repeated: D dense, W window, T tree, P importance
    std::int64_t window = 128;  // last tokens that are always seen, a query's own included
    std::int64_t sinks = 4;     // first tokens that are always seen
    std::int64_t leaf = 16, fanout = 8,
                 beam = 8;   // tree: tokens of a leaf, children, expanded nodes
    std::int64_t keep = 32;  // importance: most important tokens that are kept
    // importance, in training: part of the queries that see all keys, and how much importance
    // learns from what they see
    double dense_rows = 0.0, distil = 0.0;
    double rotate =
        0.0;  // part of each head that RoPE turns; 0 = auto: half where a stage is dynamic
    double stretch = 1.0;  // position interpolation: positions count 1 / stretch
    bool operator==(const AttentionConfig&) const = default;
};

/// model.*: a Qwen3-style dense decoder
struct ModelConfig {
    std::int64_t vocab_size = 0;  // 0: taken from the tokenizer
    std::int64_t d_model = 256;
    std::int64_t n_layers = 4;
    std::int64_t n_heads = 4;
    std::int64_t n_kv_heads = 4;
    std::int64_t head_dim = 64;
    std::int64_t d_ff = 768;
    bool tie_embeddings = true;
    double rope_theta = 10000.0;
    double norm_eps = 1e-6;
    double init_std = 0.02;
    AttentionConfig attention;
};

/// parallel.*
struct ParallelConfig {
    std::int64_t dp = 0;  // 0 = auto: world_size / tp
    std::int64_t tp = 1;
    bool sequence = false;  // "2 sequence": tp ranks share out the rows between their products
    Recompute recompute = Recompute::none;
    std::vector<std::string> recompute_layers;  // "0-3", "7": where it applies; empty = everywhere
    // What dp ranks share out, each part with the ones before: 1 masters and moments (ZeRO-1), 2
    // gradients, 3 the blocks' weights (FSDP); 0: nothing.
    std::int64_t zero = 1;
    Overlap overlap = Overlap::automatic;  // "1 beside": on; "1 blocking": off
    DeviceChoice device = DeviceChoice::automatic;
    std::int64_t threads = 0;  // of each rank ("cpu 4"); 0: the machine's cores / its ranks
    // elastic: sums have the order of `dp_shards` x `tp_chunks` virtual ranks on every mesh that
    // divides them; 0: as many as the mesh has. auto: elastic where gradients are wide.
    Determinism determinism = Determinism::automatic;
    std::int64_t dp_shards = 0, tp_chunks = 0;  // "elastic 4x2"
};

/// precision.*
struct PrecisionConfig {
    Recipe recipe = Recipe::r30;
    // Each automatic: as the recipe says (trainer/model/precision.h has the table).
    Format ffn = Format::automatic;
    Format attention = Format::automatic;
    Format grads = Format::automatic;
    Format master = Format::automatic;
    Moments moments = Moments::automatic;
    std::int64_t edge_blocks = 1;  // first and last blocks whose FFN stays in 16 bits
    bool adaptive = true;          // the precision policy may widen what does not fit
    // Not keys: what the policy has decided so far (trainer/precision_policy.h).
    std::vector<std::int64_t> wide_layers;  // FFN in 16 bits where the recipe has 8
    bool wide_attention = false;            // BF16 where the recipe has FP16
};

/// optimizer.*: AdamW
struct OptimizerConfig {
    double lr = 3e-4;
    double beta1 = 0.9, beta2 = 0.95;  // optimizer.betas: [b1, b2] or [b1, b2, eps]
    double eps = 1e-8;
    double weight_decay = 0.1;
    double max_norm = 1.0;        // global-norm clipping; 0 = off
    std::int64_t max_skips = 20;  // non-finite steps in a row before the run stops (exit 7)
    double spike_z = 6.0;         // robust standard deviations; 0 = no spike guard
};

/// schedule.*: the learning rate over the whole run, positioned in tokens
struct ScheduleConfig {
    ScheduleKind kind = ScheduleKind::wsd;
    double warmup = 0.01;             // fraction of all tokens ("1%") ...
    std::int64_t warmup_tokens = -1;  // ... or tokens ("2M tokens"); -1 = use the fraction
    double decay = 0.1;               // wsd: fraction of all tokens spent in the final linear decay
    double final_lr = 0.1;            // fraction of the peak at the end
};

/// batch.*
struct BatchConfig {
    std::int64_t global_batch = 16;  // sequences per step
    std::int64_t micro_batch = 4;    // sequences per forward/backward of one dp rank
    // Not a key: follows from the others and dp (resolve_for_world).
    std::int64_t grad_accum = 0;  // micro-batches of a rank per step
};

/// stages[]: one entry per curriculum stage, in order
struct StageConfig {
    std::string name;
    std::int64_t tokens = 0;  // token budget; steps = ceil(tokens / (global_batch * seq_len))
    std::int64_t seq_len = 256;
    std::map<std::string, double> mix;  // source name -> weight; sums to 1
    double lr_scale = 1.0;              // the stage's LR segment: multiplies the schedule ...
    std::int64_t lr_warmup_tokens = 0;  // ... re-warmed linearly over this many tokens of the stage
    std::optional<AttentionConfig> attention;  // absent: the model's
};

/// data.sources.<name>.*
struct SourceConfig {
    std::string name;
    SourceKind kind = SourceKind::shards;
    std::string path;                   // shards: directory written by `stoa data build`
    std::vector<std::string> families;  // reasoning: family names
    std::int64_t difficulty = 1;        // reasoning: 1..10
    LossOn loss_on = LossOn::all;       // reasoning: train on everything or on steps + answer
};

/// data.*
struct DataConfig {
    std::string tokenizer;              // tokenizer.json
    std::vector<SourceConfig> sources;  // in file order
};

/// checkpoint.*
struct CheckpointConfig {
    std::int64_t every_steps = 200;  // "200 steps"; 0 = use every_seconds only
    double every_seconds = 0.0;      // "30min"; 0 = use every_steps only
    bool blocking = false;           // "200 steps blocking": no snapshot, training waits
    std::int64_t keep = 3;
    std::int64_t keep_every_steps = 0;  // "3 + every 5000 steps": those stay for ever; 0: none
};

/// eval.*
struct EvalConfig {
    std::int64_t every_steps = 200;  // also at every stage switch and at the end; 0 = only there
    std::int64_t sequences = 32;     // held-out sequences per shards source
    std::int64_t problems = 100;  // "100 of 96 tokens": held-out problems per reasoning family ...
    std::int64_t max_new_tokens = 96;  // ... and the longest answer
};

/// log.*
struct LogConfig {
    std::int64_t every_steps = 10;
};

struct RunConfig {
    RunSection run;
    ModelConfig model;
    ParallelConfig parallel;
    PrecisionConfig precision;
    OptimizerConfig optimizer;
    ScheduleConfig schedule;
    BatchConfig batch;
    std::vector<StageConfig> stages;
    DataConfig data;
    CheckpointConfig checkpoint;
    EvalConfig eval;
    LogConfig log;

    std::string run_dir() const { return run.dir + "/" + run.name; }
};

/// Steps of one stage: the smallest number that covers its token budget.
inline std::int64_t stage_steps(const StageConfig& stage, std::int64_t global_batch) {
    const std::int64_t per_step = global_batch * stage.seq_len;
    return (stage.tokens + per_step - 1) / per_step;
}

}  // namespace stoa
