#pragma once
// A small valid configuration, and what is said of one that is not.
#include <string>
#include <vector>

#include "configs/load_run_config.h"
#include "tests/support/catch.h"

namespace stoa::test {

// Line numbers matter to the tests: `lr` is on line 6, `tokens` on line 13.
inline const std::string kValid =
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

inline std::string replaced(const std::string& from, const std::string& to) {
    std::string s = kValid;
    const std::size_t at = s.find(from);
    REQUIRE(at != std::string::npos);
    return s.replace(at, from.size(), to);
}

inline RunConfig load(const std::string& text, const std::vector<std::string>& overrides = {}) {
    return load_run_config_text(text, "c.yaml", overrides).config;
}

/// The report of a configuration that must be refused.
inline std::string report(const std::string& text, const std::vector<std::string>& overrides = {}) {
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

inline void check_refusals(const std::vector<Refusal>& refusals) {
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

}  // namespace stoa::test
