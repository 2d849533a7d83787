// What a configuration holds, how it is printed, and how it meets ranks and tokenizer.
#include <cstdlib>
#include <filesystem>

#include "configs/config_units.h"
#include "tests/support/config_texts.h"

using namespace stoa;
using namespace stoa::test;

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
