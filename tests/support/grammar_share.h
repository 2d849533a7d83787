#pragma once
// What a selector attends to in code: how many of the bytes that it selects are grammar, against
// how many of those that it could have selected.
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "configs/attention_config.h"
#include "kernels/tree_attention.h"

namespace stoa::test {

/// For each byte of C++ text whether it is grammar: brackets, separators, operators, directives,
/// line ends with the indentation behind them, and the letters of keywords.
inline std::vector<bool> grammar_bytes(std::string_view text) {
    static constexpr std::array kKeywords = {
        "alignas",  "auto",     "bool",     "break",     "case",     "catch",     "char",
        "class",    "concept",  "const",    "constexpr", "continue", "decltype",  "default",
        "delete",   "do",       "double",   "else",      "enum",     "explicit",  "extern",
        "false",    "final",    "float",    "for",       "friend",   "goto",      "if",
        "include",  "inline",   "int",      "long",      "mutable",  "namespace", "new",
        "noexcept", "nullptr",  "operator", "override",  "private",  "protected", "public",
        "requires", "return",   "short",    "signed",    "sizeof",   "static",    "static_assert",
        "struct",   "switch",   "template", "this",      "throw",    "true",      "try",
        "typedef",  "typename", "union",    "unsigned",  "using",    "virtual",   "void",
        "volatile", "while",    "define",   "ifdef",     "ifndef",   "endif",     "undef"};
    static constexpr std::string_view kSigns = "{}()[]<>;:,=#&*+-/|!?.~^%\n";
    std::vector<bool> grammar(text.size());
    const auto is_word = [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
               c == '_';
    };
    bool indentation = true;
    for (std::size_t i = 0; i < text.size();) {
        if (!is_word(text[i])) {
            const bool blank = text[i] == ' ' || text[i] == '\t';
            grammar[i] = blank ? indentation : kSigns.find(text[i]) != std::string_view::npos;
            indentation = blank ? indentation : text[i] == '\n';
            ++i;
            continue;
        }
        std::size_t end = i;
        while (end < text.size() && is_word(text[end]))
            ++end;
        const std::string_view word = text.substr(i, end - i);
        bool keyword = false;
        for (const std::string_view k : kKeywords)
            keyword = keyword || word == k;
        for (; i < end; ++i)
            grammar[i] = keyword;
        indentation = false;
    }
    return grammar;
}

struct GrammarShare {
    std::int64_t selected = 0, selected_grammar = 0;     // bytes that queries selected
    std::int64_t candidates = 0, candidate_grammar = 0;  // bytes that they could have
    double share() const { return ratio(selected_grammar, selected); }
    double base_rate() const { return ratio(candidate_grammar, candidates); }
    static double ratio(std::int64_t a, std::int64_t b) {
        return b == 0 ? 0.0 : static_cast<double>(a) / static_cast<double>(b);
    }
};

/// Adds the queries of one row: `selection` (n_kv_heads, len, levels, slots) of tree_attention.
inline void add_tree_queries(GrammarShare& sum, std::span<const std::int32_t> selection,
                             const TreeRule& rule, const std::vector<bool>& grammar) {
    const auto len = static_cast<std::int64_t>(grammar.size());
    const std::int64_t slots = tree_slots(rule), per_query = tree_levels(rule, len) * slots;
    std::vector<std::int64_t> before(grammar.size() + 1);  // grammar bytes before each
    for (std::size_t i = 0; i < grammar.size(); ++i)
        before[i + 1] = before[i] + (grammar[i] ? 1 : 0);
    for (std::int64_t q = 0; q < std::ssize(selection) / per_query; ++q) {
        const std::int64_t t = q % len;
        const std::int64_t far = t / rule.leaf - rule.window / rule.leaf;  // leaves
        if (far <= slots) continue;  // all are read: nothing was chosen
        sum.candidates += far * rule.leaf;
        sum.candidate_grammar += before[static_cast<std::size_t>(far * rule.leaf)];
        for (std::int64_t i = 0; i < slots; ++i) {
            const std::int64_t leaf = selection[static_cast<std::size_t>(q * per_query + i)];
            if (leaf < 0) break;
            const auto begin = static_cast<std::size_t>(leaf * rule.leaf);
            sum.selected += rule.leaf;
            sum.selected_grammar +=
                before[begin + static_cast<std::size_t>(rule.leaf)] - before[begin];
        }
    }
}

/// The same of `expiry` (n_kv_heads, len): what is kept behind the window, query by query.
inline void add_kept_queries(GrammarShare& sum, std::span<const std::int32_t> expiry,
                             std::int64_t window, std::int64_t sinks, std::int64_t keep,
                             const std::vector<bool>& grammar) {
    const auto len = static_cast<std::int64_t>(grammar.size());
    for (std::int64_t i = 0; i < std::ssize(expiry); ++i) {
        const std::int64_t s = i % len;
        if (s < sinks) continue;
        const std::int64_t leaves = s + window, from = std::max(leaves, sinks + keep + window);
        const std::int64_t kept = std::max<std::int64_t>(
            0, std::min<std::int64_t>(len, expiry[static_cast<std::size_t>(i)]) - from);
        const std::int64_t could = std::max<std::int64_t>(0, len - from);
        sum.selected += kept;
        sum.candidates += could;
        if (!grammar[static_cast<std::size_t>(s)]) continue;
        sum.selected_grammar += kept;
        sum.candidate_grammar += could;
    }
}

}  // namespace stoa::test
