// "Write 173 in base 7.": repeated division, remainders read upwards.
#include <fmt/format.h>

#include <algorithm>

#include "data/reasoning/exact.h"
#include "data/reasoning/families/families.h"
#include "data/reasoning/scan.h"

namespace stoa::families {
namespace {

constexpr std::string_view kDigits = "0123456789abcdef";

bool parse_conversion(Text question, std::int64_t& n, std::int64_t& base) {
    Scanner s(question);
    return s.literal("Write ") && s.natural(n) && s.literal(" in base ") && s.natural(base) &&
           s.literal(".") && s.at_end() && n > 0 && base >= 2 && base <= 16;
}

}  // namespace

// Difficulty 1: to 400 in base 2..6; each level doubles the range and widens the bases, to 16.
void generate_base_conversion(std::int64_t difficulty, Draws& draws, ReasoningSample& sample) {
    const std::int64_t base = draws.between(2, std::min<std::int64_t>(4 + 2 * difficulty, 16));
    std::int64_t n = draws.between(base, 400 * checked_pow(2, difficulty - 1));
    sample.question = fmt::format("Write {} in base {}.", n, base);
    while (n > 0) {
        const std::int64_t r = n % base;
        sample.steps.push_back(fmt::format("{} = {} * {} + {}", n, n / base, base, r));
        sample.answer.insert(sample.answer.begin(), kDigits[static_cast<std::size_t>(r)]);
        n /= base;
    }
    sample.steps.push_back("remainders upwards: " + sample.answer);
}

// Back conversion by Horner's rule. Digits above 9 are lower case.
bool verify_base_conversion(Text question, Text answer, std::string& why) {
    std::int64_t n = 0, base = 0, value = 0;
    if (!parse_conversion(question, n, base))
        return refuse(why, "the question is not a conversion");
    while (answer.starts_with(' '))
        answer.remove_prefix(1);
    while (answer.ends_with(' '))
        answer.remove_suffix(1);
    if (answer.empty() || answer[0] == '0')
        return refuse(why, "not a number without leading zeros");
    for (const char c : answer) {
        const std::size_t digit = kDigits.find(c);
        if (digit >= static_cast<std::size_t>(base))
            return refuse(why, fmt::format("a digit that base {} does not have", base));
        value = checked_add(checked_mul(value, base), static_cast<std::int64_t>(digit));
    }
    return value == n || refuse(why, fmt::format("the answer is {} in base ten, not {}", value, n));
}

// Each division is exact and continues with the quotient before it, down to 0; the digits follow.
bool check_base_conversion(const ReasoningSample& sample, std::string& why) {
    std::int64_t n = 0, base = 0;
    if (!parse_conversion(sample.question, n, base)) return refuse(why, "not a conversion");
    std::string digits;
    for (std::size_t i = 0; i + 1 < sample.steps.size(); ++i) {
        Scanner s(sample.steps[i]);
        std::int64_t left = 0, q = 0, divisor = 0, r = 0;
        const bool ok = s.natural(left) && s.literal(" = ") && s.natural(q) && s.literal(" * ") &&
                        s.natural(divisor) && s.literal(" + ") && s.natural(r) && s.at_end();
        if (!ok || left != n || divisor != base || r >= base ||
            checked_add(checked_mul(q, base), r) != n)
            return refuse(why, fmt::format("step {} is wrong", i + 1));
        digits.push_back(kDigits[static_cast<std::size_t>(r)]);
        n = q;
    }
    std::reverse(digits.begin(), digits.end());
    if (n != 0 || sample.steps.empty() || sample.steps.back() != "remainders upwards: " + digits)
        return refuse(why, "the steps do not end in the remainders");
    Scanner s(sample.answer, true);
    return (s.literal(digits) && s.at_end()) || refuse(why, "the steps lead to another answer");
}

}  // namespace stoa::families
