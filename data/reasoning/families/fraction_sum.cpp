// "Compute 3/4 + 5/6 in lowest terms.": common denominator, sum, reduction.
#include <fmt/format.h>

#include "data/reasoning/exact.h"
#include "data/reasoning/families/families.h"
#include "data/reasoning/scan.h"
#include "data/reasoning/steps.h"

namespace stoa::families {
namespace {

struct Fraction {
    std::int64_t num = 0, den = 1;
};

bool parse_fractions(Text question, std::vector<Fraction>& terms) {
    Scanner s(question);
    if (!s.literal("Compute ")) return false;
    for (bool minus = false;;) {
        Fraction f;
        if (terms.size() == 8 || !s.natural(f.num) || !s.literal("/") || !s.natural(f.den) ||
            f.den == 0)
            return false;
        terms.push_back({minus ? -f.num : f.num, f.den});
        minus = s.literal(" - ");
        if (!minus && !s.literal(" + "))
            return terms.size() >= 2 && s.literal(" in lowest terms.") && s.at_end();
    }
}

std::string fraction_text(std::int64_t num, std::int64_t den) {
    return den == 1 ? fmt::format("{}", num) : fmt::format("{}/{}", num, den);
}

/// What joins a term to the sum so far.
const char* separator(const std::string& before, std::int64_t num) {
    return before.empty() ? "" : num < 0 ? " - " : " + ";
}

/// The steps, ending in the answer: each term over the common denominator, the sum, its reduction.
std::vector<std::string> work_out(const std::vector<Fraction>& terms) {
    std::vector<std::string> steps;
    std::int64_t common = 1, total = 0;
    for (const Fraction& t : terms)
        common = checked_mul(common / gcd_of(common, t.den), t.den);
    std::string scaled;
    for (const Fraction& t : terms) {
        const std::int64_t num = checked_mul(t.num, common / t.den);
        if (t.den != common)
            steps.push_back(
                fmt::format("{}/{} = {}/{}", std::abs(t.num), t.den, std::abs(num), common));
        scaled += fmt::format("{}{}/{}", separator(scaled, num), std::abs(num), common);
        total = checked_add(total, num);
    }
    const std::int64_t divisor = gcd_of(total, common);
    steps.push_back(fmt::format("{} = {}/{}", scaled, total, common));
    if (divisor != 1)
        steps.push_back(fmt::format("{}/{} = {}", total, common,
                                    fraction_text(total / divisor, common / divisor)));
    return steps;
}

}  // namespace

// Two terms, three from difficulty 6; denominators to 8 + 4 per level; differences from 3.
void generate_fraction_sum(std::int64_t difficulty, Draws& draws, ReasoningSample& sample) {
    const std::size_t count = difficulty < 6 ? 2 : 3;
    const std::int64_t most = 8 + 4 * (difficulty - 1);
    std::vector<Fraction> terms;
    std::string sum;
    while (terms.size() < count) {
        Fraction t;
        t.den = draws.between(2, most);
        t.num = draws.between(1, most);
        if (!terms.empty() && difficulty >= 3 && draws.below(2) == 1) t.num = -t.num;
        sum += fmt::format("{}{}/{}", separator(sum, t.num), std::abs(t.num), t.den);
        terms.push_back(t);
    }
    sample.question = fmt::format("Compute {} in lowest terms.", sum);
    sample.steps = work_out(terms);
    sample.answer = sample.steps.back().substr(sample.steps.back().rfind(' ') + 1);
}

// Cross multiplication over the product of all denominators; lowest terms by trial division.
bool verify_fraction_sum(Text question, Text answer, std::string& why) {
    std::vector<Fraction> terms;
    if (!parse_fractions(question, terms))
        return refuse(why, "the question is not a sum of fractions");
    Scanner s(answer, true);
    Fraction result;
    bool ok = s.integer(result.num);
    if (ok && s.literal("/")) ok = s.natural(result.den) && result.den >= 2;
    if (!ok || !s.at_end()) return refuse(why, "the answer is not a fraction");
    std::int64_t product = 1, sum = 0;
    for (const Fraction& t : terms)
        product = checked_mul(product, t.den);
    for (const Fraction& t : terms)
        sum = checked_add(sum, checked_mul(product / t.den, t.num));
    if (checked_mul(sum, result.den) != checked_mul(result.num, product))
        return refuse(why, "the answer has another value");
    if (result.num != 0 && !coprime(std::abs(result.num), result.den))
        return refuse(why, "the fraction can be reduced");
    return result.num != 0 || result.den == 1 || refuse(why, "0 is written 0");
}

// The equations hold, and they are the ones that this sum needs.
bool check_fraction_sum(const ReasoningSample& sample, std::string& why) {
    std::vector<Fraction> terms;
    if (!parse_fractions(sample.question, terms)) return refuse(why, "not a sum of fractions");
    if (!chains_lead_to(sample.steps, sample.answer, why)) return false;
    return sample.steps == work_out(terms) || refuse(why, "a step does not belong to this sum");
}

}  // namespace stoa::families
