// Printing one value, type, range and default of the schema.
#include <fmt/format.h>

#include <algorithm>

#include "configs/attention_config.h"
#include "configs/config_schema.h"
#include "configs/config_units.h"
#include "configs/config_words.h"

namespace stoa {
namespace {

template <class... Fs>
struct overloaded : Fs... {
    using Fs::operator()...;
};
template <class... Fs>
overloaded(Fs...) -> overloaded<Fs...>;

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

}  // namespace

std::string print_field(const KeyRow& row, ConfigTarget target) {
    return std::visit(
        overloaded{
            [](const std::string* s) { return quoted(*s); },
            [&](const std::int64_t* n) {
                return row.flag == KeyRow::automatic && *n == 0 ? "auto"
                                                                : format_count(*n, row.unit);
            },
            [](const std::uint64_t* n) { return fmt::format("{}", *n); },
            [&](const double* x) {
                return row.flag == KeyRow::automatic && *x == 0.0 ? "auto" : fmt::format("{}", *x);
            },
            [](const bool* b) { return std::string(*b ? "true" : "false"); },
            [](FractionField f) { return fmt::format("{}", *f.value); },
            [](BetasField f) {
                return *f.eps == OptimizerConfig{}.eps
                           ? fmt::format("[{}, {}]", *f.beta1, *f.beta2)
                           : fmt::format("[{}, {}, {}]", *f.beta1, *f.beta2, *f.eps);
            },
            [](ProblemsField f) { return fmt::format("{} of {} tokens", *f.problems, *f.tokens); },
            [](AttentionField f) -> std::string {
                if (f.stage != nullptr && !f.stage->has_value()) return "[]";  // the model's
                return print_attention(f.stage != nullptr ? **f.stage : *f.model);
            },
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
            [&row](DeviceField f) {
                const std::string word = words_of(*f.device)[static_cast<std::size_t>(*f.device)];
                return *f.threads == 0 ? word : word + " " + format_count(*f.threads, row.unit);
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
    AttentionConfig attention;
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
            [](BetasField) -> std::string { return "a list of two or three numbers"; },
            [](ProblemsField) -> std::string { return "a whole number, and tokens"; },
            [](AttentionField) { return joined(words_of(AttentionKind{})) + ", or keys"; },
            [](WarmupField) -> std::string { return "a percentage or tokens"; },
            [](RecomputeField) { return joined(words_of(Recompute{})) + ", and blocks"; },
            [](TpField) -> std::string { return "a whole number, and sequence"; },
            [](ZeroField) -> std::string { return "0, 1, 2 or 3, and beside or blocking"; },
            [](DeviceField) -> std::string {
                return "auto or cpu, and a number of threads; cuda or cuda shared";
            },
            [](DeterminismField) -> std::string { return "auto, elastic, elastic DPxTP or fast"; },
            [](IntervalField) -> std::string { return "steps or a duration, and blocking"; },
            [](KeepField) -> std::string { return "a whole number, and every N steps"; },
            [](std::vector<std::string>*) -> std::string { return "a list of names"; },
            [](std::map<std::string, double>*) -> std::string {
                return "a map from source to share";
            },
            []<Choice E>(E*) { return joined(words_of(E{})); },
        },
        row.field({&run, &stage, &source, &attention}));
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
    AttentionConfig attention;
    const std::string text = print_field(row, {&run, &stage, &source, &attention});
    return text == "\"\"" || text == "[]" ? "(none)" : text;
}

std::string print_attention(const AttentionConfig& a) {
    AttentionConfig set = a, usual;
    std::string s;
    for (const KeyRow& r : attention_rows()) {
        const std::string value = print_field(r, {.attention = &set});
        if (s.empty() || value != print_field(r, {.attention = &usual}))
            s += fmt::format("{}{}: {}", s.empty() ? "" : ", ", r.key, value);
    }
    return "{" + s + "}";
}

}  // namespace stoa
