// Random misspellings of configuration keys: every one must be refused, and at least 95 of 100 with
// the right key as the first suggestion. Prints one JSON object last.
//   config_typos [--quick] [--seed N]
#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "configs/load_run_config.h"

namespace {

using stoa::ConfigError;

/// A configuration in which every key of the schema stands, and is valid.
const char* const kFull[] = {"run:",
                             "  name: full",
                             "  dir: runs",
                             "  seed: 1",
                             "model:",
                             "  vocab_size: 1024",
                             "  d_model: 128",
                             "  n_layers: 2",
                             "  n_heads: 8",
                             "  n_kv_heads: 8",
                             "  head_dim: 16",
                             "  d_ff: 128",
                             "  tie_embeddings: true",
                             "  rope_theta: 10000",
                             "  norm_eps: 1e-6",
                             "  init_std: 0.02",
                             "parallel:",
                             "  dp: 1",
                             "  tp: 1",
                             "  recompute: none",
                             "  determinism: elastic",
                             "  zero: 1",
                             "  device: cpu 1",
                             "precision:",
                             "  recipe: r30",
                             "  ffn: fp8",
                             "  attention: fp16",
                             "  grads: fp32",
                             "  master: fp32",
                             "  moments: fp8-bf16",
                             "  edge_blocks: 1",
                             "  adaptive: true",
                             "optimizer:",
                             "  lr: 1e-3",
                             "  betas: [0.9, 0.95]",
                             "  weight_decay: 0.1",
                             "  max_norm: 1.0",
                             "  max_skips: 20",
                             "  spike_z: 6",
                             "schedule:",
                             "  kind: wsd",
                             "  warmup: 1%",
                             "  decay: 10%",
                             "  final_lr: 10%",
                             "batch:",
                             "  global_batch: 8",
                             "  micro_batch: 2",
                             "stages:",
                             "  - name: web",
                             "    tokens: 1M tokens",
                             "    seq_len: 64",
                             "    mix: {web: 0.5, sums: 0.5}",
                             "    lr_scale: 1.0",
                             "    lr_warmup: 1k tokens",
                             "data:",
                             "  tokenizer: tokenizer.json",
                             "  sources:",
                             "    web:",
                             "      kind: shards",
                             "      path: web",
                             "    sums:",
                             "      kind: reasoning",
                             "      families: [chain_sum]",
                             "      difficulty: 1",
                             "      loss_on: all",
                             "checkpoint:",
                             "  every: 10 steps",
                             "  keep: 2",
                             "eval:",
                             "  every: 10",
                             "  sequences: 4",
                             "  problems: 4 of 16 tokens",
                             "log:",
                             "  every: 1"};

struct Key {
    std::size_t line, begin;  // where the key stands in kFull
    std::string word, path;   // "lr", "optimizer.lr"
};

std::vector<Key> all_keys() {
    std::vector<Key> keys;
    std::vector<std::pair<std::size_t, std::string>>
        open;  // indentation and path of the maps around
    for (std::size_t i = 0; i < std::size(kFull); ++i) {
        const std::string line = kFull[i];
        const std::size_t begin = line.find_first_not_of(" -"), end = line.find(':');
        while (!open.empty() && open.back().first >= begin)
            open.pop_back();
        const std::string word = line.substr(begin, end - begin);
        // "  - name" opens an entry of the list two columns left of its keys.
        std::string path = open.empty() ? "" : open.back().second + ".";
        if (path == "stages.") path = "stages.0.";
        path += word;
        open.emplace_back(begin, path);
        if (path != "data.sources.web" && path != "data.sources.sums")
            keys.push_back({i, begin, word, path});
    }
    return keys;
}

using Random = std::mt19937_64;
std::size_t below(Random& random, std::size_t n) { return static_cast<std::size_t>(random() % n); }

/// One mistake of the six kinds; may return the word itself, which the caller draws again.
std::string misspell(std::string w, Random& random) {
    const std::size_t at = below(random, w.size());
    const char letter = static_cast<char>('a' + below(random, 26));
    switch (below(random, 6)) {
        case 0:
            return w.erase(at, 1);
        case 1:
            return w.insert(at, 1, letter);
        case 2:
            w[at] = letter;
            return w;
        case 3:
            if (at + 1 < w.size()) std::swap(w[at], w[at + 1]);
            return w;
        case 4:
            w[at] = static_cast<char>(std::toupper(static_cast<unsigned char>(w[at])));
            return w;
        default:
            if (const std::size_t i = w.find('_'); i != std::string::npos) {
                if (below(random, 2) == 0)
                    w[i] = '-';
                else
                    w.erase(i, 1);
            } else if (w.size() > 3) {
                w.insert(1 + below(random, w.size() - 1), 1, '_');
            }
            return w;
    }
}

bool is_a_key(const std::string& word) {
    for (const stoa::SchemaKey& k : stoa::config_schema())
        if (("." + k.key + ".").find("." + word + ".") != std::string::npos ||
            ("." + k.key).find("." + word + "[") != std::string::npos)
            return true;
    return false;
}

std::string text_with(const Key& key, const std::string& typo) {
    std::string text;
    for (std::size_t i = 0; i < std::size(kFull); ++i) {
        std::string line = kFull[i];
        if (i == key.line) line.replace(key.begin, key.word.size(), typo);
        text += line + "\n";
    }
    return text;
}

}  // namespace

int main(int argc, char** argv) {
    int count = 200;
    std::uint64_t seed = 1;
    for (int i = 1; i < argc; ++i) {
        const std::string a = argv[i];
        if (a == "--quick") {
            count = 60;
        } else if (a == "--seed" && i + 1 < argc) {
            seed = std::strtoull(argv[++i], nullptr, 10);
        } else {
            std::fprintf(stderr, "usage: config_typos [--quick] [--seed N]\n");
            return 2;
        }
    }
    const std::vector<Key> keys = all_keys();
    try {  // without a typo it is good; and no key of the schema is left out
        (void)stoa::load_run_config_text(text_with(keys[0], keys[0].word), "full.yaml", {});
    } catch (const ConfigError& e) {
        std::fprintf(stderr, "the configuration without a typo is refused:\n%s\n", e.what());
        return 1;
    }
    Random random(seed);
    int refused = 0, right = 0;
    for (int n = 0; n < count; ++n) {
        Key key;
        std::string typo;
        do {
            key = keys[below(random, keys.size())];
            typo = misspell(key.word, random);
        } while (typo.empty() || typo == key.word || is_a_key(typo));
        try {
            (void)stoa::load_run_config_text(text_with(key, typo), "full.yaml", {});
            std::fprintf(stderr, "accepted: %s instead of %s\n", typo.c_str(), key.path.c_str());
        } catch (const ConfigError& e) {
            ++refused;
            const std::string text = e.what();
            if (text.find("did you mean '" + key.path + "'") != std::string::npos)
                ++right;
            else
                std::fprintf(stderr, "no right suggestion: %s instead of %s\n%s\n", typo.c_str(),
                             key.path.c_str(), e.what());
        }
    }
    std::printf(
        "%s\n",
        nlohmann::json{
            {"typos", count}, {"refused", refused}, {"suggested_right", right}, {"seed", seed}}
            .dump()
            .c_str());
    return refused == count && right * 100 >= count * 95 ? 0 : 1;
}
