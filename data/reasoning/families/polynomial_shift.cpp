// "Given f(x) = x^2 + 3x + 2, expand f(x+1) - f(x).": substitute, expand, collect, subtract, check.
#include <fmt/format.h>

#include "data/reasoning/exact.h"
#include "data/reasoning/families/families.h"
#include "data/reasoning/scan.h"
#include "data/reasoning/steps.h"

namespace stoa::families {
namespace {

using Polynomial = std::vector<std::int64_t>;  // coefficient of x^i at [i]
constexpr std::int64_t kHighestDegree = 8;

/// [-] term {(+|-) term}, term = [n]x[^e] | n, in any order; equal powers add up.
bool parse_polynomial(Scanner& s, Polynomial& f) {
    f.assign(kHighestDegree + 1, 0);
    bool minus = s.literal("-");
    for (int terms = 0; terms < 32; ++terms) {
        std::int64_t n = 1, power = 0;
        const bool number = s.natural(n);
        if (s.literal("x")) {
            power = 1;
            if (s.literal("^") && (!s.natural(power) || power > kHighestDegree)) return false;
        } else if (!number) {
            return false;
        }
        auto& slot = f[static_cast<std::size_t>(power)];
        slot = checked_add(slot, minus ? -n : n);
        minus = s.literal("-");
        if (!minus && !s.literal("+")) return true;
    }
    return false;
}

bool parse_shift(Text question, Polynomial& f, std::int64_t& shift) {
    Scanner s(question, true);
    if (!s.literal("Given f(x) =") || !parse_polynomial(s, f) || !s.literal(", expand f(x"))
        return false;
    const bool plus = s.literal("+");
    if ((!plus && !s.literal("-")) || !s.natural(shift) || shift == 0) return false;
    if (!plus) shift = -shift;
    return s.literal(") - f(x).") && s.at_end();
}

/// "3x^2", "x", "7" for a coefficient > 0.
std::string term_text(std::int64_t coefficient, std::size_t power, const std::string& base = "x") {
    const std::string number = coefficient == 1 && power > 0 ? "" : std::to_string(coefficient);
    if (power == 0) return number;
    return number + base + (power == 1 ? "" : fmt::format("^{}", power));
}

/// Highest power first, zero terms left out; "0" for the zero polynomial.
std::string polynomial_text(const Polynomial& f, const std::string& base = "x") {
    std::string text;
    for (std::size_t i = f.size(); i-- > 0;) {
        if (f[i] == 0) continue;
        const std::string term = term_text(std::abs(f[i]), i, base);
        if (text.empty())
            text = (f[i] < 0 ? "-" : "") + term;
        else
            text += (f[i] < 0 ? " - " : " + ") + term;
    }
    return text.empty() ? "0" : text;
}

/// Coefficients of c (x + k)^n, by multiplying n times.
Polynomial shifted_power(std::int64_t c, std::int64_t k, std::size_t n) {
    Polynomial p{c};
    for (std::size_t step = 0; step < n; ++step) {
        p.push_back(0);
        for (std::size_t i = p.size(); i-- > 0;)
            p[i] = checked_add(checked_mul(p[i], k), i > 0 ? p[i - 1] : 0);
    }
    return p;
}

}  // namespace

// Difficulty 1: degree 1 or 2, coefficients to 9, shift 1..3. At 10: degree 5 or 6, shift to 10.
void generate_polynomial_shift(std::int64_t difficulty, Draws& draws, ReasoningSample& sample) {
    const auto degree = static_cast<std::size_t>(1 + (difficulty - 1) / 2 + draws.between(0, 1));
    const std::int64_t most = 9 + 2 * (difficulty - 1);
    std::int64_t k = draws.between(1, 3 + (difficulty - 1) * 7 / 9);
    if (difficulty > 2 && draws.below(2) == 1) k = -k;
    Polynomial f(degree + 1);
    for (std::size_t i = 0; i <= degree; ++i) {
        f[i] = draws.between(i == degree ? 1 : 0, most);
        if (difficulty > 1 && draws.below(3) == 0) f[i] = -f[i];
    }
    const std::string moved = fmt::format("x{}{}", k < 0 ? '-' : '+', std::abs(k));
    const std::string base = "(" + moved + ")";
    sample.question =
        fmt::format("Given f(x) = {}, expand f({}) - f(x).", polynomial_text(f), moved);
    sample.steps.push_back(
        fmt::format("substitute x -> {}: f({}) = {}", moved, moved, polynomial_text(f, base)));
    Polynomial shifted(degree + 1, 0), difference(degree + 1, 0);
    std::string expansions;
    for (std::size_t i = degree + 1; i-- > 0;) {
        if (f[i] == 0) continue;
        const Polynomial part = shifted_power(f[i], k, i);
        for (std::size_t j = 0; j < part.size(); ++j)
            shifted[j] = checked_add(shifted[j], part[j]);
        if (i == 0) continue;
        expansions +=
            fmt::format("{}{}{} = {}", expansions.empty() ? "" : " and ", f[i] < 0 ? "-" : "",
                        term_text(std::abs(f[i]), i, base), polynomial_text(part));
    }
    for (std::size_t i = 0; i <= degree; ++i)
        difference[i] = checked_sub(shifted[i], f[i]);
    sample.answer = polynomial_text(difference);
    sample.steps.push_back("expand: " + expansions);
    sample.steps.push_back(fmt::format("collect: f({}) = {}", moved, polynomial_text(shifted)));
    sample.steps.push_back(fmt::format("subtract: f({}) - f(x) = ({}) - ({}) = {}", moved,
                                       polynomial_text(shifted), polynomial_text(f),
                                       sample.answer));
}

// g(x) = f(x + k) - f(x) at one point more than the highest degree either can have.
bool verify_polynomial_shift(Text question, Text answer, std::string& why) {
    Polynomial f, g;
    std::int64_t k = 0;
    if (!parse_shift(question, f, k)) return refuse(why, "the question is not f(x+k) - f(x)");
    Scanner s(answer, true);
    if (!parse_polynomial(s, g) || !s.at_end())
        return refuse(why, "the answer is not a polynomial in x");
    for (std::int64_t x = 0; x <= kHighestDegree + 1; ++x) {
        const std::int64_t expected =
            checked_sub(polynomial_at(f, checked_add(x, k)), polynomial_at(f, x));
        const std::int64_t actual = polynomial_at(g, x);
        if (actual != expected)
            return refuse(why,
                          fmt::format("at x = {} the answer is {}, not {}", x, actual, expected));
    }
    return true;
}

// Each "a = b = c" (joined by "and") is an identity in x: equal at enough points.
bool check_polynomial_shift(const ReasoningSample& sample, std::string& why) {
    Polynomial f;
    std::int64_t k = 0;
    if (!parse_shift(sample.question, f, k)) return refuse(why, "not a shift");
    if (sample.steps.size() != 4) return refuse(why, "four steps are needed");
    constexpr std::string_view kLabels[] = {"substitute ", "expand: ", "collect: ", "subtract: "};
    for (std::size_t i = 0; i < sample.steps.size(); ++i) {
        Text step = sample.steps[i];
        const std::string label =
            i == 0 ? fmt::format("substitute x -> x{}{}: ", k < 0 ? '-' : '+', std::abs(k))
                   : std::string(kLabels[i]);
        if (!step.starts_with(label)) return refuse(why, fmt::format("step {}: its name", i + 1));
        step.remove_prefix(label.size());
        for (bool more = true; more;) {
            const std::size_t end = step.find(" and ");
            for (std::int64_t x = 0; x <= kHighestDegree + 1; ++x)
                if (!chain_holds(step.substr(0, end), {.x = x, .f = &f}, why))
                    return refuse(why, fmt::format("step {}: {}", i + 1, why));
            more = end != Text::npos;
            if (more) step.remove_prefix(end + 5);
        }
    }
    return ends_in(sample.steps, "= " + sample.answer, why);
}

}  // namespace stoa::families
