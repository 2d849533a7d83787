// "Compute 347 * 26.": one partial product per digit of the second factor, then their sum.
#include <fmt/format.h>

#include "data/reasoning/exact.h"
#include "data/reasoning/families/families.h"
#include "data/reasoning/scan.h"
#include "data/reasoning/steps.h"

namespace stoa::families {
namespace {

bool parse_product(Text question, std::int64_t& a, std::int64_t& b) {
    Scanner s(question);
    return s.literal("Compute ") && s.natural(a) && s.literal(" * ") && s.natural(b) &&
           s.literal(".") && s.at_end();
}

std::vector<std::string> work_out(std::int64_t a, std::int64_t b) {
    std::vector<std::string> steps;
    std::vector<std::int64_t> parts;
    for (std::int64_t place = 1; place <= b; place *= 10) {
        const std::int64_t factor = b / place % 10 * place;
        if (factor == 0) continue;
        parts.push_back(checked_mul(a, factor));
        steps.push_back(fmt::format("{} * {} = {}", a, factor, parts.back()));
    }
    std::int64_t sum = parts.empty() ? 0 : parts[0];
    for (std::size_t i = 1; i < parts.size(); ++i) {
        const std::int64_t next = checked_add(sum, parts[i]);
        steps.push_back(fmt::format("{} + {} = {}", sum, parts[i], next));
        sum = next;
    }
    return steps;
}

}  // namespace

// Two digits by two at difficulty 1; seven by six at 10.
void generate_long_multiplication(std::int64_t difficulty, Draws& draws, ReasoningSample& sample) {
    const std::int64_t a = draw_digits(draws, 2 + difficulty / 2);
    const std::int64_t b = draw_digits(draws, 2 + (difficulty - 1) / 2);
    sample.question = fmt::format("Compute {} * {}.", a, b);
    sample.steps = work_out(a, b);
    sample.answer = sample.steps.back().substr(sample.steps.back().rfind(' ') + 1);
}

// Halving and doubling: a * b = sum of a * 2^i over the bits of b.
bool verify_long_multiplication(Text question, Text answer, std::string& why) {
    std::int64_t a = 0, b = 0, sum = 0;
    if (!parse_product(question, a, b)) return refuse(why, "the question is not a product");
    for (; b > 0; b /= 2) {
        if (b % 2 == 1) sum = checked_add(sum, a);
        if (b > 1) a = checked_add(a, a);
    }
    return integer_is(answer, sum, why);
}

// The equations hold, and they are the ones that this product needs.
bool check_long_multiplication(const ReasoningSample& sample, std::string& why) {
    std::int64_t a = 0, b = 0;
    if (!parse_product(sample.question, a, b)) return refuse(why, "not a product");
    if (!chains_lead_to(sample.steps, sample.answer, why)) return false;
    return sample.steps == work_out(a, b) || refuse(why, "a step does not belong to this product");
}

}  // namespace stoa::families
