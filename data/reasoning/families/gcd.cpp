// "Find gcd(48, 18).": Euclid's algorithm.
#include <fmt/format.h>

#include <utility>

#include "data/reasoning/exact.h"
#include "data/reasoning/families/families.h"
#include "data/reasoning/scan.h"

namespace stoa::families {
namespace {

bool parse_gcd(Text question, std::int64_t& a, std::int64_t& b) {
    Scanner s(question);
    return s.literal("Find gcd(") && s.natural(a) && s.literal(", ") && s.natural(b) &&
           s.literal(").") && s.at_end() && a > 0 && b > 0;
}

}  // namespace

// Two multiples of a common factor 1..6 d; the other factors to 25 d^3, d = difficulty.
void generate_gcd(std::int64_t difficulty, Draws& draws, ReasoningSample& sample) {
    const std::int64_t most = 25 * difficulty * difficulty * difficulty;
    const std::int64_t factor = draws.between(1, 6 * difficulty);
    std::int64_t a = checked_mul(factor, draws.between(1, most));
    std::int64_t b = checked_mul(factor, draws.between(1, most));
    if (a < b) std::swap(a, b);
    sample.question = fmt::format("Find gcd({}, {}).", a, b);
    while (b != 0) {
        sample.steps.push_back(fmt::format("{} = {} * {} + {}", a, a / b, b, a % b));
        a = std::exchange(b, a % b);
    }
    sample.answer = fmt::format("{}", a);
}

// The answer divides both numbers, and the quotients are coprime.
bool verify_gcd(Text question, Text answer, std::string& why) {
    std::int64_t a = 0, b = 0, g = 0;
    if (!parse_gcd(question, a, b)) return refuse(why, "the question is not a gcd");
    if (!parse_integer_answer(answer, g) || g <= 0)
        return refuse(why, "the answer is not a positive integer");
    if (a % g != 0 || b % g != 0) return refuse(why, fmt::format("{} does not divide both", g));
    return coprime(a / g, b / g) || refuse(why, fmt::format("{} is not the greatest", g));
}

// Step "a = q * b + r" with 0 <= r < b; the next step divides b by r; the last remainder is 0.
bool check_gcd(const ReasoningSample& sample, std::string& why) {
    std::int64_t a = 0, b = 0;
    if (!parse_gcd(sample.question, a, b)) return refuse(why, "not a gcd");
    if (a < b) std::swap(a, b);
    for (std::size_t i = 0; i < sample.steps.size(); ++i) {
        Scanner s(sample.steps[i]);
        std::int64_t left = 0, q = 0, divisor = 0, r = 0;
        const bool ok = s.natural(left) && s.literal(" = ") && s.natural(q) && s.literal(" * ") &&
                        s.natural(divisor) && s.literal(" + ") && s.natural(r) && s.at_end();
        if (!ok || left != a || divisor != b || b == 0 || r >= b ||
            checked_add(checked_mul(q, b), r) != a)
            return refuse(why, fmt::format("step {} is wrong", i + 1));
        a = std::exchange(b, r);
    }
    if (b != 0) return refuse(why, "the last remainder is not 0");
    return integer_is(sample.answer, a, why);
}

}  // namespace stoa::families
