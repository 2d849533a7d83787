#pragma once
// A corpus, a tokenizer and a two-stage configuration in a temporary folder: everything `stoa
// train` needs for a run of a few seconds.
#include <string>

#include "kernels/core/philox.h"
#include "tests/support/programs.h"

namespace stoa::test {

/// English-looking text of a small grammar.
inline std::string made_up_text(std::uint64_t seed, int sentences) {
    static const char* const kWho[] = {"the old sailor", "a young engineer",  "the committee",
                                       "my neighbour",   "the quiet student", "a traveller"};
    static const char* const kDoes[] = {"repairs",  "describes", "remembers",
                                        "measures", "carries",   "questions"};
    static const char* const kWhat[] = {"the engine of the ship",   "a letter from the north",
                                        "every part of the plan",   "the bridge over the river",
                                        "an answer to the problem", "the map of the harbour"};
    static const char* const kWhen[] = {"before the winter",       "in the early morning",
                                        "when nobody is watching", "after a long discussion",
                                        "with great patience",     "for the second time"};
    Draws d(mix_key(seed, 0x7e87), 0);
    std::string text;
    for (int i = 0; i < sentences; ++i) {
        std::string s = std::string(kWho[d.below(6)]) + " " + kDoes[d.below(6)] + " " +
                        kWhat[d.below(6)] + " " + kWhen[d.below(6)] + ". ";
        s[0] = static_cast<char>(s[0] - 'a' + 'A');
        text += s;
        if (i % 6 == 5) text += "\n\n";
    }
    return text;
}

/// Writes <dir>/text-*.txt, builds <dir>/web, writes <dir>/run.yaml with `stage_tokens` per stage
/// (1024 tokens a step). Returns the outcome of `stoa data build`.
inline Outcome make_tiny_project(const std::string& dir, std::int64_t steps_per_stage,
                                 const std::string& extra = "") {
    fs::create_directories(dir);
    for (int f = 0; f < 4; ++f)
        write_text(dir + "/text-" + std::to_string(f) + ".txt",
                   made_up_text(static_cast<std::uint64_t>(f), 300));
    const std::string tokens = std::to_string(steps_per_stage * 1024);
    write_text(
        dir + "/run.yaml",
        "run: {name: tiny, dir: " + dir +
            "/runs, seed: 5}\n"
            "model: {d_model: 32, n_layers: 2, n_heads: 4, n_kv_heads: 2, head_dim: 8, d_ff: 64}\n"
            "precision: {recipe: fp32}\n"
            "optimizer: {lr: 3e-3}\n"
            "batch: {global_batch: 8, micro_batch: 2}\n"
            "stages:\n"
            "  - {name: web, tokens: " +
            tokens +
            ", seq_len: 128, mix: {web: 1}}\n"
            "  - {name: reason, tokens: " +
            tokens +
            ", seq_len: 128, mix: {web: 0.25, easy: 0.75}}\n"
            "data:\n"
            "  tokenizer: " +
            dir +
            "/web/tokenizer.json\n"
            "  sources:\n"
            "    web: {kind: shards, path: " +
            dir +
            "/web}\n"
            "    easy: {kind: reasoning, families: [chain_sum], difficulty: 1, loss_on: solution}\n"
            "checkpoint: {every: 5 steps, keep: 3}\n"
            "eval: {every: 0 steps, sequences: 2, problems: 1 of 16 tokens}\n"
            "log: {every: 1}\n" +
            extra);
    return run_shell(stoa_binary() + " data build " + dir + "/text-*.txt --out " + dir +
                     "/web --vocab-size 400 --holdout 10%");
}

inline std::string train_command(const std::string& dir, int ranks,
                                 const std::string& overrides = "") {
    return "mpirun -q -n " + std::to_string(ranks) + " " + stoa_binary() + " train " + dir +
           "/run.yaml " + overrides;
}

}  // namespace stoa::test
