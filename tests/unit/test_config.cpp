#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "configs/config_units.h"
#include "configs/load_run_config.h"
#include "configs/recipe.h"
#include "tests/support/catch.h"

using namespace stoa;

namespace {

// Line numbers matter below: `lr` is on line 6, `tokens` on line 13.
const std::string kValid =
    "run:\n"                                                // 1
    "  name: test\n"                                        // 2
    "model:\n"                                              // 3
    "  d_model: 64\n"                                       // 4
    "optimizer:\n"                                          // 5
    "  lr: 1e-3\n"                                          // 6
    "  betas: [0.9, 0.99]\n"                                // 7
    "batch:\n"                                              // 8
    "  global_batch: 8\n"                                   // 9
    "  micro_batch: 2\n"                                    // 10
    "stages:\n"                                             // 11
    "  - name: web\n"                                       // 12
    "    tokens: 1M tokens\n"                               // 13
    "    seq_len: 64\n"                                     // 14
    "    mix: {web: 0.25, sums: 0.75}\n"                    // 15
    "data:\n"                                               // 16
    "  tokenizer: tokenizer.json\n"                         // 17
    "  sources:\n"                                          // 18
    "    web: {kind: shards, path: shards/web}\n"           // 19
    "    sums: {kind: reasoning, families: [chain_sum]}\n"  // 20
    "precision: {recipe: fp32}\n";                          // 21

std::string replaced(const std::string& from, const std::string& to) {
    std::string s = kValid;
    const std::size_t at = s.find(from);
    REQUIRE(at != std::string::npos);
    return s.replace(at, from.size(), to);
}

RunConfig load(const std::string& text, const std::vector<std::string>& overrides = {}) {
    return load_run_config_text(text, "c.yaml", overrides).config;
}

/// The report of a configuration that must be refused.
std::string report(const std::string& text, const std::vector<std::string>& overrides = {}) {
    try {
        (void)load(text, overrides);
    } catch (const ConfigError& e) {
        CHECK(e.code() == ExitCode::config);
        return e.what();
    }
    FAIL("accepted:\n" << text);
    return "";
}

struct Refusal {
    const char* from;
    const char* to;
    std::vector<const char*> says;
};

void check_refusals(const std::vector<Refusal>& refusals) {
    for (const Refusal& r : refusals) {
        const std::string text = report(replaced(r.from, r.to));
        for (const char* part : r.says) {
            CAPTURE(r.to, text);
            CHECK(text.find(part) != std::string::npos);
        }
        CAPTURE(r.to, text);
        CHECK(text.find("\n1 error, nothing was started") != std::string::npos);
    }
}

}  // namespace

TEST_CASE("a valid configuration fills its structs and leaves the rest at the defaults") {
    const RunConfig c = load(kValid);
    CHECK(c.run.name == "test");
    CHECK(c.model.d_model == 64);
    CHECK(c.optimizer.lr == 1e-3);
    CHECK(c.optimizer.beta2 == 0.99);
    CHECK(c.model.n_layers == ModelConfig{}.n_layers);
    REQUIRE(c.stages.size() == 1);
    CHECK(c.stages[0].tokens == 1'000'000);
    CHECK(c.stages[0].mix.at("sums") == 0.75);
    REQUIRE(c.data.sources.size() == 2);
    CHECK(c.data.sources[0].path == "shards/web");
    CHECK(c.data.sources[1].kind == SourceKind::reasoning);
    CHECK(c.data.sources[1].families == std::vector<std::string>{"chain_sum"});
}

TEST_CASE("wrong keys are refused with place and suggestion") {
    check_refusals({
        {"lr: 1e-3",
         "learnig_rate: 1e-3",
         {"c.yaml:6:3: error: unknown key 'optimizer.learnig_rate'"}},
        {"lr: 1e-3", "learning_rate: 1e-3", {"c.yaml:6:3", "did you mean 'optimizer.lr'?"}},
        {"d_model",
         "d_modle",
         {"c.yaml:4:3", "'model.d_model'?", "    4 |   d_modle: 64\n      |   ^^^^^^^ "}},
        {"d_model: 64", "lr: 1e-3", {"unknown key 'model.lr'", "did you mean 'optimizer.lr'"}},
        {"optimizer:", "optimiser:", {"c.yaml:5:1", "'optimizer'?"}},
        {"run:", "runs: 1\nrun:", {"unknown key 'runs'", "'run'?"}},
        {"seq_len", "seq-len", {"c.yaml:14:5", "'stages.0.seq_len'?"}},
        {"seq_len", "max_seq_len", {"'stages.0.seq_len'?"}},
        {"tokens: 1M", "epochs: 1M", {"c.yaml:13:5", "'stages.0.tokens'?"}},
        {"kind: shards, path", "kind: shards, pth", {"c.yaml:19", "'data.sources.web.path'?"}},
        {"  lr: 1e-3\n",
         "  lr: 1e-3\n  lr: 2e-3\n",
         {"c.yaml:7:3: error: duplicate key 'lr'", "line 6"}},
        {"batch:\n", "model: {}\nbatch:\n", {"duplicate key 'model'", "line 3"}},
        {"{web: 0.25, sums: 0.75}", "{web: 0.25, web: 0.75}", {"duplicate key 'web'"}},
        {"lr: 1e-3",
         "zzzzzzzz: 1",
         {"unknown key 'optimizer.zzzzzzzz'", "keys here: lr, betas, weight_decay"}},
        {"lr: 1e-3", "<<: 1", {"merge keys"}},
        {"    web: {kind", "    we b: {kind", {"source name 'we b'"}},
    });
}

TEST_CASE("wrong values are refused with the rule and what was found") {
    check_refusals({
        {"d_model: 64",
         "d_model: sixty",
         {"c.yaml:4:12", "model.d_model: expected a whole number", "got 'sixty'"}},
        {"d_model: 64", "d_model: 64.5", {"expected a whole number", "'64.5'"}},
        {"d_model: 64", "d_model: 0", {"expected [1, 131072], got '0'"}},
        {"d_model: 64", "d_model: -64", {"got '-64'"}},
        {"d_model: 64", "d_model: 99999999999999999999", {"too large"}},
        {"d_model: 64", "d_model: [64]", {"got a list"}},
        {"d_model: 64", "d_model: 64 tokens", {"expected a whole number"}},
        {"d_model: 64", "d_model:", {"model.d_model has no value", "default"}},
        {"d_model: 64", "tie_embeddings: yes", {"expected true or false, got 'yes'"}},
        {"lr: 1e-3", "lr: .nan", {"c.yaml:6:7", "finite"}},
        {"lr: 1e-3", "lr: -inf", {"finite"}},
        {"lr: 1e-3", "lr: 1e999", {"finite"}},
        {"lr: 1e-3", "lr: 0", {"expected (0, 1], got '0'"}},
        {"lr: 1e-3", "lr: 3", {"expected (0, 1], got '3'"}},
        {"lr: 1e-3", "lr: 0x10", {"expected a number"}},
        {"betas: [0.9, 0.99]", "betas: [0.9]", {"list of two numbers"}},
        {"betas: [0.9, 0.99]", "betas: [0.9, 1]", {"expected [0, 1), got '1'"}},
        {"tokens: 1M tokens", "tokens: 1m tokens", {"M for millions"}},
        {"tokens: 1M tokens", "tokens: 5 steps", {"whole number of tokens"}},
        {"tokens: 1M tokens", "tokens: 1.0000005M", {"whole number of tokens"}},
        {"seq_len: 64", "seq_len: 4", {"expected [8, 1048576], got '4'"}},
        {"kind: shards", "kind: shard", {"expected shards | reasoning", "did you mean 'shards'?"}},
        {"name: test", "name: a/b", {"run.name: expected letters"}},
        {"name: test", "name: ..", {"run.name: expected letters"}},
        {"name: test", "name: \"a\\x01\"", {"control characters"}},
        {"name: test", "name: ''", {"not empty"}},
        {"families: [chain_sum]", "families: [a, a]", {"each name once"}},
        {"families: [chain_sum]", "families: []", {"at least one name"}},
        {"mix: {web: 0.25, sums: 0.75}", "mix: web", {"share of each source"}},
        {"mix: {web: 0.25, sums: 0.75}",
         "mix: {web: x, sums: 0.75}",
         {"stages.0.mix.web: expected a fraction"}},
        {"model:\n  d_model: 64", "model: 5", {"model: expected a section with keys"}},
        {"optimizer:\n", "schedule: {warmup: 100}\noptimizer:\n", {"at most 100%"}},
        {"optimizer:\n", "schedule: {warmup: 200 steps}\noptimizer:\n", {"tokens (2M tokens)"}},
        {"optimizer:\n", "checkpoint: {every: 5m}\noptimizer:\n", {"30min"}},
        {"optimizer:\n", "run_x: 1\noptimizer:\n", {"unknown key 'run_x'"}},
    });
}

TEST_CASE("impossible combinations are refused with a way out") {
    check_refusals({
        {"global_batch: 8",
         "global_batch: 7",
         {"c.yaml:9:3", "multiple of micro_batch (2), got 7", "nearest: 6 or 8"}},
        {"micro_batch: 2",
         "micro_batch: 2\nparallel: {dp: 3}",
         {"micro_batch x dp = 2 x 3", "nearest: 6"}},
        {"micro_batch: 2",
         "micro_batch: 2\n  grad_accum: 3",
         {"unknown key 'batch.grad_accum'", "batch.global_batch"}},
        {"micro_batch: 2",
         "micro_batch: 2\nparallel: {dp: 4, determinism: elastic 2x1}",
         {"elastic 2x1 needs a dp that divides 2, got 4"}},
        {"micro_batch: 2",
         "micro_batch: 2\nparallel: {tp: 4, determinism: elastic 1x2}",
         {"elastic 1x2 needs a tp that divides 2, got 4"}},
        {"micro_batch: 2", "micro_batch: 2\nparallel: {zero: 4}", {"[0, 3]"}},
        {"micro_batch: 2",
         "micro_batch: 2\nparallel: {device: gpu}",
         {"parallel.device", "cpu 4, auto, cpu, cuda, cuda shared"}},
        {"micro_batch: 2",
         "micro_batch: 2\nparallel: {zero: 2 overlap}",
         {"parallel.zero", "2 beside, 2 blocking"}},
        {"micro_batch: 2",
         "micro_batch: 2\nparallel: {tp: 2 sequences}",
         {"parallel.tp", "2 sequence"}},
        {"micro_batch: 2",
         "micro_batch: 2\nparallel: {zero: 2, determinism: elastic 2x1}",
         {"zero: 2 needs one micro-batch in each of the 2 dp shards", "elastic 4x1"}},
        {"precision: {recipe: fp32}",
         "precision: {recipe: fp32, grads: bf16}\nparallel: {zero: 3, dp: 2}",
         {"zero: 3 adds up the gradients of 2 micro-batches a rank", "precision.grads=fp32"}},
        {"micro_batch: 2",
         "micro_batch: 2\nparallel: {determinism: elastic 8x1}",
         {"micro_batch x 8 = 16 as batch.global_batch, got 8", "nearest: 16"}},
        {"micro_batch: 2",
         "micro_batch: 2\nparallel: {determinism: elastic 1x3}",
         {"needs a multiple of 3 as model.n_heads, got 4"}},
        {"precision: {recipe: fp32}",
         "precision: {recipe: fp32, grads: bf16}\nparallel: {determinism: elastic}",
         {"elastic needs fp32 gradients", "parallel.determinism=fast"}},
        {"micro_batch: 2",
         "micro_batch: 2\nparallel: {determinism: elastic 4}",
         {"expected DPxTP behind elastic", "got 'elastic 4'"}},
        {"micro_batch: 2",
         "micro_batch: 2\nparallel: {determinism: elastic 0x2}",
         {"two whole numbers DPxTP"}},
        {"micro_batch: 2",
         "micro_batch: 2\nparallel: {determinism: fast 2x2}",
         {"expected auto, elastic, elastic DPxTP or fast"}},
        {"micro_batch: 2",
         "micro_batch: 2\nparallel: {determinism: elasti}",
         {"did you mean 'elastic'?"}},
        {"d_model: 64", "head_dim: 33", {"even number, got 33"}},
        {"d_model: 64", "n_kv_heads: 3", {"divisor of n_heads (4), got 3"}},
        {"model:\n",
         "parallel: {tp: 2}\nmodel:\n  d_ff: 3\n",
         {"divisor of d_ff (3), got 2", "model.d_ff=4"}},
        {"model:\n",
         "parallel: {tp: 2}\nmodel:\n  n_kv_heads: 1\n",
         {"divisor of n_kv_heads (1), got 2"}},
        {"sums: 0.75}", "sums: 0.5}", {"c.yaml:15:5", "the shares sum to 0.75, not to 1"}},
        {"{web: 0.25, sums",
         "{wbe: 0.25, sums",
         {"c.yaml:15:11", "no source 'wbe'", "did you mean 'web'?"}},
        {"path: shards/web",
         "loss_on: all, path: shards/web",
         {"loss_on is for reasoning sources only"}},
        {", families: [chain_sum]", "", {"c.yaml:20", "needs families"}},
        {", path: shards/web", "", {"c.yaml:19", "needs path"}},
        {"optimizer:\n",
         "schedule: {warmup: 60%, decay: 50%}\noptimizer:\n",
         {"take 110% of the run"}},
        {"optimizer:\n", "schedule: {warmup: 950k tokens}\noptimizer:\n", {"take 105% of the run"}},
        {"seq_len: 64", "lr_warmup: 2M", {"at most the stage's 1000000 tokens, got 2000000"}},
        {"  tokenizer: tokenizer.json\n", "", {"data.tokenizer is missing"}},
        {"    tokens: 1M tokens\n", "", {"stages.0.tokens is missing"}},
        {"kind: shards, ", "", {"data.sources.web.kind is missing"}},
    });
    CHECK(report("data: {tokenizer: t, sources: {a: {kind: shards, path: p}}}").find("no stages") !=
          std::string::npos);
    CHECK(report(replaced("stages:\n  - name: web", "stages:\n  - 5\n  - name: web"))
              .find("stages.0: expected keys") != std::string::npos);
}

TEST_CASE("all problems are reported at once, in file order, each with line and column") {
    std::string text = kValid;
    for (const auto& [from, to] :
         std::vector<std::pair<std::string, std::string>>{{"lr: 1e-3", "lr: fast"},
                                                          {"d_model", "d_mdel"},
                                                          {"global_batch: 8", "global_batch: 7"},
                                                          {"0.75", "0.5"}})
        text.replace(text.find(from), from.size(), to);
    const std::string all = report(text, {"eval.evry=3", "log.every=0"});
    std::size_t at = 0;
    for (const char* part : {"c.yaml:4:3: error: unknown key", "c.yaml:6:7: error: optimizer.lr",
                             "c.yaml:9:3: error: batch", "c.yaml:15:5: error: stages.0.mix",
                             "command line: error: unknown key 'eval.evry'",
                             "command line: error: log.every", "\n6 errors, nothing was started"}) {
        CAPTURE(part, all);
        const std::size_t next = all.find(part, at);
        REQUIRE(next != std::string::npos);
        at = next;
    }
}

TEST_CASE("one mistake is reported once") {
    // The misspelt keys carry values that would break other rules where they taken at their
    // defaults.
    CHECK(report(replaced("global_batch: 8", "global_btch: 6")).find("1 error,") !=
          std::string::npos);
    CHECK(report(replaced("stages:", "stagse:")).find("1 error,") != std::string::npos);
    CHECK(report(replaced("  sources:", "  source:")).find("1 error,") != std::string::npos);
    CHECK(report(replaced("data:", "dta:")).find("1 error,") != std::string::npos);
}

TEST_CASE("text that is no YAML configuration is refused with its place") {
    CHECK(report("").find("empty") != std::string::npos);
    CHECK(report("# only a comment\n").find("empty") != std::string::npos);
    CHECK(report("- a\n- b\n").find("holds a list") != std::string::npos);
    CHECK(report("hello").find("holds a single value") != std::string::npos);
    CHECK(report("run:\n  name: a\n  dir: [1, 2\nmodel: {}\n").find("not valid YAML") !=
          std::string::npos);
    CHECK(report("run:\n\tname: a\n").find("c.yaml:2:1: error: indented with a tab") !=
          std::string::npos);
    CHECK(report("run:\n  name: \"open\n").find("c.yaml:") != std::string::npos);
    CHECK(report(kValid + "---\nrun: {}\n").find("a second document begins here") !=
          std::string::npos);
    CHECK(report(std::string("run:\n  n\0me: 1\n", 15))
              .find("c.yaml:2:4: error: not a text file: byte 0x00") != std::string::npos);
    CHECK(report("run: \xff\xfe\n").find("c.yaml:1:6: error: not a text file: byte 0xff") !=
          std::string::npos);
    CHECK(report(",").find("c.yaml:1:1: error: not valid YAML") != std::string::npos);
    CHECK(report("? [a]\n: b\n" + kValid).find("not a plain word") != std::string::npos);
    CHECK(report(std::string(20000, '[')).find("error") != std::string::npos);
    CHECK(report("run: " + std::string(400, '[') + std::string(400, ']')).find("too deep") !=
          std::string::npos);
    CHECK(report("run: &x\n  name: *x\n").find("too deep") != std::string::npos);
    CHECK(report(std::string(2 << 20, 'a')).find("too large") != std::string::npos);
    std::string bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n";
    for (int i = 1; i < 9; ++i) {
        const std::string earlier = "*a" + std::to_string(i - 1);
        bomb += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [" + earlier;
        for (int k = 0; k < 8; ++k)
            bomb += ", " + earlier;
        bomb += "]\n";
    }
    CHECK(report(bomb).find("too many") != std::string::npos);
}

TEST_CASE("anchors and quoted numbers are fine") {
    const RunConfig c =
        load(replaced("d_model: 64", "d_model: &w 64\n  d_ff: *w\n  n_layers: \"3\""));
    CHECK(c.model.d_ff == 64);
    CHECK(c.model.n_layers == 3);
    CHECK(load(replaced("model:\n  d_model: 64", "model:\n  # d_model: 64")).model.d_model ==
          ModelConfig{}.d_model);
}

TEST_CASE("overrides reach every kind of key") {
    const RunConfig c =
        load(kValid,
             {"optimizer.lr=3e-4", "stages.0.tokens=2M tokens",
              "stages.0.mix={web: 0.5, sums: 50%}", "data.sources.web.path=a b#c", "parallel.dp=2",
              "optimizer.betas.1=0.5", "checkpoint.every=30min", "run.name=a=b", "run.name=last"});
    CHECK(c.optimizer.lr == 3e-4);
    CHECK(c.stages[0].tokens == 2'000'000);
    CHECK(c.stages[0].mix.at("sums") == 0.5);
    CHECK(c.data.sources[0].path == "a b#c");
    CHECK(c.parallel.dp == 2);
    CHECK(c.optimizer.beta2 == 0.5);
    CHECK(c.checkpoint.every_seconds == 1800.0);
    CHECK(c.checkpoint.every_steps == 0);
    CHECK(c.run.name == "last");

    const std::vector<std::pair<std::string, std::string>> wrong = {
        {"optimizer.lrr=1", "did you mean 'optimizer.lr'?"},
        {"lr=1e-3", "did you mean 'optimizer.lr'?"},
        {"optimizer.lr", "is not an override"},
        {"=3", "is not an override"},
        {"optimizer.lr=", "has no value"},
        {"stages.1.tokens=5", "entries are 0 to 0"},
        {"stages.x.tokens=5", "'x' is no entry"},
        {"stages.0.tokens=0", "stages.0.tokens: expected"},
        {"stages.0.mix=[", "not valid YAML"},
        {"stages.0.mix={web: 0.25, sums: 0.75} x", "not valid YAML"},
        {"run.name=\xff", "not text"},
        {"model..d_ff=3", "unknown key"},
        {"model=3", "expected a section"},
    };
    for (const auto& [text, says] : wrong) {
        const std::string r = report(kValid, {text});
        CAPTURE(text, r);
        CHECK(r.find("command line: error: ") != std::string::npos);
        CHECK(r.find(says) != std::string::npos);
    }
}

TEST_CASE("human units") {
    const std::vector<std::pair<std::string, std::int64_t>> counts = {
        {"20M tokens", 20'000'000},
        {"20M", 20'000'000},
        {"20 M tokens", 20'000'000},
        {"1_000", 1000},
        {"1k", 1000},
        {"1.5B", 1'500'000'000},
        {"2T tokens", 2'000'000'000'000},
        {"2e6", 2'000'000},
        {"1 token", 1},
        {"1.1B", 1'100'000'000},
        {"+7", 7},
        {"  5  ", 5},
        {"0.5k", 500},
        {"9007199254740993", 9'007'199'254'740'993}};
    for (const auto& [text, value] : counts) {
        CAPTURE(text);
        CHECK(parse_count(text, "tokens").ok());
        CHECK(parse_count(text, "tokens").value == value);
    }
    for (const char* text :
         {"", "M", "1.5", "20m", "1b", "5G", "1 000", "1__0", "_1", "1_", "tokens", "1e", "1MM",
          "--1", "1e300", "nan", "0x10", "20M steps", "12a"})
        CHECK_FALSE(parse_count(text, "tokens").ok());
    CHECK(parse_seed("18446744073709551615").value == 18446744073709551615ULL);
    CHECK_FALSE(parse_seed("18446744073709551616").ok());
    CHECK_FALSE(parse_seed("-1").ok());
    CHECK(parse_fraction("1%").value == 0.01);
    CHECK(parse_fraction("12.5 %").value == 0.125);
    CHECK(parse_fraction("0.3").value == 0.3);
    CHECK_FALSE(parse_fraction("%").ok());
    CHECK_FALSE(parse_fraction("nan%").ok());
    const std::vector<std::pair<std::string, double>> durations = {
        {"90s", 90}, {"30min", 1800}, {"2h", 7200}, {"1.5 h", 5400}, {"1d", 86400}};
    for (const auto& [text, seconds] : durations)
        CHECK(parse_duration(text).value == seconds);
    for (const char* text : {"30", "30m", "min", "1h30min", "", "30minutes"})
        CHECK_FALSE(parse_duration(text).ok());
    for (const std::int64_t n :
         {0LL, 1LL, 999LL, 1'000'000LL, 1'500'000LL, 3'000'000'000LL, 9'007'199'254'740'993LL})
        CHECK(parse_count(format_count(n, "tokens"), "tokens").value == n);
    for (const double s : {1.0, 90.0, 1800.0, 5400.0, 7200.0, 0.3})
        CHECK(parse_duration(format_duration(s)).value == s);
}

TEST_CASE("parallel.device takes a place, and threads where that is the CPU") {
    struct Case {
        const char* text;
        DeviceChoice device;
        std::int64_t threads;
    };
    using enum DeviceChoice;
    for (const Case& c :
         {Case{"auto", automatic, 0}, Case{"auto 3", automatic, 3}, Case{"cpu", cpu, 0},
          Case{"cpu 4", cpu, 4}, Case{"cuda", cuda, 0}, Case{"cuda shared", cuda_shared, 0}}) {
        CAPTURE(c.text);
        const std::string given = std::string("parallel.device=") + c.text;
        const LoadedConfig loaded = load_run_config_text(kValid, "c.yaml", {given});
        CHECK(loaded.config.parallel.device == c.device);
        CHECK(loaded.config.parallel.threads == c.threads);
        const LoadedConfig again = load_run_config_text(loaded.resolved_yaml, "r.yaml", {});
        CHECK(again.config.parallel.device == c.device);
        CHECK(again.config.parallel.threads == c.threads);
    }
    for (const char* text : {"cpu 0", "cpu four", "cuda 2", "cpu 4 5", "shared"}) {
        CAPTURE(text);
        CHECK_THROWS_AS(
            load_run_config_text(kValid, "c.yaml", {std::string("parallel.device=") + text}),
            ConfigError);
    }
}

TEST_CASE("the resolved configuration names every origin and loads back to itself") {
    const std::filesystem::path root =
        std::getenv("STOA_SOURCE_DIR") ? std::getenv("STOA_SOURCE_DIR") : ".";
    std::vector<LoadedConfig> loaded;
    for (const char* name : {"tiny", "125m", "1b"})
        loaded.push_back(
            load_run_config((root / "configs" / (std::string(name) + ".yaml")).string(), {}));
    loaded.push_back(load_run_config_text(
        kValid, "c.yaml", {"checkpoint.every=45s", "schedule.warmup=12345 tokens"}));
    loaded.push_back(load_run_config_text(
        kValid, "a\nb.yaml", {"optimizer.lr=0.1234567890123456789", "model.norm_eps=5e-324"}));
    for (const char* text :
         {"null",   "~",   "no",       "# x",  "a: b", "a #b", "'q'", "\"q\"", "a\\b", "- x",
          "[x]",    "{x}", "é ü 日本", "&a",   "*a",   "!t",   "%d",  "@x",    "`x`",  " lead",
          "trail ", "123", "1e5",      "true", "?",    "|",    ">",   "---",   "a\tb"}) {
        const bool tab = std::string(text).find('\t') != std::string::npos;
        if (tab) continue;  // refused: control characters
        std::string yaml = kValid;
        LoadedConfig c = load_run_config_text(yaml, "c.yaml", {});
        c.config.data.tokenizer = text;  // as an override or an escape in the file may have set it
        c.config.data.sources[0].path = text;
        c.config.data.sources[1].families = {text, "other"};
        c.resolved_yaml = write_config_yaml(c.config, c.origins);
        loaded.push_back(c);
    }
    for (const LoadedConfig& first : loaded) {
        CAPTURE(first.resolved_yaml);
        const LoadedConfig again = load_run_config_text(first.resolved_yaml, "resolved.yaml", {});
        CHECK(write_config_yaml(again.config, {}) == write_config_yaml(first.config, {}));
        CHECK(again.config.data.tokenizer == first.config.data.tokenizer);
        CHECK(again.config.data.sources[0].path == first.config.data.sources[0].path);
        CHECK(again.config.data.sources[1].families == first.config.data.sources[1].families);
        CHECK(again.config.optimizer.lr == first.config.optimizer.lr);
        CHECK(again.config.model.norm_eps == first.config.model.norm_eps);
        CHECK(again.config.schedule.warmup == first.config.schedule.warmup);
        CHECK(again.config.schedule.warmup_tokens == first.config.schedule.warmup_tokens);
        CHECK(again.config.checkpoint.every_seconds == first.config.checkpoint.every_seconds);
        CHECK(again.config.stages[0].mix == first.config.stages[0].mix);
        CHECK(again.config.run.seed == first.config.run.seed);
    }
    const std::string yaml = load_run_config_text(kValid, "c.yaml", {"log.every=7"}).resolved_yaml;
    CHECK(yaml.find("lr: 0.001  # c.yaml:6\n") != std::string::npos);
    CHECK(yaml.find("every: 7 steps  # command line\n") != std::string::npos);
    CHECK(yaml.find("max_skips: 20 steps  # default\n") != std::string::npos);
}

TEST_CASE("resolve_for_world fills dp and grad_accum or says how to start") {
    RunConfig c = load(kValid);
    CHECK(resolve_for_world(c, 4).parallel.dp == 4);
    CHECK(resolve_for_world(c, 4).batch.grad_accum == 1);
    CHECK(resolve_for_world(c, 1).batch.grad_accum == 4);
    c.parallel.tp = 2;
    CHECK(resolve_for_world(c, 4).parallel.dp == 2);
    const auto refusal = [](const RunConfig& config, int world) -> std::string {
        try {
            (void)resolve_for_world(config, world);
        } catch (const ConfigError& e) {
            return e.what();
        }
        return "accepted";
    };
    CHECK(refusal(c, 3).find("cannot be split into groups of parallel.tp = 2") !=
          std::string::npos);
    c.parallel.dp = 1;
    const std::string text = refusal(c, 4);
    CHECK(text.find("4 ranks were started, but parallel.dp x parallel.tp = 1 x 2") !=
          std::string::npos);
    CHECK(text.find("mpirun -n 2") != std::string::npos);
    CHECK(text.find("parallel.dp=2") != std::string::npos);
    c.parallel = {};
    CHECK(refusal(c, 3).find("micro_batch x dp = 2 x 3") != std::string::npos);
    c.parallel.dp_shards = c.parallel.tp_chunks = 2;
    CHECK(refusal(c, 4).find("elastic 2x2 needs a dp that divides 2, got 4") != std::string::npos);
    CHECK(refusal(c, 2) == "accepted");
    CHECK(refusal(c, 0).find("at least 1") != std::string::npos);
}

TEST_CASE("resolve_for_vocab takes the tokenizer's size and refuses a smaller one") {
    RunConfig c = load(kValid);
    CHECK(resolve_for_vocab(c, 777).model.vocab_size == 777);
    c.model.vocab_size = 1000;
    CHECK(resolve_for_vocab(c, 777).model.vocab_size == 1000);
    CHECK_THROWS_AS(resolve_for_vocab(c, 1001), ConfigError);
}

TEST_CASE("suggestions") {
    const std::vector<std::string> verbs = {"check",     "train",  "launch",   "data",
                                            "tokenizer", "reason", "generate", "ckpt"};
    CHECK(suggest("trian", verbs).at(0) == "train");
    CHECK(suggest("chck", verbs).at(0) == "check");
    CHECK(suggest("gen", verbs).at(0) == "generate");
    CHECK(suggest("TRAIN", verbs).at(0) == "train");
    CHECK(suggest("xyzzyplugh", verbs).empty());
    CHECK(suggest("", verbs).empty());
    CHECK(suggest("q", {"ab"}).empty());
    CHECK(suggest("batch_global", {"global_batch", "micro_batch"}).at(0) == "global_batch");
    CHECK(suggest(std::string(100000, 'a'), verbs).empty());
}

TEST_CASE("the schema has at most 60 keys, each with a type and a meaning") {
    CHECK(config_schema().size() <= 60);
    for (const SchemaKey& k : config_schema()) {
        CAPTURE(k.key);
        CHECK_FALSE(k.type.empty());
        CHECK_FALSE(k.help.empty());
        CHECK_FALSE(k.default_value.empty());
    }
}

TEST_CASE("a file that cannot be read is named") {
    const std::filesystem::path root =
        std::getenv("STOA_SOURCE_DIR") ? std::getenv("STOA_SOURCE_DIR") : ".";
    const auto message = [](const std::string& path) -> std::string {
        try {
            (void)load_run_config(path, {});
        } catch (const ConfigError& e) {
            return e.what();
        }
        return "accepted";
    };
    CHECK(message((root / "configs/tinny.yaml").string()).find("tiny.yaml?") != std::string::npos);
    CHECK(message((root / "configs").string()).find("directory") != std::string::npos);
    CHECK(message("/no/such/dir/c.yaml").find("no such file") != std::string::npos);
}

TEST_CASE("fp8 needs whole blocks of 128, and says what fits", "[unit]") {
    const std::string r30 = replaced("recipe: fp32", "recipe: r30");
    const std::string text = report(r30);
    CHECK(text.find("model.d_model: expected a multiple of 128 (fp8 blocks of") !=
          std::string::npos);
    CHECK(text.find("precision.recipe=bf16") != std::string::npos);
    CHECK(report(r30, {"model.d_model=256", "model.d_ff=384", "parallel.tp=2"})
              .find("model.d_ff: expected a multiple of 256") != std::string::npos);
    CHECK(report(r30, {"model.d_model=256", "model.n_heads=4", "model.head_dim=48"})
              .find("model.n_heads x model.head_dim: expected a multiple of 128") !=
          std::string::npos);
    CHECK(load(r30, {"model.d_model=256", "model.d_ff=512", "parallel.tp=2"}).precision.recipe ==
          Recipe::r30);
    CHECK(load(r30, {"precision.ffn=bf16", "precision.moments=bf16"}).model.d_model == 64);
}

TEST_CASE("formats that a tensor cannot have and unknown recipes are refused", "[unit]") {
    CHECK(report(kValid, {"precision.attention=fp8"}).find("use auto, fp32, bf16 or fp16") !=
          std::string::npos);
    CHECK(report(kValid, {"precision.master=bf16"}).find("use auto, fp32 or fp24") !=
          std::string::npos);
    CHECK(report(kValid, {"precision.recipe=r31"}).find("did you mean 'r30'") != std::string::npos);
    CHECK(report(kValid, {"precision.recipe=fp64", "precision.ffn=bf16"})
              .find("fp64 is fp64 throughout") != std::string::npos);
    CHECK(report(kValid, {"parallel.recompute=full 0-9"}).find("expected blocks within 0-3") !=
          std::string::npos);
    const RunConfig c = load(kValid, {"parallel.recompute=full 0-1 3"});
    CHECK(recompute_of(c, 1) == Recompute::full);
    CHECK(recompute_of(c, 2) == Recompute::none);
    CHECK(recompute_of(c, 3) == Recompute::full);
    for (const char* bad : {"full x", "none 0-1", "full 3-1", "full -1"})
        CHECK(report(kValid, {"parallel.recompute=" + std::string(bad)})
                  .find("expected ranges of blocks behind selective or full") != std::string::npos);
    CHECK(report(kValid, {"parallel.recompute=ful 1"}).find("did you mean 'full'") !=
          std::string::npos);
}
