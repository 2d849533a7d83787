#pragma once
// Exact arithmetic for the rule engine: integers and rationals that refuse to wrap, and an
// evaluator for arithmetic text. Bounds are far above what any family draws; reaching one is a bug
// when generating and a refusal when verifying.
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace stoa {

inline constexpr std::int64_t kExactLimit = std::int64_t{1} << 62;  // |value| stays below it

/// errors: Error(internal) when the result would reach kExactLimit
std::int64_t checked_add(std::int64_t a, std::int64_t b);
std::int64_t checked_sub(std::int64_t a, std::int64_t b);
std::int64_t checked_mul(std::int64_t a, std::int64_t b);
std::int64_t checked_pow(std::int64_t base, std::int64_t exponent);  // exponent >= 0
/// Quotient and remainder with 0 <= remainder < |b|, whatever the signs. b != 0.
std::int64_t floor_mod(std::int64_t a, std::int64_t b);
std::int64_t gcd_of(std::int64_t a, std::int64_t b);  // >= 0; gcd_of(0, 0) = 0
/// gcd(a, b) = 1 for a, b > 0, found without a division by either: the verifiers' way.
bool coprime(std::int64_t a, std::int64_t b);

/// In lowest terms with den > 0.
struct Rational {
    std::int64_t num = 0;
    std::int64_t den = 1;
    bool operator==(const Rational&) const = default;
};
/// errors: Error(internal) on overflow or a zero denominator
Rational make_rational(std::int64_t num, std::int64_t den);
Rational operator+(Rational a, Rational b);
Rational operator-(Rational a, Rational b);
Rational operator*(Rational a, Rational b);
Rational operator/(Rational a, Rational b);

/// What letters stand for: `x`, and the polynomial `f` (coefficient of x^i at [i]) in "f(...)".
struct Letters {
    std::optional<std::int64_t> x;
    const std::vector<std::int64_t>* f = nullptr;
};
/// The value of an expression of integers, + - * / ^ mod, parentheses, and the given letters; a
/// factor may be written without its * before a letter or a parenthesis ("3x", "2(x+1)"). Nothing
/// when the text is no such expression, divides by zero, or leaves the exact range. Any bytes;
/// never throws.
std::optional<Rational> evaluate(std::string_view text, const Letters& letters = {});

/// The value of polynomial f (coefficient of x^i at [i]) at x. errors: Error(internal) on overflow
std::int64_t polynomial_at(const std::vector<std::int64_t>& f, std::int64_t x);

}  // namespace stoa
