#pragma once
// Wrong answers made from right ones, for the soundness tests. Each differs in value from the
// answer it was made from: texts that only look different ("x=5" for "x = 5", terms in another
// order) are left out.
#include <algorithm>
#include <cctype>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "kernels/core/philox.h"

namespace stoa::test {

/// [begin, end) of each run of digits.
inline std::vector<std::pair<std::size_t, std::size_t>> digit_runs(const std::string& text) {
    std::vector<std::pair<std::size_t, std::size_t>> runs;
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (std::isdigit(static_cast<unsigned char>(text[i])) == 0) continue;
        const std::size_t begin = i;
        while (i < text.size() && std::isdigit(static_cast<unsigned char>(text[i])) != 0)
            ++i;
        runs.emplace_back(begin, i);
    }
    return runs;
}

/// What an answer says, free of spaces, of "x =", and of the order of terms ("2x + 4", "4 + 2x").
inline std::string value_of(const std::string& answer) {
    std::string text;
    for (const char c : answer)
        if (c != ' ') text += c;
    if (text.starts_with("x=")) return text.substr(2);
    if (text.find('x') == std::string::npos) return text == "-0" ? "0" : text;
    std::vector<std::string> terms;
    std::string term;
    for (const char c : text) {
        if ((c == '+' || c == '-') && !term.empty()) {
            terms.push_back(term);
            term.clear();
        }
        if (c != '+') term += c;
    }
    terms.push_back(term);
    for (std::string& t : terms) {  // 1x is x, x^1 is x, 0x^3 is nothing
        if (t.starts_with("1x") || t.starts_with("-1x")) t.erase(t.find('1'), 1);
        if (t.ends_with("x^1")) t.resize(t.size() - 2);
        if (t.starts_with("0x") || t.starts_with("-0x")) t.clear();
    }
    std::erase(terms, std::string());
    std::sort(terms.begin(), terms.end());
    text.clear();
    for (const std::string& t : terms)
        text += t + ";";
    return text;
}

/// Sign flip, +-1, an appended digit, a changed digit, two numbers swapped, a dropped term or item,
/// a repeated one, trailing garbage, nothing, and the other truth value: those of them that apply.
inline std::vector<std::string> wrong_answers(const std::string& answer, Draws& draws) {
    std::vector<std::string> out;
    const auto pick = [&](std::size_t n) {
        return std::size_t{draws.below(static_cast<std::uint32_t>(n))};
    };
    const auto keep = [&](const std::string& text) {
        if (value_of(text) != value_of(answer)) out.push_back(text);
    };
    const auto runs = digit_runs(answer);
    if (!runs.empty()) {
        const auto [begin, end] = runs[pick(runs.size())];
        const std::string head = answer.substr(0, begin), run = answer.substr(begin, end - begin),
                          tail = answer.substr(end);
        const bool minus = head.ends_with('-');
        keep(minus ? head.substr(0, head.size() - 1) + run + tail : head + "-" + run + tail);
        for (const long step : {1L, -1L}) {
            std::string next = std::to_string(std::stol(run) + step);
            while (next.size() < run.size() && run[0] == '0')
                next.insert(0, "0");
            keep(head + next + tail);
        }
        keep(head + run + static_cast<char>('0' + pick(10)) + tail);
        std::string changed = run;
        char& digit = changed[pick(run.size())];
        digit = static_cast<char>('0' + (static_cast<std::size_t>(digit - '0') + 1 + pick(9)) % 10);
        keep(head + changed + tail);
        const auto [other_begin, other_end] = runs[pick(runs.size())];
        if (other_begin > begin)
            keep(head + answer.substr(other_begin, other_end - other_begin) +
                 answer.substr(end, other_begin - end) + run + answer.substr(other_end));
    }
    for (const char* separator : {", ", " + ", " - ", "/"}) {
        const std::size_t at = answer.find(separator);
        if (at == std::string::npos) continue;
        const std::size_t next = at + std::string(separator).size();
        keep(answer.substr(0, at));                                    // the rest is dropped
        keep(answer.substr(next));                                     // the first is dropped
        keep(answer.substr(0, at) + separator + answer);               // the first is repeated
        keep(answer.substr(next) + separator + answer.substr(0, at));  // operands swapped
    }
    if (answer == "true" || answer == "false") {
        keep(answer == "true" ? "false" : "true");
        keep(answer == "true" ? "True" : "False");
        keep("not " + answer);
        keep(answer + " " + answer);
    }
    keep("");
    keep(answer + " .");
    keep(answer + " " + answer);
    keep("(" + answer + ")");
    return out;
}

}  // namespace stoa::test
