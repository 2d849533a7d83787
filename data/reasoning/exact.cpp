#include "data/reasoning/exact.h"

#include <utility>

#include "data/reasoning/scan.h"
#include "kernels/core/error.h"

namespace stoa {
namespace {

__extension__ using Wide128 = __int128;

[[noreturn]] void out_of_range(const char* op) {
    throw Error(ExitCode::internal, {.what = "exact arithmetic left its range",
                                     .where = op,
                                     .expected = "|value| < 2^62 and no division by zero"});
}

std::int64_t narrow(Wide128 v, const char* op) {
    if (v >= kExactLimit || v <= -kExactLimit) out_of_range(op);
    return static_cast<std::int64_t>(v);
}

Rational reduce(Wide128 num, Wide128 den, const char* op) {
    if (den == 0) out_of_range(op);
    Wide128 a = num < 0 ? -num : num, b = den < 0 ? -den : den;
    while (b != 0) {
        const Wide128 r = a % b;
        a = b;
        b = r;
    }
    if (den < 0) a = -a;
    return {narrow(num / a, op), narrow(den / a, op)};
}

/// Recursive descent; every failure is an empty optional that runs up to the top.
class Evaluator {
public:
    Evaluator(std::string_view text, const Letters& letters) : s_(text, true), letters_(letters) {}
    std::optional<Rational> run() {
        const auto v = modulo();
        return v && s_.at_end() ? v : std::nullopt;
    }

private:
    std::optional<Rational> modulo() {  // sum ["mod" sum]
        auto v = sum();
        if (!v || !s_.literal("mod")) return v;
        const auto m = sum();
        if (!m || v->den != 1 || m->den != 1 || m->num <= 0) return std::nullopt;
        return Rational{floor_mod(v->num, m->num), 1};
    }
    std::optional<Rational> sum() {
        auto v = product();
        while (v) {
            const bool plus = s_.literal("+");
            if (!plus && !s_.literal("-")) return v;
            const auto w = product();
            if (!w) return std::nullopt;
            v = plus ? *v + *w : *v - *w;
        }
        return v;
    }
    std::optional<Rational> product() {
        const bool minus = s_.literal("-");
        auto v = power();
        if (v && minus) v->num = -v->num;
        while (v) {
            const bool divide = s_.literal("/");
            const bool written = divide || s_.literal("*");
            const char next = s_.peek();
            if (!written && next != 'x' && next != 'f' && next != '(') return v;
            const bool negative = written && s_.literal("-");
            auto w = power();
            if (w && negative) w->num = -w->num;
            if (!w || (divide && w->num == 0)) return std::nullopt;
            v = divide ? *v / *w : *v * *w;
        }
        return v;
    }
    std::optional<Rational> power() {
        const auto base = atom();
        if (!base || !s_.literal("^")) return base;
        std::int64_t exponent = 0;
        if (!s_.natural(exponent) || exponent > 64) return std::nullopt;
        return Rational{checked_pow(base->num, exponent), checked_pow(base->den, exponent)};
    }
    std::optional<Rational> atom() {
        if (depth_ >= 64) return std::nullopt;  // hostile nesting must not exhaust the stack
        std::int64_t n = 0;
        if (s_.natural(n)) return Rational{n, 1};
        if (letters_.x && s_.literal("x")) return Rational{*letters_.x, 1};
        const bool call = letters_.f != nullptr && s_.literal("f");
        if (!s_.literal("(")) return std::nullopt;
        ++depth_;
        const auto v = modulo();
        --depth_;
        if (!v || !s_.literal(")")) return std::nullopt;
        if (!call) return v;
        if (v->den != 1) return std::nullopt;
        return Rational{polynomial_at(*letters_.f, v->num), 1};
    }

    Scanner s_;
    const Letters& letters_;
    int depth_ = 0;
};

}  // namespace

std::int64_t checked_add(std::int64_t a, std::int64_t b) { return narrow(Wide128{a} + b, "add"); }
std::int64_t checked_sub(std::int64_t a, std::int64_t b) {
    return narrow(Wide128{a} - b, "subtract");
}
std::int64_t checked_mul(std::int64_t a, std::int64_t b) {
    return narrow(Wide128{a} * b, "multiply");
}

std::int64_t checked_pow(std::int64_t base, std::int64_t exponent) {
    std::int64_t p = 1;
    for (std::int64_t i = 0; i < exponent; ++i)
        p = checked_mul(p, base);
    return p;
}

std::int64_t floor_mod(std::int64_t a, std::int64_t b) {
    const std::int64_t r = a % b;
    return r < 0 ? r + (b < 0 ? -b : b) : r;
}

std::int64_t gcd_of(std::int64_t a, std::int64_t b) {
    while (b != 0) {
        const std::int64_t r = a % b;
        a = b;
        b = r;
    }
    return a < 0 ? -a : a;
}

bool coprime(std::int64_t a, std::int64_t b) {
    while (a != b) {  // halve and subtract; at most one of them is even
        if (a % 2 == 0 && b % 2 == 0) return false;
        if (a < b) std::swap(a, b);
        if (b % 2 == 0) std::swap(a, b);
        a = a % 2 == 0 ? a / 2 : a - b;
    }
    return a == 1;
}

Rational make_rational(std::int64_t num, std::int64_t den) { return reduce(num, den, "fraction"); }
Rational operator+(Rational a, Rational b) {
    return reduce(Wide128{a.num} * b.den + Wide128{b.num} * a.den, Wide128{a.den} * b.den, "add");
}
Rational operator-(Rational a, Rational b) { return a + Rational{-b.num, b.den}; }
Rational operator*(Rational a, Rational b) {
    return reduce(Wide128{a.num} * b.num, Wide128{a.den} * b.den, "multiply");
}
Rational operator/(Rational a, Rational b) {
    return reduce(Wide128{a.num} * b.den, Wide128{a.den} * b.num, "divide");
}

std::optional<Rational> evaluate(std::string_view text, const Letters& letters) {
    if (text.size() > 4096) return std::nullopt;
    try {
        return Evaluator(text, letters).run();
    } catch (const Error&) {  // out of the exact range
        return std::nullopt;
    }
}

std::int64_t polynomial_at(const std::vector<std::int64_t>& f, std::int64_t x) {
    std::int64_t v = 0;
    for (auto c = f.rbegin(); c != f.rend(); ++c)
        v = checked_add(checked_mul(v, x), *c);
    return v;
}

}  // namespace stoa
