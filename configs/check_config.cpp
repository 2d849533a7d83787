#include "configs/check_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "configs/config_schema.h"
#include "configs/load_run_config.h"
#include "configs/recipe.h"
#include "configs/rules.h"

namespace stoa {
namespace {

std::int64_t nearest_multiple(std::int64_t n, std::int64_t divisor) {
    const std::int64_t below = n / divisor * divisor;
    return below > 0 && n - below < below + divisor - n ? below : below + divisor;
}

/// "6 or 8": the multiples around n.
std::string multiples_around(std::int64_t n, std::int64_t divisor) {
    const std::int64_t below = n / divisor * divisor;
    return below == 0 ? fmt::format("{}", divisor)
                      : fmt::format("{} or {}", below, below + divisor);
}

void check_model(const RunConfig& c, Rules& rules) {
    const ModelConfig& m = c.model;
    const std::int64_t tp = c.parallel.tp;
    rules.require(m.head_dim % 2 == 0, {"model.head_dim"},
                  fmt::format("model.head_dim: expected an even number, got {}", m.head_dim),
                  fmt::format("the rotary embedding turns pairs; use {}", m.head_dim + 1));
    rules.require(m.n_heads % m.n_kv_heads == 0, {"model.n_kv_heads", "model.n_heads"},
                  fmt::format("model.n_kv_heads: expected a divisor of n_heads ({}), got {}",
                              m.n_heads, m.n_kv_heads),
                  "each key/value head serves the same number of query heads");
    const auto divisible = [&](const char* name, std::int64_t value) {
        const std::string key = std::string("model.") + name;
        rules.require(
            value % tp == 0, {"parallel.tp", key},
            fmt::format("parallel.tp: expected a divisor of {} ({}), got {}", name, value, tp),
            fmt::format("set {}={} or another parallel.tp", key, nearest_multiple(value, tp)));
    };
    divisible("n_heads", m.n_heads);
    divisible("n_kv_heads", m.n_kv_heads);
    divisible("d_ff", m.d_ff);
}

// 8-bit tensors are scaled in blocks of 128 features, and a shard holds whole blocks.
void check_blocks(const RunConfig& c, Rules& rules) {
    constexpr std::int64_t kBlock = 128;
    const Formats f = formats_of(c.precision);
    const bool fp8_ffn = f.ffn == DType::e4m3, fp8_moments = f.m == DType::e4m3;
    if (!fp8_ffn && !fp8_moments) return;
    const ModelConfig& m = c.model;
    const std::int64_t tp = c.parallel.tp;
    const auto whole_blocks = [&](const char* name, std::int64_t value, std::int64_t unit,
                                  const std::vector<std::string>& keys) {
        rules.require(
            value % unit == 0, keys,
            fmt::format("{}: expected a multiple of {} (fp8 blocks of 128{}), got {}", name, unit,
                        unit == kBlock ? "" : fmt::format(" on each of {} tp ranks", tp), value),
            fmt::format("use {}, or precision.recipe=bf16, which has no blocks",
                        multiples_around(value, unit)));
    };
    whole_blocks("model.d_model", m.d_model, kBlock, {"model.d_model", "precision.recipe"});
    whole_blocks("model.d_ff", m.d_ff, kBlock * tp,
                 {"model.d_ff", "parallel.tp", "precision.recipe"});
    if (fp8_moments)
        whole_blocks("model.n_heads x model.head_dim", m.n_heads * m.head_dim, kBlock * tp,
                     {"model.n_heads", "model.head_dim", "parallel.tp", "precision.recipe"});
}

void check_precision(const RunConfig& c, Rules& rules) {
    const PrecisionConfig& p = c.precision;
    const auto one_of = [&](const char* key, Format given, std::initializer_list<Format> good,
                            const char* names) {
        rules.require(
            given == Format::automatic || std::find(good.begin(), good.end(), given) != good.end(),
            {key}, std::string(key) + ": this format is not for it",
            std::string("use auto, ") + names);
    };
    using enum Format;
    one_of("precision.ffn", p.ffn, {fp32, bf16, fp8}, "fp32, bf16 or fp8");
    one_of("precision.attention", p.attention, {fp32, bf16, fp16}, "fp32, bf16 or fp16");
    one_of("precision.grads", p.grads, {fp32, bf16}, "fp32 or bf16");
    one_of("precision.master", p.master, {fp32, fp24}, "fp32 or fp24");
    const bool given = p.ffn != automatic || p.attention != automatic || p.grads != automatic ||
                       p.master != automatic || p.moments != Moments::automatic;
    rules.require(p.recipe != Recipe::fp64 || !given, {"precision.recipe"},
                  "precision.recipe: fp64 is fp64 throughout",
                  "remove the other precision keys, or choose another recipe");
    check_blocks(c, rules);
    for (std::size_t i = 0; i < c.parallel.recompute_layers.size(); ++i) {
        const std::string& text = c.parallel.recompute_layers[i];
        std::int64_t first = 0, last = 0;
        rules.require(parse_layer_range(text, first, last) && last < c.model.n_layers,
                      {"parallel.recompute", "model.n_layers"},
                      fmt::format("parallel.recompute: expected blocks within 0-{}, got '{}'",
                                  c.model.n_layers - 1, text),
                      "write ranges like full 0-3 7; none means all blocks");
    }
}

void check_batch(const RunConfig& c, Rules& rules) {
    const BatchConfig& b = c.batch;
    const std::int64_t dp = c.parallel.dp;
    const std::string key = "batch.global_batch";
    if (b.global_batch % b.micro_batch != 0) {
        rules.require(
            false, {key, "batch.micro_batch"},
            fmt::format("batch.global_batch: expected a multiple of micro_batch ({}), got {}",
                        b.micro_batch, b.global_batch),
            fmt::format("nearest: {}", multiples_around(b.global_batch, b.micro_batch)));
    } else if (dp > 0 && b.global_batch % (b.micro_batch * dp) != 0) {
        rules.require(
            false, {key, "batch.micro_batch", "parallel.dp"},
            fmt::format(
                "batch.global_batch: expected a multiple of micro_batch x dp = {} x {}, got {}",
                b.micro_batch, dp, b.global_batch),
            fmt::format("nearest: {}", multiples_around(b.global_batch, b.micro_batch * dp)));
    }
}

// What "elastic DPxTP" promises: every mesh that divides it sums in its order.
void check_determinism(const RunConfig& c, Rules& rules) {
    const ParallelConfig& p = c.parallel;
    const char* const key = "parallel.determinism";
    rules.require(p.determinism != Determinism::elastic || is_elastic(c), {key, "precision.grads"},
                  "parallel.determinism: elastic needs fp32 gradients, and precision.grads is bf16",
                  "set precision.grads=fp32 or parallel.determinism=fast");
    if (!is_elastic(c) || p.dp_shards == 0) return;
    const std::string text = fmt::format("elastic {}x{}", p.dp_shards, p.tp_chunks);
    const auto divides = [&](std::int64_t part, std::int64_t whole, const char* name,
                             const std::vector<std::string>& keys) {
        rules.require(part == 0 || whole % part == 0, keys,
                      fmt::format("parallel.determinism: {} needs a {} that divides {}, got {}",
                                  text, name, whole, part),
                      "start a mesh that divides it, or another run with other sizes (fast: any "
                      "mesh, other bits)");
    };
    divides(p.dp, p.dp_shards, "dp", {key, "parallel.dp"});
    divides(p.tp, p.tp_chunks, "tp", {key, "parallel.tp"});
    rules.require((p.tp & (p.tp - 1)) == 0 || p.tp == p.tp_chunks, {key, "parallel.tp"},
                  fmt::format("parallel.determinism: {} needs tp = {} or a power of two, got {}",
                              text, p.tp_chunks, p.tp),
                  "the sums over tp form a binary tree");
    for (const auto& [name, value] : {std::pair{"n_heads", c.model.n_heads},
                                      {"n_kv_heads", c.model.n_kv_heads},
                                      {"d_ff", c.model.d_ff}}) {
        rules.require(value % p.tp_chunks == 0, {key, std::string("model.") + name},
                      fmt::format("parallel.determinism: {} needs a multiple of {} as model.{}, "
                                  "got {}",
                                  text, p.tp_chunks, name, value),
                      "use fewer tp chunks, or another model size");
        if (value % p.tp_chunks != 0) break;
    }
    const std::int64_t unit = c.batch.micro_batch * p.dp_shards;
    rules.require(c.batch.global_batch % unit == 0,
                  {key, "batch.global_batch", "batch.micro_batch"},
                  fmt::format("parallel.determinism: {} needs a multiple of micro_batch x {} = {} "
                              "as batch.global_batch, got {}",
                              text, p.dp_shards, unit, c.batch.global_batch),
                  fmt::format("nearest: {}", multiples_around(c.batch.global_batch, unit)));
}

// Sequence parallel cuts every sequence into the segments of the sums (trainer/model/sequence.h).
void check_sequence(const RunConfig& c, Rules& rules) {
    if (!c.parallel.sequence) return;
    const std::int64_t segments = virtual_mesh(c, 1, c.parallel.tp).tp_chunks;
    for (const StageConfig& s : c.stages)
        rules.require(s.seq_len % segments == 0, {"parallel.tp", "stages." + s.name + ".seq_len"},
                      fmt::format("parallel.tp: sequence cuts every sequence in {}, and stage '{}' "
                                  "has a seq_len of {}",
                                  segments, s.name, s.seq_len),
                      fmt::format("nearest: {}", multiples_around(s.seq_len, segments)));
}

// Sharded gradients leave with their micro-batch.
void check_zero(const RunConfig& c, Rules& rules) {
    const ParallelConfig& p = c.parallel;
    const BatchConfig& b = c.batch;
    if (p.zero < 2 || b.global_batch % b.micro_batch != 0) return;
    const std::int64_t passes = b.global_batch / b.micro_batch;
    if (is_elastic(c) && p.dp_shards > 0)
        rules.require(
            passes == p.dp_shards, {"parallel.zero", "parallel.determinism"},
            fmt::format("parallel.zero: {} needs one micro-batch in each of the {} dp "
                        "shards of parallel.determinism, got {}",
                        p.zero, p.dp_shards, passes / p.dp_shards),
            fmt::format("set parallel.determinism=\"elastic {}x{}\", batch.micro_batch={} "
                        "or parallel.zero=1",
                        passes, p.tp_chunks, b.global_batch / p.dp_shards));
    rules.require(size_of(formats_of(c.precision).grad) >= 4 || p.dp == 0 || passes <= p.dp,
                  {"parallel.zero", "precision.grads"},
                  fmt::format("parallel.zero: {} adds up the gradients of {} micro-batches a rank, "
                              "and precision.grads is bf16",
                              p.zero, passes / std::max<std::int64_t>(1, p.dp)),
                  "set precision.grads=fp32, a larger batch.micro_batch or parallel.zero=1");
}

void check_schedule(const RunConfig& c, Rules& rules) {
    const ScheduleConfig& s = c.schedule;
    double total = 0.0;
    bool budgets_known = true;
    for (std::size_t i = 0; i < c.stages.size(); ++i) {
        total += static_cast<double>(c.stages[i].tokens);
        const std::string key = fmt::format("stages.{}.tokens", i);
        budgets_known = budgets_known && !rules.places.is_wrong(key);
        rules.require(
            c.stages[i].lr_warmup_tokens <= c.stages[i].tokens,
            {fmt::format("stages.{}.lr_warmup", i), key},
            fmt::format("stages.{}.lr_warmup: expected at most the stage's {} tokens, got {}", i,
                        c.stages[i].tokens, c.stages[i].lr_warmup_tokens),
            "shorten the warm-up");
    }
    if (!budgets_known || total <= 0.0) return;
    const double warmup =
        s.warmup_tokens >= 0 ? static_cast<double>(s.warmup_tokens) / total : s.warmup;
    const double decay = s.kind == ScheduleKind::wsd ? s.decay : 0.0;
    const double tolerance = 1e-9;
    rules.require(
        warmup + decay <= 1.0 + tolerance, {"schedule.warmup", "schedule.decay"},
        fmt::format("schedule: warmup and decay take {:.4g}% of the run", 100.0 * (warmup + decay)),
        fmt::format("together at most 100%: warmup is {:.4g}%, decay {:.4g}%", 100.0 * warmup,
                    100.0 * decay));
}

void check_mix(const RunConfig& c, std::size_t i, const std::vector<std::string>& sources,
               Rules& rules) {
    const std::string key = fmt::format("stages.{}.mix", i);
    double sum = 0.0;
    for (const auto& [name, share] : c.stages[i].mix) {
        sum += share;
        const bool exists = std::find(sources.begin(), sources.end(), name) != sources.end();
        const auto close = suggest(name, sources);
        std::string known;
        for (const std::string& s : sources)
            known += (known.empty() ? "" : ", ") + s;
        rules.require(exists, {key + "." + name, "data.sources"},
                      fmt::format("{}: there is no source '{}'", key, name),
                      !close.empty()  ? fmt::format("did you mean '{}'?", close.front())
                      : known.empty() ? "give data.sources"
                                      : "sources: " + known);
    }
    constexpr double kTolerance = 1e-6;
    rules.require(std::fabs(sum - 1.0) <= kTolerance, {key},
                  fmt::format("{}: the shares sum to {:.9g}, not to 1", key, sum),
                  "change the shares");
}

void check_stages(const RunConfig& c, Rules& rules) {
    rules.require(!c.stages.empty(), {"stages"}, "there are no stages",
                  "give at least one: stages: [{name: web, tokens: 1M tokens, mix: {web: 1}}]");
    std::vector<std::string> sources, names;
    for (const SourceConfig& s : c.data.sources)
        sources.push_back(s.name);
    for (std::size_t i = 0; i < c.stages.size(); ++i) {
        const std::string key = fmt::format("stages.{}.name", i);
        const std::string& name = c.stages[i].name;
        rules.require(
            is_plain_name(name, true), {key},
            fmt::format("{}: expected letters, digits, '-', '_' and '.', got '{}'", key, name),
            "the name stands in logs and files");
        rules.require(std::find(names.begin(), names.end(), name) == names.end(), {key},
                      fmt::format("{}: there are two stages '{}'", key, name),
                      "give each stage its own name");
        names.push_back(name);
        check_mix(c, i, sources, rules);
    }
}

void check_sources(const RunConfig& c, Rules& rules) {
    for (const SourceConfig& s : c.data.sources) {
        const std::string base = "data.sources." + s.name;
        const std::string kind = base + ".kind", path = base + ".path",
                          families = base + ".families";
        if (rules.places.is_wrong(kind)) continue;
        const auto given = [&](const std::string& key) { return rules.places.given.contains(key); };
        if (s.kind == SourceKind::shards) {
            rules.require(!s.path.empty(), {path, base}, base + ": a shards source needs path",
                          "the directory that `stoa data build` wrote");
            for (const char* key : {".families", ".difficulty", ".loss_on"})
                rules.require(!given(base + key), {base + key},
                              fmt::format("{}{} is for reasoning sources only", base, key),
                              "remove it, or set kind: reasoning");
        } else {
            rules.require(!s.families.empty(), {families, base},
                          base + ": a reasoning source needs families",
                          "for example families: [chain_sum]; `stoa reason gen --help` lists them");
            rules.require(!given(path), {path}, path + " is for shards sources only",
                          "remove it, or set kind: shards");
        }
    }
}

}  // namespace

bool KeyPlaces::is_wrong(const std::string& key) const {
    for (std::size_t end = key.find('.'); end != std::string::npos; end = key.find('.', end + 1))
        if (wrong.contains(key.substr(0, end))) return true;
    return wrong.contains(key);
}

void check_rules(const RunConfig& config, const KeyPlaces& places, std::vector<Problem>& problems) {
    Rules rules{places, problems};
    rules.require(is_plain_name(config.run.name, true), {"run.name"},
                  fmt::format("run.name: expected letters, digits, '-', '_' and '.', got '{}'",
                              config.run.name),
                  "it becomes a directory below run.dir");
    check_model(config, rules);
    check_precision(config, rules);
    check_batch(config, rules);
    check_determinism(config, rules);
    check_zero(config, rules);
    check_sequence(config, rules);
    check_stages(config, rules);
    check_attention(config, rules);
    check_sources(config, rules);
    check_schedule(config, rules);
}

RunConfig resolve_for_world(RunConfig config, int world_size) {
    const std::int64_t world = world_size, tp = config.parallel.tp;
    std::int64_t& dp = config.parallel.dp;
    if (world < 1)
        throw ConfigError(
            {.what = "number of ranks", .expected = "at least 1", .actual = std::to_string(world)});
    std::vector<Problem> problems;
    if (dp == 0 && world % tp != 0) {
        const std::int64_t near = nearest_multiple(world, tp);
        problems.push_back(
            {{},
             fmt::format("{} ranks cannot be split into groups of parallel.tp = {}", world, tp),
             fmt::format("start with `mpirun -n {}` or set parallel.tp to a divisor of {}", near,
                         world)});
    } else if (dp != 0 && dp * tp != world) {
        std::string fix = fmt::format("start with `mpirun -n {}`", dp * tp);
        fix += world % tp == 0
                   ? fmt::format(" or set parallel.dp={}", world / tp)
                   : fmt::format(" or choose parallel.dp and parallel.tp with product {}", world);
        problems.push_back(
            {{},
             fmt::format("{} rank{} started, but parallel.dp x parallel.tp = {} x {}", world,
                         world == 1 ? " was" : "s were", dp, tp),
             fix});
    }
    if (problems.empty()) {
        dp = world / tp;
        KeyPlaces none;
        Rules rules{none, problems};
        check_batch(config, rules);
        check_determinism(config, rules);
        check_zero(config, rules);
        check_sequence(config, rules);
        if (problems.empty())
            config.batch.grad_accum = config.batch.global_batch / (config.batch.micro_batch * dp);
    }
    if (problems.empty()) return config;
    throw ConfigError({.what = problems.front().what, .hint = problems.front().fix});
}

RunConfig resolve_for_vocab(RunConfig config, std::int64_t tokenizer_vocab_size) {
    std::int64_t& vocab = config.model.vocab_size;
    if (vocab == 0) vocab = tokenizer_vocab_size;
    if (vocab < tokenizer_vocab_size)
        throw ConfigError({.what = "model.vocab_size is smaller than the tokenizer",
                           .where = config.data.tokenizer,
                           .expected = fmt::format("at least {}", tokenizer_vocab_size),
                           .actual = std::to_string(vocab),
                           .hint = "set model.vocab_size=auto"});
    return config;
}

}  // namespace stoa
