#include "configs/config_units.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>

namespace stoa {
namespace {

/// A number's text split at the end of its digits: "20M tokens" -> {"20", "M tokens"}.
struct Split {
    std::string number, rest;
};

bool is_digit(char c) { return c >= '0' && c <= '9'; }

std::string trimmed(const std::string& s) {
    const auto begin = s.find_first_not_of(" \t\n\r");
    if (begin == std::string::npos) return "";
    return s.substr(begin, s.find_last_not_of(" \t\n\r") - begin + 1);
}

Split split_number(const std::string& raw) {
    const std::string s = trimmed(raw);
    Split out;
    std::size_t i = 0;
    if (i < s.size() && (s[i] == '+' || s[i] == '-')) {
        if (s[i] == '-') out.number += '-';
        ++i;
    }
    for (; i < s.size(); ++i) {
        const bool between = i > 0 && i + 1 < s.size() && is_digit(s[i - 1]) && is_digit(s[i + 1]);
        const bool exponent = (s[i] == 'e' || s[i] == 'E') && i > 0 &&
                              (is_digit(s[i - 1]) || s[i - 1] == '.') && i + 1 < s.size() &&
                              (is_digit(s[i + 1]) || ((s[i + 1] == '-' || s[i + 1] == '+') &&
                                                      i + 2 < s.size() && is_digit(s[i + 2])));
        if (s[i] == '_' && between) continue;
        if (exponent) {
            out.number += s[i++];
            if (s[i] != '+') out.number += s[i];
            continue;
        }
        if (!is_digit(s[i]) && s[i] != '.') break;
        out.number += s[i];
    }
    out.rest = trimmed(s.substr(i));
    return out;
}

bool to_double(const std::string& s, double& value) {
    const auto [end, code] = std::from_chars(s.data(), s.data() + s.size(), value);
    return code == std::errc{} && end == s.data() + s.size() && std::isfinite(value);
}

bool matches_unit(const std::string& word, const std::string& unit) {
    // "tokens" is also understood as "token".
    return !unit.empty() && (word == unit || word + "s" == unit);
}

std::string count_rule(const std::string& unit) {
    return unit.empty() ? "expected a whole number (1, 1_000, 1k, 2M)"
                        : fmt::format("expected a whole number of {0} (500 {0}, 20M {0})", unit);
}

}  // namespace

Parsed<std::int64_t> parse_count(const std::string& text, const std::string& unit) {
    Split s = split_number(text);
    double scale = 1.0;
    if (!s.rest.empty() &&
        (s.rest.size() == 1 || !std::isalpha(static_cast<unsigned char>(s.rest[1])))) {
        switch (s.rest[0]) {
            case 'k':
            case 'K':
                scale = 1e3;
                break;
            case 'M':
                scale = 1e6;
                break;
            case 'B':
                scale = 1e9;
                break;
            case 'T':
                scale = 1e12;
                break;
            case 'm':
                return {0, "expected M for millions, not m"};
            case 'b':
                return {0, "expected B for billions, not b"};
            case 'G':
                return {0, "expected B for billions, not G"};
            default:
                return {0, count_rule(unit)};
        }
        s.rest = trimmed(s.rest.substr(1));
    }
    if (s.number.empty() || (!s.rest.empty() && !matches_unit(s.rest, unit)))
        return {0, count_rule(unit)};
    std::int64_t whole = 0;
    const char* end = s.number.data() + s.number.size();
    if (scale == 1.0 && std::from_chars(s.number.data(), end, whole).ptr == end) {
        // from_chars leaves `whole` at 0 when the digits overflow
        if (whole != 0 || s.number.find_first_not_of("-0") == std::string::npos) return {whole, ""};
        return {0, "the number is too large"};
    }
    double value = 0.0;
    if (!to_double(s.number, value)) return {0, count_rule(unit)};
    value *= scale;
    if (std::fabs(value) > 0x1p53) return {0, "the number is too large"};
    const double rounded = std::round(value);
    if (std::fabs(value - rounded) > 1e-9 * std::max(1.0, std::fabs(value)))
        return {0, count_rule(unit)};
    return {static_cast<std::int64_t>(rounded), ""};
}

Parsed<std::uint64_t> parse_seed(const std::string& text) {
    const Split s = split_number(text);
    std::uint64_t value = 0;
    const char* end = s.number.data() + s.number.size();
    const auto result = std::from_chars(s.number.data(), end, value);
    if (s.number.empty() || !s.rest.empty() || result.ptr != end || result.ec != std::errc{})
        return {0, "expected a whole number from 0 to 2^64 - 1"};
    return {value, ""};
}

Parsed<double> parse_real(const std::string& text) {
    const Split s = split_number(text);
    double value = 0.0;
    if (!s.number.empty() && s.rest.empty() && to_double(s.number, value)) return {value, ""};
    const std::string t = trimmed(text);
    if (t.size() > 6) return {0.0, "expected a number"};
    std::string lower;
    for (const char c : t)
        lower += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    const bool special =
        lower.find("nan") != std::string::npos || lower.find("inf") != std::string::npos;
    if (special || (!s.number.empty() && s.rest.empty())) return {0.0, "expected a finite number"};
    return {0.0, "expected a number"};
}

Parsed<double> parse_fraction(const std::string& text) {
    const std::string t = trimmed(text);
    if (t.empty() || t.back() != '%') {
        Parsed<double> p = parse_real(t);
        if (!p.ok() && p.error == "expected a number")
            p.error = "expected a fraction (0.1) or a percentage (10%)";
        return p;
    }
    Parsed<double> p = parse_real(t.substr(0, t.size() - 1));
    p.value /= 100.0;
    return p;
}

Parsed<double> parse_duration(const std::string& text) {
    const Split s = split_number(text);
    double value = 0.0;
    constexpr const char* kRule = "expected a duration (90s, 30min, 2h, 1d)";
    if (s.number.empty() || !to_double(s.number, value)) return {0.0, kRule};
    struct Unit {
        const char* word;
        double seconds;
    };
    constexpr Unit units[] = {{"s", 1}, {"sec", 1}, {"min", 60}, {"h", 3600}, {"d", 86400}};
    for (const Unit& u : units)
        if (s.rest == u.word) return {value * u.seconds, ""};
    if (s.rest == "m") return {0.0, "expected min for minutes, not m"};
    return {0.0, kRule};
}

std::string format_count(std::int64_t value, const std::string& unit) {
    const std::string word = unit.empty() ? "" : " " + unit;
    // Only where the unit says that the number is an amount: 1k is not how people write d_model
    // 1000.
    if (!unit.empty() && value != 0)
        for (const auto& [scale, letter] :
             {std::pair{1'000'000'000'000, 'T'}, {1'000'000'000, 'B'}, {1'000'000, 'M'}})
            if (value % scale == 0) return fmt::format("{}{}{}", value / scale, letter, word);
    return fmt::format("{}{}", value, word);
}

std::string format_duration(double seconds) {
    if (seconds > 0 && std::fmod(seconds, 3600.0) == 0.0)
        return fmt::format("{}h", seconds / 3600.0);
    if (seconds > 0 && std::fmod(seconds, 60.0) == 0.0) return fmt::format("{}min", seconds / 60.0);
    return fmt::format("{}s", seconds);
}

}  // namespace stoa
