#pragma once
// ASCII only, whatever the locale: header names, tags and labels are compared byte by byte.
#include <algorithm>
#include <string>
#include <string_view>

namespace stoa {

inline bool is_digit(char c) { return c >= '0' && c <= '9'; }
inline bool is_alpha(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
inline bool is_alnum(char c) { return is_digit(c) || is_alpha(c); }
inline bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
inline char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

inline std::string to_lower(std::string_view s) {
    std::string out(s);
    std::transform(out.begin(), out.end(), out.begin(), lower);
    return out;
}
inline bool iequals(std::string_view a, std::string_view b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                      [](char x, char y) { return lower(x) == lower(y); });
}
/// Position of `word` (lower case) in `s` at or behind `from`, ignoring case.
inline std::size_t ifind(std::string_view s, std::string_view word, std::size_t from = 0) {
    if (from > s.size()) return s.npos;
    const auto at = std::search(s.begin() + std::ptrdiff_t(from), s.end(), word.begin(), word.end(),
                                [](char x, char y) { return lower(x) == y; });
    return at == s.end() ? s.npos : std::size_t(at - s.begin());
}
inline std::string_view trim(std::string_view s) {
    while (!s.empty() && is_space(s.front()))
        s.remove_prefix(1);
    while (!s.empty() && is_space(s.back()))
        s.remove_suffix(1);
    return s;
}
/// Cuts the first line off `rest`; without its LF or CRLF.
inline std::string_view next_line(std::string_view& rest) {
    const std::size_t end = rest.find('\n');
    std::string_view line = rest.substr(0, end);
    rest.remove_prefix(end == rest.npos ? rest.size() : end + 1);
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    return line;
}

}  // namespace stoa
