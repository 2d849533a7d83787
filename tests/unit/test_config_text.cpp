// From text, files and the command line to a configuration, or to every mistake with its place.
#include <cstdlib>
#include <filesystem>

#include "tests/support/config_texts.h"

using namespace stoa;
using namespace stoa::test;

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
