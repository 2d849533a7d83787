// Reading and printing one value of each type of the schema.
#include <fmt/format.h>

#include <algorithm>
#include <sstream>

#include "configs/config_schema.h"
#include "configs/config_units.h"
#include "configs/load_run_config.h"
#include "configs/recipe.h"

namespace stoa {
namespace {

template <class... Fs>
struct overloaded : Fs... {
    using Fs::operator()...;
};
template <class... Fs>
overloaded(Fs...) -> overloaded<Fs...>;

// The words of each choice, in the order of its enum.
std::vector<std::string> words_of(Recompute) { return {"none", "selective", "full"}; }
std::vector<std::string> words_of(Recipe) { return {"fp32", "bf16", "r30", "r45", "r50", "fp64"}; }
std::vector<std::string> words_of(Format) {
    return {"auto", "fp32", "bf16", "fp16", "fp8", "fp24"};
}
std::vector<std::string> words_of(Moments) { return {"auto", "fp32", "bf16", "fp8-bf16", "fp8"}; }
std::vector<std::string> words_of(ScheduleKind) { return {"wsd", "cosine", "linear", "constant"}; }
std::vector<std::string> words_of(SourceKind) { return {"shards", "reasoning"}; }
std::vector<std::string> words_of(LossOn) { return {"all", "solution"}; }

template <class E>
concept Choice = std::is_enum_v<E>;

std::string joined(const std::vector<std::string>& words) {
    std::string s;
    for (const std::string& w : words)
        s += (s.empty() ? "" : " | ") + w;
    return s;
}

std::string quoted(const std::string& s) {
    // Plain where YAML cannot take it for anything else (null, ~ and comments are why this is
    // narrow).
    const bool plain = !s.empty() && s != "null" && s != "Null" && s != "NULL" &&
                       s.front() != '-' && std::all_of(s.begin(), s.end(), [](char c) {
                           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                                  (c >= '0' && c <= '9') || c == '_' || c == '-' || c == '.' ||
                                  c == '/';
                       });
    if (plain) return s;
    std::string out = "\"";
    for (const char c : s) {
        if (c == '"' || c == '\\')
            out += std::string("\\") + c;
        else if (static_cast<unsigned char>(c) < 0x20)
            out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
        else
            out += c;
    }
    return out + "\"";
}

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
        return need_scalar(node) && number(node, parse_real(node.text), out);
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
        if (node.kind != ConfigNode::Kind::list || node.items.size() != 2)
            return refuse(node, "expected a list of two numbers");
        double beta1 = 0.0, beta2 = 0.0;
        if (!read(node.items[0], &beta1) || !read(node.items[1], &beta2)) return false;
        *f.beta1 = beta1;
        *f.beta2 = beta2;
        return true;
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

std::string print_field(const KeyRow& row, ConfigTarget target) {
    return std::visit(
        overloaded{
            [](const std::string* s) { return quoted(*s); },
            [&](const std::int64_t* n) {
                return row.flag == KeyRow::automatic && *n == 0 ? "auto"
                                                                : format_count(*n, row.unit);
            },
            [](const std::uint64_t* n) { return fmt::format("{}", *n); },
            [](const double* x) { return fmt::format("{}", *x); },
            [](const bool* b) { return std::string(*b ? "true" : "false"); },
            [](FractionField f) { return fmt::format("{}", *f.value); },
            [](BetasField f) { return fmt::format("[{}, {}]", *f.beta1, *f.beta2); },
            [](WarmupField f) {
                return *f.tokens >= 0 ? format_count(*f.tokens, "tokens")
                                      : fmt::format("{}", *f.fraction);
            },
            [](RecomputeField f) {
                std::string s = words_of(*f.policy)[static_cast<std::size_t>(*f.policy)];
                for (const std::string& range : *f.layers)
                    s += " " + range;
                return s;
            },
            [](TpField f) { return fmt::format("{}{}", *f.ranks, *f.sequence ? " sequence" : ""); },
            [](ZeroField f) {
                static constexpr const char* kWords[] = {"", " beside", " blocking"};
                return fmt::format("{}{}", *f.level, kWords[static_cast<int>(*f.overlap)]);
            },
            [](DeterminismField f) -> std::string {
                if (*f.mode == Determinism::automatic) return "auto";
                if (*f.mode == Determinism::fast) return "fast";
                return *f.dp_shards == 0 ? "elastic"
                                         : fmt::format("elastic {}x{}", *f.dp_shards, *f.tp_chunks);
            },
            [](IntervalField f) {
                return (*f.seconds > 0.0 ? format_duration(*f.seconds)
                                         : format_count(*f.steps, "steps")) +
                       (*f.blocking ? " blocking" : "");
            },
            [](KeepField f) {
                return fmt::format("{}", *f.newest) +
                       (*f.every_steps > 0 ? " + every " + format_count(*f.every_steps, "steps")
                                           : "");
            },
            [&row](const std::vector<std::string>* names) -> std::string {
                if (names->empty() && row.flag == KeyRow::automatic) return "auto";
                std::string s;
                for (const std::string& n : *names)
                    s += (s.empty() ? "" : ", ") + quoted(n);
                return "[" + s + "]";
            },
            [](const std::map<std::string, double>* mix) {
                std::string s;
                for (const auto& [name, share] : *mix)
                    s += fmt::format("{}{}: {}", s.empty() ? "" : ", ", quoted(name), share);
                return "{" + s + "}";
            },
            []<Choice E>(E* value) { return words_of(E{})[static_cast<std::size_t>(*value)]; },
        },
        row.field(target));
}

std::string type_text(const KeyRow& row) {
    RunConfig run;
    StageConfig stage;
    SourceConfig source;
    const std::string unit = *row.unit ? fmt::format(" of {}", row.unit) : "";
    return std::visit(
        overloaded{
            [](std::string*) -> std::string { return "text"; },
            [&](std::int64_t*) {
                return (row.flag == KeyRow::automatic ? "auto or a whole number"
                                                      : "a whole number") +
                       unit;
            },
            [](std::uint64_t*) -> std::string { return "a whole number"; },
            [](double*) -> std::string { return "a number"; },
            [](bool*) -> std::string { return "true or false"; },
            [](FractionField) -> std::string { return "a fraction or percentage"; },
            [](BetasField) -> std::string { return "a list of two numbers"; },
            [](WarmupField) -> std::string { return "a percentage or tokens"; },
            [](RecomputeField) { return joined(words_of(Recompute{})) + ", and blocks"; },
            [](TpField) -> std::string { return "a whole number, and sequence"; },
            [](ZeroField) -> std::string { return "0, 1, 2 or 3, and beside or blocking"; },
            [](DeterminismField) -> std::string { return "auto, elastic, elastic DPxTP or fast"; },
            [](IntervalField) -> std::string { return "steps or a duration, and blocking"; },
            [](KeepField) -> std::string { return "a whole number, and every N steps"; },
            [](std::vector<std::string>*) -> std::string { return "a list of names"; },
            [](std::map<std::string, double>*) -> std::string {
                return "a map from source to share";
            },
            []<Choice E>(E*) { return joined(words_of(E{})); },
        },
        row.field({&run, &stage, &source}));
}

std::string range_text(const KeyRow& row) {
    const KeyRange& r = row.range;
    const bool low = r.low != -std::numeric_limits<double>::infinity();
    const bool high = r.high != std::numeric_limits<double>::infinity();
    const auto text = [](double x) {  // 16777216, not 1.6777216e+07
        return x == static_cast<double>(static_cast<std::int64_t>(x)) && x < 1e9
                   ? fmt::format("{}", static_cast<std::int64_t>(x))
                   : fmt::format("{}", x);
    };
    if (!low && !high) return "";
    if (!high) return fmt::format("{} {}", r.open_low ? ">" : ">=", text(r.low));
    return fmt::format("{}{}, {}{}", r.open_low ? "(" : "[", text(r.low), text(r.high),
                       r.open_high ? ")" : "]");
}

std::string default_text(const KeyRow& row) {
    if (row.flag == KeyRow::required) return "(required)";
    RunConfig run;
    StageConfig stage;
    SourceConfig source;
    const std::string text = print_field(row, {&run, &stage, &source});
    return text == "\"\"" || text == "[]" ? "(none)" : text;
}

}  // namespace stoa
