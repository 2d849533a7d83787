// "Solve 3x + 4 = 19.": one unknown with an integer solution.
#include <fmt/format.h>

#include "data/reasoning/exact.h"
#include "data/reasoning/families/families.h"
#include "data/reasoning/scan.h"
#include "data/reasoning/steps.h"

namespace stoa::families {
namespace {

struct Side {  // coefficient * x + constant
    std::int64_t coefficient = 0, constant = 0;
};

/// [-] term {(+|-) term}, term = [n]x | n.
bool parse_side(Scanner& s, Side& side) {
    side = {};
    bool minus = s.literal("-");
    for (int terms = 0; terms < 8; ++terms) {
        std::int64_t n = 1;
        const bool number = s.natural(n);
        const bool unknown = s.literal("x");
        if (!number && !unknown) return false;
        auto& slot = unknown ? side.coefficient : side.constant;
        slot = checked_add(slot, minus ? -n : n);
        minus = s.literal(" - ");
        if (!minus && !s.literal(" + ")) return true;
    }
    return false;
}

bool parse_equation(Text question, Side& left, Side& right) {
    Scanner s(question);
    return s.literal("Solve ") && parse_side(s, left) && s.literal(" = ") && parse_side(s, right) &&
           s.literal(".") && s.at_end();
}

/// "x = 5", "x=5" or "5".
bool parse_solution(Text answer, std::int64_t& x) {
    Scanner s(answer, true);
    if (s.literal("x") && !s.literal("=")) return false;
    return s.integer(x) && s.at_end();
}

std::string side_text(std::int64_t coefficient, std::int64_t constant) {
    std::string text = coefficient == 1    ? "x"
                       : coefficient == -1 ? "-x"
                                           : fmt::format("{}x", coefficient);
    if (constant != 0) text += fmt::format(" {} {}", constant < 0 ? '-' : '+', std::abs(constant));
    return text;
}

/// " - 4" for 4, " + 4" for -4: moves a constant to the other side.
std::string moved(std::int64_t value) {
    return fmt::format(" {} {}", value < 0 ? '+' : '-', std::abs(value));
}

}  // namespace

// Difficulty 1: ax + b = c with a 2..9, x 1..12, b -9..9 and c > 0. Then larger and negative
// numbers; from difficulty 4 the unknown stands on both sides.
void generate_linear_equation(std::int64_t difficulty, Draws& draws, ReasoningSample& sample) {
    const std::int64_t largest_a = 9 + 4 * (difficulty - 1),
                       largest_b = 9 * difficulty * difficulty;
    const std::int64_t largest_x = difficulty == 1 ? 12 : 10 * difficulty;
    std::int64_t a = 0, b = 0, c = 0, x = 0;
    do {
        a = draws.between(2, largest_a);
        x = draws.between(1, largest_x);
        b = draws.between(1, largest_b);
        if (draws.below(2) == 1) b = -b;
        if (difficulty > 1 && draws.below(3) == 0) x = -x;
        if (difficulty > 2 && draws.below(3) == 0) a = -a;
        c = checked_add(checked_mul(a, x), b);
    } while (difficulty == 1 && c <= 0);
    const std::int64_t product = checked_mul(a, x);
    if (difficulty < 4) {  // ax + b = c
        sample.question = fmt::format("Solve {} = {}.", side_text(a, b), c);
    } else {  // (a + d)x + b = dx + c
        std::int64_t d = draws.between(2, largest_a);
        if (a + d == 0) ++d;
        sample.question = fmt::format("Solve {} = {}.", side_text(a + d, b), side_text(d, c));
        sample.steps.push_back(
            fmt::format("{} - {} = {}{}", side_text(a + d, 0), side_text(d, 0), c, moved(b)));
    }
    sample.steps.push_back(fmt::format("{} = {}{} = {}", side_text(a, 0), c, moved(b), product));
    sample.steps.push_back(fmt::format("x = {} / {} = {}", product, a, x));
    sample.answer = fmt::format("x = {}", x);
}

// Substitution; the coefficients of x must differ, so that no other number solves it.
bool verify_linear_equation(Text question, Text answer, std::string& why) {
    Side left, right;
    std::int64_t x = 0;
    if (!parse_equation(question, left, right))
        return refuse(why, "the question is not a linear equation");
    if (left.coefficient == right.coefficient)
        return refuse(why, "the equation has no single solution");
    if (!parse_solution(answer, x)) return refuse(why, "the answer is not \"x = integer\"");
    const std::int64_t at_left = checked_add(checked_mul(left.coefficient, x), left.constant);
    const std::int64_t at_right = checked_add(checked_mul(right.coefficient, x), right.constant);
    if (at_left != at_right)
        return refuse(why, fmt::format("x = {} gives {} = {}", x, at_left, at_right));
    return true;
}

// Every step is an equation that holds at the solution; the last one ends in it.
bool check_linear_equation(const ReasoningSample& sample, std::string& why) {
    std::int64_t x = 0;
    if (!parse_solution(sample.answer, x)) return refuse(why, "the answer is not \"x = integer\"");
    for (std::size_t i = 0; i < sample.steps.size(); ++i)
        if (!chain_holds(sample.steps[i], {.x = x, .f = nullptr}, why))
            return refuse(why, fmt::format("step {}: {}", i + 1, why));
    return ends_in(sample.steps, fmt::format("{}", x), why);
}

}  // namespace stoa::families
