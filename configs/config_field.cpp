// Reading one value of each type of the schema.
#include <fmt/format.h>

#include <algorithm>
#include <sstream>

#include "configs/config_schema.h"
#include "configs/config_units.h"
#include "configs/config_words.h"
#include "configs/load_run_config.h"
#include "configs/recipe.h"

namespace stoa {
namespace {

bool in_range(double value, const KeyRange& r) {
    return (r.open_low ? value > r.low : value >= r.low) &&
           (r.open_high ? value < r.high : value <= r.high);
}

/// One value on its way into a field; every refusal goes through refuse().
struct Reader {
    const KeyRow& row;
    const std::string& path;
    std::vector<Problem>& problems;

    bool refuse(const ConfigNode& node, const std::string& rule) {
        const std::string got =
            node.kind == ConfigNode::Kind::scalar ? "'" + node.text + "'" : node.kind_name();
        std::string fix = "default: " + default_text(row);
        if (row.flag == KeyRow::required) fix = row.help;
        problems.push_back({node.place, fmt::format("{}: {}, got {}", path, rule, got), fix});
        return false;
    }
    bool refuse_range(const ConfigNode& node) {
        return refuse(node, "expected " + range_text(row));
    }

    template <class Value>
    bool number(const ConfigNode& node, const Parsed<Value>& parsed, Value* out) {
        if (!parsed.ok()) return refuse(node, parsed.error);
        if (!in_range(static_cast<double>(parsed.value), row.range)) return refuse_range(node);
        *out = parsed.value;
        return true;
    }
    bool need_scalar(const ConfigNode& node) {
        return node.kind == ConfigNode::Kind::scalar || refuse(node, "expected " + type_text(row));
    }

    bool read(const ConfigNode& node, std::string* out) {
        if (!need_scalar(node)) return false;
        if (node.text.empty()) return refuse(node, "expected a text that is not empty");
        const bool control = std::any_of(node.text.begin(), node.text.end(), [](char c) {
            return static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
        });
        if (control)
            return refuse({ConfigNode::Kind::scalar, node.place, "...", {}, {}},
                          "expected text on one line without control characters");
        *out = node.text;
        return true;
    }
    bool read(const ConfigNode& node, std::int64_t* out) {
        if (!need_scalar(node)) return false;
        if (row.flag == KeyRow::automatic && node.text == "auto") {
            *out = 0;
            return true;
        }
        return number(node, parse_count(node.text, row.unit), out);
    }
    bool read(const ConfigNode& node, std::uint64_t* out) {
        return need_scalar(node) && number(node, parse_seed(node.text), out);
    }
    bool read(const ConfigNode& node, double* out) {
        if (!need_scalar(node)) return false;
        if (row.flag == KeyRow::automatic && node.text == "auto") {
            *out = 0.0;
            return true;
        }
        return number(node, parse_real(node.text), out);
    }
    bool read(const ConfigNode& node, FractionField f) {
        return need_scalar(node) && number(node, parse_fraction(node.text), f.value);
    }
    bool read(const ConfigNode& node, bool* out) {
        if (!need_scalar(node)) return false;
        if (node.text != "true" && node.text != "false")
            return refuse(node, "expected true or false");
        *out = node.text == "true";
        return true;
    }
    bool read(const ConfigNode& node, BetasField f) {
        if (node.kind != ConfigNode::Kind::list || node.items.size() < 2 || node.items.size() > 3)
            return refuse(node, "expected a list of two numbers, or three with epsilon");
        double beta1 = 0.0, beta2 = 0.0, eps = OptimizerConfig{}.eps;
        if (!read(node.items[0], &beta1) || !read(node.items[1], &beta2)) return false;
        if (node.items.size() == 3 && (!read(node.items[2], &eps) || eps <= 0.0))
            return refuse(node.items[2], "expected an epsilon above 0");
        *f.beta1 = beta1;
        *f.beta2 = beta2;
        *f.eps = eps;
        return true;
    }
    // 100, or 100 of 96 tokens
    bool read(const ConfigNode& node, ProblemsField f) {
        if (!need_scalar(node)) return false;
        const std::string between = " of ";
        const std::size_t at = node.text.find(between);
        if (!read({node.kind, node.place, node.text.substr(0, at), {}, {}}, f.problems))
            return false;
        if (at == std::string::npos) return true;
        const auto tokens = parse_count(node.text.substr(at + between.size()), "tokens");
        if (!tokens.ok() || tokens.value < 1 || tokens.value > (1 << 20))
            return refuse(node, "expected a number of tokens behind of (100 of 96 tokens)");
        *f.tokens = tokens.value;
        return true;
    }
    // A kind, or keys of attention_rows().
    bool read(const ConfigNode& node, AttentionField f) {
        AttentionConfig read_here = *f.model;
        const auto key = [&](const std::string& name, const ConfigNode& value) {
            const auto at = std::ranges::find_if(attention_rows(),
                                                 [&](const KeyRow& r) { return name == r.key; });
            if (at != attention_rows().end())
                return read_field(*at, path + "." + name, value, {.attention = &read_here},
                                  problems);
            std::vector<std::string> names;
            for (const KeyRow& r : attention_rows())
                names.emplace_back(r.key);
            const auto close = suggest(name, names);
            problems.push_back({value.place, fmt::format("unknown key '{}.{}'", path, name),
                                close.empty()
                                    ? fmt::format("keys here: {}", fmt::join(names, ", "))
                                    : fmt::format("did you mean '{}.{}'?", path, close.front())});
            return false;
        };
        bool good = true;
        if (node.kind == ConfigNode::Kind::scalar) good = key("kind", node);
        if (node.kind == ConfigNode::Kind::list) return refuse(node, "expected " + type_text(row));
        for (const auto& entry : node.entries) {
            ConfigNode value = entry.value;
            if (value.place.kind == Place::Kind::none) value.place = entry.place;
            good = key(entry.key, value) && good;
        }
        if (good && f.stage == nullptr) *f.model = read_here;
        if (good && f.stage != nullptr) *f.stage = read_here;
        return good;
    }
    bool read(const ConfigNode& node, WarmupField f) {
        if (!need_scalar(node)) return false;
        const Parsed<double> fraction = parse_fraction(node.text);
        if (fraction.ok()) {
            if (fraction.value < 0.0 || fraction.value > 1.0)
                return refuse(node, "expected at most 100%, or tokens (2M tokens)");
            *f.fraction = fraction.value;
            *f.tokens = -1;
            return true;
        }
        const Parsed<std::int64_t> tokens = parse_count(node.text, "tokens");
        if (!tokens.ok() || tokens.value < 0)
            return refuse(node, "expected a part (1%, 0.01) or tokens (2M tokens)");
        *f.tokens = tokens.value;
        return true;
    }
    bool read(const ConfigNode& node, RecomputeField f) {
        if (!need_scalar(node)) return false;
        std::istringstream in(node.text);
        std::string word;
        in >> word;
        if (!read({node.kind, node.place, word, {}, {}}, f.policy)) return false;
        f.layers->clear();
        for (std::string range; in >> range;) {
            std::int64_t first = 0, last = 0;
            if (*f.policy == Recompute::none || !parse_layer_range(range, first, last))
                return refuse(node,
                              "expected ranges of blocks behind selective or full (full 0-3 7)");
            f.layers->push_back(range);
        }
        return true;
    }
    // A number, and perhaps one of the words behind it.
    bool read_with_word(const ConfigNode& node, std::int64_t* number,
                        const std::vector<std::string>& words, std::string& word) {
        if (!need_scalar(node)) return false;
        const std::string first = node.text.substr(0, node.text.find(' '));
        word = node.text.size() > first.size() ? node.text.substr(first.size() + 1) : "";
        if (node.text.size() > first.size() && std::ranges::find(words, word) == words.end())
            return refuse(
                node, fmt::format("expected {} (2 {})", type_text(row), fmt::join(words, ", 2 ")));
        return read({node.kind, node.place, first, {}, {}}, number);
    }
    bool read(const ConfigNode& node, TpField f) {
        std::string word;
        const bool good = read_with_word(node, f.ranks, {"sequence"}, word);
        *f.sequence = !word.empty();
        return good;
    }
    bool read(const ConfigNode& node, ZeroField f) {
        std::string word;
        const bool good = read_with_word(node, f.level, {"beside", "blocking"}, word);
        *f.overlap = word.empty()       ? Overlap::automatic
                     : word == "beside" ? Overlap::on
                                        : Overlap::off;
        return good;
    }
    bool read(const ConfigNode& node, DeviceField f) {
        if (!need_scalar(node)) return false;
        const std::vector<std::string> words = words_of(DeviceChoice{});
        const std::string first = node.text.substr(0, node.text.find(' '));
        const bool sized = node.text.size() > first.size() && (first == "cpu" || first == "auto");
        const auto found = std::ranges::find(words, sized ? first : node.text);
        if (found == words.end())
            return refuse(node, fmt::format("expected {} (cpu 4, {})", type_text(row),
                                            fmt::join(words, ", ")));
        *f.device = static_cast<DeviceChoice>(found - words.begin());
        *f.threads = 0;
        return !sized ||
               read({node.kind, node.place, node.text.substr(first.size() + 1), {}, {}}, f.threads);
    }
    bool read(const ConfigNode& node, DeterminismField f) {
        if (!need_scalar(node)) return false;
        const std::string& text = node.text;
        const std::string word = text.substr(0, text.find(' '));
        static const std::vector<std::string> words = {"auto", "elastic", "fast"};
        const auto found = std::find(words.begin(), words.end(), word);
        const bool sized = text.size() > word.size();
        if (found == words.end() || (sized && word != "elastic")) {
            const auto close = suggest(word, words);
            return refuse(node, "expected " + type_text(row) +
                                    (close.empty() || found != words.end()
                                         ? ""
                                         : fmt::format(" (did you mean '{}'?)", close.front())));
        }
        if (sized) {
            const std::size_t cross = text.find('x', word.size());
            if (cross == std::string::npos) return refuse(node, "expected DPxTP behind elastic");
            const auto dp = parse_count(text.substr(word.size() + 1, cross - word.size() - 1), "");
            const auto tp = parse_count(text.substr(cross + 1), "");
            if (!dp.ok() || !tp.ok() || !in_range(static_cast<double>(dp.value), row.range) ||
                !in_range(static_cast<double>(tp.value), row.range))
                return refuse(node,
                              "expected two whole numbers DPxTP behind elastic (elastic 4x2)");
            *f.dp_shards = dp.value;
            *f.tp_chunks = tp.value;
        }
        *f.mode = static_cast<Determinism>(found - words.begin());
        return true;
    }
    bool read(const ConfigNode& whole, IntervalField f) {
        if (!need_scalar(whole)) return false;
        static const std::string word = " blocking";
        ConfigNode node = whole;
        *f.blocking = node.text.ends_with(word);
        if (*f.blocking) node.text.resize(node.text.size() - word.size());
        const Parsed<std::int64_t> steps = parse_count(node.text, "steps");
        if (steps.ok()) {
            if (!number(node, steps, f.steps)) return false;
            *f.seconds = 0.0;
            return true;
        }
        const Parsed<double> seconds = parse_duration(node.text);
        if (!seconds.ok())
            return refuse(node, "expected steps (200 steps) or a duration (90s, 30min, 2h, 1d)");
        if (seconds.value <= 0.0 || seconds.value > row.range.high)
            return refuse(node, "expected a duration above 0");
        *f.seconds = seconds.value;
        *f.steps = 0;
        return true;
    }
    // 3, or 3 + every 5000 steps
    bool read(const ConfigNode& node, KeepField f) {
        if (!need_scalar(node)) return false;
        const std::string between = " + every ";
        const std::size_t at = node.text.find(between);
        if (!read({node.kind, node.place, node.text.substr(0, at), {}, {}}, f.newest)) return false;
        *f.every_steps = 0;
        if (at == std::string::npos) return true;
        const auto every = parse_count(node.text.substr(at + between.size()), "steps");
        if (!every.ok() || every.value < 1)
            return refuse(node, "expected a number of steps behind every (3 + every 5000 steps)");
        *f.every_steps = every.value;
        return true;
    }
    bool read(const ConfigNode& node, std::vector<std::string>* out) {
        if (row.flag == KeyRow::automatic && node.kind == ConfigNode::Kind::scalar &&
            node.text == "auto") {
            out->clear();
            return true;
        }
        // One entry may stand without brackets.
        if (node.kind != ConfigNode::Kind::list && node.kind != ConfigNode::Kind::scalar)
            return refuse(node, "expected a list of names ([a, b])");
        std::vector<ConfigNode> items = node.items;
        if (node.kind == ConfigNode::Kind::scalar) items = {node};
        if (items.empty()) return refuse(node, "expected at least one name");
        std::vector<std::string> names;
        for (const ConfigNode& item : items) {
            std::string name;
            if (!read(item, &name)) return false;
            if (std::find(names.begin(), names.end(), name) != names.end())
                return refuse(item, "expected each name once");
            names.push_back(name);
        }
        *out = names;
        return true;
    }
    bool read(const ConfigNode& node, std::map<std::string, double>* out) {
        if (node.kind != ConfigNode::Kind::map || node.entries.empty())
            return refuse(node, "expected the share of each source ({web: 0.9, code: 0.1})");
        bool good = true;
        std::map<std::string, double> mix;
        for (const auto& entry : node.entries) {
            const std::string entry_path = path + "." + entry.key;
            Reader share{row, entry_path, problems};
            good = share.read(entry.value, FractionField{&mix[entry.key]}) && good;
        }
        if (good) *out = mix;
        return good;
    }
    template <Choice E>
    bool read(const ConfigNode& node, E* out) {
        if (!need_scalar(node)) return false;
        const auto words = words_of(E{});
        const auto found = std::find(words.begin(), words.end(), node.text);
        if (found != words.end()) {
            *out = static_cast<E>(found - words.begin());
            return true;
        }
        const auto close = suggest(node.text, words);
        problems.push_back(
            {node.place, fmt::format("{}: expected {}, got '{}'", path, joined(words), node.text),
             close.empty() ? "default: " + default_text(row)
                           : fmt::format("did you mean '{}'?", close.front())});
        return false;
    }
};

}  // namespace

bool read_field(const KeyRow& row, const std::string& path, const ConfigNode& node,
                ConfigTarget target, std::vector<Problem>& problems) {
    Reader reader{row, path, problems};
    if (node.kind == ConfigNode::Kind::null) {
        problems.push_back(
            {node.place, fmt::format("{} has no value", path),
             row.flag == KeyRow::required
                 ? fmt::format("expected {}", type_text(row))
                 : fmt::format("remove the key to get the default ({})", default_text(row))});
        return false;
    }
    return std::visit([&](auto field) { return reader.read(node, field); }, row.field(target));
}

}  // namespace stoa
