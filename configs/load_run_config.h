#pragma once
#include <map>
#include <string>
#include <vector>

#include "configs/run_config.h"
#include "kernels/core/error.h"

namespace stoa {

/// A loaded configuration and where each value came from.
struct LoadedConfig {
    RunConfig config;
    std::string source_text;    // the file as given
    std::string resolved_yaml;  // every key with its value and, as a comment, its origin
                                // (default | FILE:LINE | command line); loads back to the same config
    std::map<std::string, std::string> origins;  // dotted key -> origin, for the keys that were given
};

/// Reads `path`, applies `overrides` ("optimizer.lr=3e-4"; lists by index: "stages.0.tokens=1M tokens"),
/// checks everything that can be checked without other files or ranks, and reports *all* problems in
/// one ConfigError: unknown keys (with a suggestion), duplicate keys, wrong types and units, values
/// out of range, impossible combinations. Each with file:line:column, the rule and a fix.
/// comm: none     errors: ConfigError
LoadedConfig load_run_config(const std::string& path, const std::vector<std::string>& overrides);
LoadedConfig load_run_config_text(const std::string& text, const std::string& path,
                                  const std::vector<std::string>& overrides);

/// Every key with its value, its origin as a comment ("default" where `origins` has none).
std::string write_config_yaml(const RunConfig& config, const std::map<std::string, std::string>& origins);

/// The checks that need the number of ranks: world = dp x tp, global_batch = micro_batch x grad_accum
/// x dp. Returns the config with dp and grad_accum filled in.
/// errors: ConfigError (all problems at once)
RunConfig resolve_for_world(RunConfig config, int world_size);

/// The checks that need the tokenizer: model.vocab_size (0 = take the tokenizer's).
RunConfig resolve_for_vocab(RunConfig config, std::int64_t tokenizer_vocab_size);

/// All keys of the schema, dotted ("stages[].tokens"), for `stoa check --schema` and the tests.
struct SchemaKey {
    std::string key, type, default_value, range, help;
};
const std::vector<SchemaKey>& config_schema();
/// The keys inside model.attention and stages[].attention.
const std::vector<SchemaKey>& attention_schema();

/// The closest candidates to `word` (edit distance with transpositions), best first; empty when none
/// is close. Used for keys, verbs and options alike.
std::vector<std::string> suggest(const std::string& word, const std::vector<std::string>& candidates);

}  // namespace stoa
