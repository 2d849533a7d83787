#include <fmt/format.h>

#include "data/reasoning/exact.h"
#include "data/reasoning/families/families.h"
#include "data/reasoning/scan.h"

namespace stoa::families {

bool refuse(std::string& why, std::string reason) {
    why = std::move(reason);
    return false;
}

bool integer_is(Text answer, std::int64_t expected, std::string& why) {
    std::int64_t value = 0;
    if (!parse_integer_answer(answer, value)) return refuse(why, "the answer is not an integer");
    if (value != expected)
        return refuse(why, fmt::format("the answer is {}, not {}", expected, value));
    return true;
}

std::int64_t draw_digits(Draws& draws, std::int64_t digits) {
    const std::int64_t low = checked_pow(10, digits - 1);
    return draws.between(low, low * 10 - 1);
}

std::string join(const std::vector<std::int64_t>& values, const char* separator) {
    return fmt::format("{}", fmt::join(values, separator));
}

}  // namespace stoa::families
