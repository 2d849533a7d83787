// "Compute 3 + 5 - 4.": sums and differences from left to right.
#include <fmt/format.h>

#include "data/reasoning/exact.h"
#include "data/reasoning/families/families.h"
#include "data/reasoning/scan.h"

namespace stoa::families {
namespace {

constexpr std::size_t kMostTerms = 32;

/// Signed terms: "3 + 5 - 4" is {3, 5, -4}.
bool parse_terms(Text question, std::vector<std::int64_t>& terms) {
    Scanner s(question);
    if (!s.literal("Compute ")) return false;
    std::int64_t v = 0;
    if (!s.natural(v)) return false;
    terms = {v};
    while (!s.literal(".")) {
        const bool plus = s.literal(" + ");
        if ((!plus && !s.literal(" - ")) || !s.natural(v) || terms.size() == kMostTerms)
            return false;
        terms.push_back(plus ? v : -v);
    }
    return s.at_end() && terms.size() >= 2;
}

}  // namespace

// Difficulty 1: three or four terms of one digit, sums only. Then differences, more terms, more
// digits.
void generate_chain_sum(std::int64_t difficulty, Draws& draws, ReasoningSample& sample) {
    const std::int64_t terms = 3 + (difficulty - 1) / 2 + draws.between(0, 1);
    const std::int64_t digits = 1 + (difficulty - 1) / 2;
    std::int64_t sum = draw_digits(draws, digits);
    sample.question = fmt::format("Compute {}", sum);
    for (std::int64_t i = 1; i < terms; ++i) {
        const std::int64_t term = draw_digits(draws, draws.between(1, digits));
        const bool minus = difficulty > 1 && draws.below(2) == 1;
        const char op = minus ? '-' : '+';
        const std::int64_t next = minus ? checked_sub(sum, term) : checked_add(sum, term);
        sample.question += fmt::format(" {} {}", op, term);
        sample.steps.push_back(fmt::format("{} {} {} = {}", sum, op, term, next));
        sum = next;
    }
    sample.question += '.';
    sample.answer = fmt::format("{}", sum);
}

// All that is added minus all that is taken away, from the right.
bool verify_chain_sum(Text question, Text answer, std::string& why) {
    std::vector<std::int64_t> terms;
    if (!parse_terms(question, terms)) return refuse(why, "the question is not a sum");
    std::int64_t added = 0, taken = 0;
    for (auto t = terms.rbegin(); t != terms.rend(); ++t)
        *t < 0 ? taken = checked_sub(taken, *t) : added = checked_add(added, *t);
    return integer_is(answer, checked_sub(added, taken), why);
}

// Step i is "partial op term = next" with the question's term i + 1 and the step before's result.
bool check_chain_sum(const ReasoningSample& sample, std::string& why) {
    std::vector<std::int64_t> terms;
    if (!parse_terms(sample.question, terms) || sample.steps.size() + 1 != terms.size())
        return refuse(why, "one step per term after the first is needed");
    std::int64_t partial = terms[0];
    for (std::size_t i = 0; i < sample.steps.size(); ++i) {
        Scanner s(sample.steps[i]);
        std::int64_t left = 0, term = 0, result = 0;
        bool ok = s.integer(left);
        const bool plus = s.literal(" + ");
        ok = ok && (plus || s.literal(" - ")) && s.natural(term) && s.literal(" = ") &&
             s.integer(result) && s.at_end();
        const std::int64_t change = plus ? term : -term;
        if (!ok || left != partial || change != terms[i + 1] || result != checked_add(left, change))
            return refuse(why, fmt::format("step {} is wrong", i + 1));
        partial = result;
    }
    return integer_is(sample.answer, partial, why);
}

}  // namespace stoa::families
