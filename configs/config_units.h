#pragma once
// Numbers as people write them: 20M tokens, 1_000, 1%, 30min, 200 steps; and back.
#include <cstdint>
#include <string>

namespace stoa {

/// A parsed number, or the rule that its text breaks.
template <class T>
struct Parsed {
    T value{};
    std::string error;  // "expected ..."; empty when the value is good
    bool ok() const { return error.empty(); }
};

/// A whole number: digits with optional underscores, point, exponent, one of k M B T (powers of
/// 1000) and the unit's word ("20M tokens", "1.5k", "2e6"). Values that are not whole are refused.
Parsed<std::int64_t> parse_count(const std::string& text, const std::string& unit);
Parsed<std::uint64_t> parse_seed(const std::string& text);
/// A finite number.
Parsed<double> parse_real(const std::string& text);
/// "10%" or "0.1".
Parsed<double> parse_fraction(const std::string& text);
/// "90s", "30min", "2h", "1d" in seconds.
Parsed<double> parse_duration(const std::string& text);

/// 20000000 -> "20M tokens"; loads back to the same number.
std::string format_count(std::int64_t value, const std::string& unit);
std::string format_duration(double seconds);

}  // namespace stoa
