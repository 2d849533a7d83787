#include "trainer/run_state.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <set>
#include <sstream>

#include "configs/attention_config.h"
#include "configs/load_run_config.h"
#include "kernels/core/log.h"

namespace stoa {
namespace {

std::string join(const std::vector<std::int64_t>& values) {
    std::string s;
    for (const std::int64_t v : values)
        s += (s.empty() ? "" : " ") + std::to_string(v);
    return s;
}

std::vector<std::int64_t> split(const std::string& text) {
    std::vector<std::int64_t> values;
    std::istringstream in(text);
    for (std::int64_t v; in >> v;)
        values.push_back(v);
    return values;
}

// What decides which samples a step sees and which numbers the weights are.
std::map<std::string, std::string> identity(const RunConfig& c) {
    std::map<std::string, std::string> id;
    const ModelConfig& m = c.model;
    const auto put = [&](const std::string& key, const auto& value) {
        id["identity." + key] = fmt::format("{}", value);
    };
    put("run.seed", c.run.seed);
    put("model.vocab_size", m.vocab_size);
    put("model.d_model", m.d_model);
    put("model.n_layers", m.n_layers);
    put("model.n_heads", m.n_heads);
    put("model.n_kv_heads", m.n_kv_heads);
    put("model.head_dim", m.head_dim);
    put("model.d_ff", m.d_ff);
    put("model.tie_embeddings", m.tie_embeddings);
    put("model.rope_theta", m.rope_theta);
    put("model.norm_eps", m.norm_eps);
    std::vector<std::int64_t> learned;  // windows and the like may change, as the learning rate
    for (std::int64_t l = 0; l < m.n_layers; ++l)
        if (learns_importance(c, l)) learned.push_back(l);
    if (!learned.empty()) put("model.attention, layers that select keys", join(learned));
    if (rotated_part(c) != 1.0) put("model.attention.rotate", rotated_part(c));
    PrecisionConfig precision = c.precision;
    precision.wide_attention = false;  // a decision of the policy, not of the configuration
    const Formats formats = formats_of(precision);
    for (const auto& [key, format] : {std::pair{"residual", formats.residual},
                                      {"attention", formats.attention},
                                      {"ffn", formats.ffn},
                                      {"grads", formats.grad},
                                      {"master", formats.master},
                                      {"m", formats.m},
                                      {"v", formats.v}})
        put(std::string("precision.") + key, dtype_name(format));
    put("precision.edge_blocks", c.precision.edge_blocks);
    put("precision.adaptive", c.precision.adaptive);
    put("batch.global_batch", c.batch.global_batch);
    for (std::size_t i = 0; i < c.data.sources.size(); ++i) {
        const SourceConfig& s = c.data.sources[i];
        std::string text = s.name;
        for (const std::string& f : s.families)
            text += " " + f;
        put(fmt::format("data.sources.{}", i), fmt::format("{} difficulty {}", text, s.difficulty));
    }
    return id;
}

const std::string& text_counter(const CheckpointMeta& meta, const std::string& key) {
    const auto at = meta.counters.find(key);
    if (at == meta.counters.end())
        throw CheckpointError({.what = "counter is missing",
                               .where = key,
                               .hint = "the checkpoint was written by another version"});
    return at->second;
}
std::int64_t counter(const CheckpointMeta& meta, const std::string& key) {
    return std::stoll(text_counter(meta, key));
}

}  // namespace

namespace {

// "elastic 4x2": the order of the run's sums.
std::string sums_of(const RunConfig& config) {
    if (!is_elastic(config)) return "fast";
    const VirtualMesh v = virtual_mesh(config, config.parallel.dp, config.parallel.tp);
    return fmt::format("elastic {}x{}", v.dp_shards, v.tp_chunks);
}

}  // namespace

void adopt_sums(const CheckpointMeta& saved, RunConfig& config, const std::string& dir) {
    const auto at = saved.counters.find("sums");
    const std::string was = at == saved.counters.end() ? "fast" : at->second;
    if (was == "fast" || !is_elastic(config) || was == sums_of(config)) return;
    ParallelConfig& p = config.parallel;
    if (p.dp_shards > 0)
        throw ConfigError({.what = "the run's sums have another order",
                           .where = "parallel.determinism",
                           .expected = was + " (saved in " + dir + ")",
                           .actual = sums_of(config),
                           .hint =
                               "set it back or leave out the sizes; with fast the run goes on, but "
                               "its bits depend on the mesh"});
    long long dp_shards = 0, tp_chunks = 0;
    if (std::sscanf(was.c_str(), "elastic %lldx%lld", &dp_shards, &tp_chunks) != 2)
        throw CheckpointError({.what = "counter is damaged", .where = "sums", .actual = was});
    RunConfig adopted = config;
    adopted.parallel.determinism = Determinism::elastic;
    adopted.parallel.dp_shards = dp_shards;
    adopted.parallel.tp_chunks = tp_chunks;
    try {
        config = resolve_for_world(adopted, static_cast<int>(p.dp * p.tp));
    } catch (const ConfigError& e) {
        if (p.determinism == Determinism::elastic) throw;
        log_warn("{}; the run goes on with {}: from here on its bits are others", e.fields().what,
                 sums_of(config));
    }
}

CheckpointMeta checkpoint_meta(const TrainRun& run) {
    const CurriculumState& c = run.curriculum;
    CheckpointMeta meta{.step = c.step,
                        .counters = identity(run.state.config),
                        .resolved_config = run.resolved_config};
    meta.tokenizer_hash = run.tokenizer.hash();
    meta.run_id = run.identity.run_id;
    meta.counters["sums"] = sums_of(run.state.config);
    meta.counters["curriculum.step"] = std::to_string(c.step);
    meta.counters["curriculum.tokens"] = std::to_string(c.tokens);
    meta.counters["curriculum.stage"] = std::to_string(c.stage);
    meta.counters["curriculum.stage_begin_step"] = std::to_string(c.stage_begin_step);
    meta.counters["curriculum.stage_begin_tokens"] = std::to_string(c.stage_begin_tokens);
    meta.counters["curriculum.source_tokens"] = join(c.source_tokens);
    meta.counters["optimizer.step"] = std::to_string(run.state.optimizer_step);
    meta.counters["optimizer.skipped_in_a_row"] = std::to_string(run.state.skipped_in_a_row);
    meta.counters["loss_scale"] = to_text(run.state.loss_scale);
    meta.counters["precision_policy"] = to_text(run.state.policy);
    meta.counters["spike_guard"] = to_text(run.state.guard);
    std::string id;
    for (const auto& [key, value] : identity(run.state.config))
        id += key + "=" + value + "\n";
    meta.config_hash = fmt::format("{:016x}", std::hash<std::string>{}(id));
    return meta;
}

void check_identity(const CheckpointMeta& saved, const CheckpointMeta& now,
                    const std::string& dir) {
    std::set<std::string> keys;  // some are there only where they are not as usual
    for (const CheckpointMeta* meta : {&saved, &now})
        for (const auto& [key, value] : meta->counters)
            if (key.starts_with("identity.")) keys.insert(key);
    const auto value_of = [](const CheckpointMeta& meta, const std::string& key) {
        const auto at = meta.counters.find(key);
        return at == meta.counters.end() ? std::string("(absent)") : at->second;
    };
    for (const std::string& key : keys) {
        const std::string was = value_of(saved, key), is = value_of(now, key);
        if (was != is)
            throw ConfigError({.what = "the configuration does not continue this run",
                               .where = key.substr(9),
                               .expected = was + " (saved in " + dir + ")",
                               .actual = is,
                               .hint = "set it back, or start another run with run.name=NAME"});
    }
    if (saved.tokenizer_hash != now.tokenizer_hash)
        throw ConfigError({.what = "the tokenizer does not continue this run",
                           .where = "data.tokenizer",
                           .expected = saved.tokenizer_hash + " (saved in " + dir + ")",
                           .actual = now.tokenizer_hash,
                           .hint = "use the tokenizer the run was started with"});
}

PolicyState saved_policy(const CheckpointMeta& meta, const RunConfig& config) {
    PolicyState policy = policy_state_from_text(text_counter(meta, "precision_policy"));
    if (std::ssize(policy.layers) != config.model.n_layers)
        throw CheckpointError({.what = "the precision policy is of another model",
                               .expected = fmt::format("{} layers", config.model.n_layers),
                               .actual = fmt::format("{}", policy.layers.size())});
    return policy;
}

const StageConfig& saved_stage(const CheckpointMeta& meta, const RunConfig& config) {
    const std::int64_t last = std::ssize(config.stages) - 1;
    return config.stages[static_cast<std::size_t>(
        std::clamp<std::int64_t>(counter(meta, "curriculum.stage"), 0, last))];
}

void restore_counters(const CheckpointMeta& meta, TrainRun& run) {
    CurriculumState& c = run.curriculum;
    c.step = counter(meta, "curriculum.step");
    c.tokens = counter(meta, "curriculum.tokens");
    c.stage = counter(meta, "curriculum.stage");
    c.stage_begin_step = counter(meta, "curriculum.stage_begin_step");
    c.stage_begin_tokens = counter(meta, "curriculum.stage_begin_tokens");
    c.source_tokens = split(meta.counters.at("curriculum.source_tokens"));
    run.state.optimizer_step = counter(meta, "optimizer.step");
    run.state.skipped_in_a_row = counter(meta, "optimizer.skipped_in_a_row");
    run.state.loss_scale = loss_scale_from_text(text_counter(meta, "loss_scale"));
    run.state.policy = saved_policy(meta, run.state.config);
    run.state.guard = spike_guard_from_text(text_counter(meta, "spike_guard"));
}

}  // namespace stoa
