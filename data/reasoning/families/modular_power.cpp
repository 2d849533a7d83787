// "Compute 7^13 mod 11.": square and multiply, from the exponent's highest bit.
#include <fmt/format.h>

#include "data/reasoning/exact.h"
#include "data/reasoning/families/families.h"
#include "data/reasoning/scan.h"

namespace stoa::families {
namespace {

struct ModularPower {
    std::int64_t base = 0, exponent = 0, modulus = 0;
};

bool parse_power(Text question, ModularPower& p) {
    Scanner s(question);
    return s.literal("Compute ") && s.natural(p.base) && s.literal("^") && s.natural(p.exponent) &&
           s.literal(" mod ") && s.natural(p.modulus) && s.literal(".") && s.at_end() &&
           p.modulus >= 2 && p.exponent >= 1 && p.exponent <= 100000;
}

}  // namespace

// Difficulty 1: base 2..12, exponent 2..12, modulus 5..25. At 10: to 1200, 1200 and 2005.
void generate_modular_power(std::int64_t difficulty, Draws& draws, ReasoningSample& sample) {
    const std::int64_t square = difficulty * difficulty;
    const std::int64_t modulus = draws.between(5, 5 + 20 * square);
    const std::int64_t base = draws.between(2, 12 * square);
    const std::int64_t exponent = draws.between(2, 12 * square);
    sample.question = fmt::format("Compute {}^{} mod {}.", base, exponent, modulus);
    std::int64_t power = base % modulus, reached = 1;
    sample.steps.push_back(fmt::format("exponent 1: {} mod {} = {}", base, modulus, power));
    int bit = 62;
    while ((exponent >> bit) == 0)
        --bit;
    const std::int64_t first = power;
    const auto multiply = [&](std::int64_t factor) {
        const std::int64_t product = checked_mul(power, factor);
        sample.steps.push_back(fmt::format("exponent {}: {} * {} mod {} = {} mod {} = {}", reached,
                                           power, factor, modulus, product, modulus,
                                           product % modulus));
        power = product % modulus;
    };
    while (--bit >= 0) {
        reached *= 2;
        multiply(power);
        if (((exponent >> bit) & 1) == 0) continue;
        ++reached;
        multiply(first);
    }
    sample.answer = fmt::format("{}", power);
}

// One multiplication per unit of the exponent.
bool verify_modular_power(Text question, Text answer, std::string& why) {
    ModularPower p;
    if (!parse_power(question, p)) return refuse(why, "the question is not a modular power");
    std::int64_t power = 1 % p.modulus;
    for (std::int64_t i = 0; i < p.exponent; ++i)
        power = checked_mul(power, p.base % p.modulus) % p.modulus;
    return integer_is(answer, power, why);
}

// The exponent reached doubles (square the power before) or grows by one (times the base).
bool check_modular_power(const ReasoningSample& sample, std::string& why) {
    ModularPower p;
    if (!parse_power(sample.question, p)) return refuse(why, "not a modular power");
    std::int64_t reached = 0, power = 0;
    for (std::size_t i = 0; i < sample.steps.size(); ++i) {
        Scanner s(sample.steps[i]);
        std::int64_t exponent = 0;
        if (!s.literal("exponent ") || !s.natural(exponent))
            return refuse(why, fmt::format("step {}: no exponent", i + 1));
        const std::int64_t first = p.base % p.modulus;
        std::int64_t next = 0;
        std::string expected;
        if (i == 0 && exponent == 1) {
            next = first;
            expected = fmt::format(": {} mod {} = {}", p.base, p.modulus, next);
        } else if (i > 0 && (exponent == 2 * reached || exponent == reached + 1)) {
            const std::int64_t factor = exponent == 2 * reached ? power : first;
            const std::int64_t product = checked_mul(power, factor);
            next = product % p.modulus;
            expected = fmt::format(": {} * {} mod {} = {} mod {} = {}", power, factor, p.modulus,
                                   product, p.modulus, next);
        }
        if (expected.empty() || s.rest() != expected)
            return refuse(why, fmt::format("step {} is wrong", i + 1));
        reached = exponent;
        power = next;
    }
    if (reached != p.exponent) return refuse(why, "the steps stop before the exponent");
    return integer_is(sample.answer, power, why);
}

}  // namespace stoa::families
