// "Run: a = 3; b = a + 4; a = b * 2. What is a at the end?": straight-line assignments.
#include <fmt/format.h>

#include "data/reasoning/exact.h"
#include "data/reasoning/families/families.h"
#include "data/reasoning/scan.h"

namespace stoa::families {
namespace {

constexpr std::size_t kMostStatements = 16;
constexpr int kVariables = 4;  // a, b, c, d
constexpr std::int64_t kLargest = 100000;

struct Operand {
    int variable = -1;  // -1: a number
    std::int64_t number = 0;
};
struct Statement {
    int target = 0;
    Operand left, right;
    char op = '\0';  // '\0': a copy of `left`
};

bool parse_operand(Scanner& s, Operand& operand) {
    const char c = s.peek();
    if (c < 'a' || c >= 'a' + kVariables) return s.natural(operand.number);
    operand.variable = c - 'a';
    return s.literal(Text(&c, 1));
}

bool parse_program(Text question, std::vector<Statement>& program, int& asked) {
    Scanner s(question);
    if (!s.literal("Run: ")) return false;
    do {
        Statement line;
        Operand target;
        if (program.size() == kMostStatements || !parse_operand(s, target) || target.variable < 0 ||
            !s.literal(" = ") || !parse_operand(s, line.left))
            return false;
        line.target = target.variable;
        for (const char* op : {" + ", " - ", " * "})
            if (line.op == '\0' && s.literal(op)) line.op = op[1];
        if (line.op != '\0' && !parse_operand(s, line.right)) return false;
        program.push_back(line);
    } while (s.literal("; "));
    Operand last;
    if (!s.literal(". What is ") || !parse_operand(s, last) || last.variable < 0) return false;
    asked = last.variable;
    return s.literal(" at the end?") && s.at_end();
}

std::int64_t apply(char op, std::int64_t a, std::int64_t b) {
    return op == '+' ? checked_add(a, b) : op == '-' ? checked_sub(a, b) : checked_mul(a, b);
}

std::string operand_text(const Operand& operand) {
    return operand.variable < 0 ? fmt::format("{}", operand.number)
                                : std::string(1, static_cast<char>('a' + operand.variable));
}

/// The value of `variable` before statement `end`, looked up backwards.
bool value_before(const std::vector<Statement>& program, std::size_t end, int variable,
                  std::int64_t& value) {
    for (std::size_t i = end; i-- > 0;) {
        if (program[i].target != variable) continue;
        const auto resolve = [&](const Operand& o, std::int64_t& v) {
            v = o.number;
            return o.variable < 0 || value_before(program, i, o.variable, v);
        };
        std::int64_t left = 0, right = 0;
        if (!resolve(program[i].left, left)) return false;
        if (program[i].op != '\0' && !resolve(program[i].right, right)) return false;
        value = program[i].op == '\0' ? left : apply(program[i].op, left, right);
        return true;
    }
    return false;  // used before it is set
}

}  // namespace

// 2 + difficulty statements over 2 to 4 variables.
void generate_program_trace(std::int64_t difficulty, Draws& draws, ReasoningSample& sample) {
    const int variables = difficulty < 3 ? 2 : difficulty < 6 ? 3 : kVariables;
    const auto lines = static_cast<int>(2 + difficulty);
    std::int64_t values[kVariables] = {};
    bool set[kVariables] = {};
    int target = 0;
    sample.question = "Run: ";
    for (int i = 0; i < lines; ++i) {
        Statement line;
        std::int64_t result = 0;
        std::string known;
        if (i < 2) {  // the first two variables start from numbers
            target = i;
            line.left.number = result = draws.between(1, 9 * difficulty);
            known = fmt::format("{}", result);
        } else {
            target = static_cast<int>(draws.below(static_cast<std::uint32_t>(variables)));
            const auto operand = [&](Operand& o) {
                o.variable = static_cast<int>(draws.below(static_cast<std::uint32_t>(variables)));
                if (!set[o.variable]) o.variable = 0;
                return values[o.variable];
            };
            const std::int64_t left = operand(line.left);
            std::int64_t right = line.right.number = draws.between(2, 9);
            if (draws.below(2) == 0) right = operand(line.right);
            line.op = "+-*"[draws.below(3)];
            if (std::abs(apply(line.op, left, right)) > kLargest) line.op = '-';
            if (std::abs(apply(line.op, left, right)) > kLargest) line.op = '+';
            result = apply(line.op, left, right);
            known = fmt::format("{} {} {} = {}", left, line.op, right, result);
        }
        values[target] = result;
        set[target] = true;
        const std::string right =
            line.op == '\0' ? "" : fmt::format(" {} {}", line.op, operand_text(line.right));
        const char name = static_cast<char>('a' + target);
        sample.question +=
            fmt::format("{}{} = {}{}", i == 0 ? "" : "; ", name, operand_text(line.left), right);
        sample.steps.push_back(fmt::format("{} = {}", name, known));
    }
    // The variable set last, so that the last step holds the answer.
    sample.question += fmt::format(". What is {} at the end?", static_cast<char>('a' + target));
    sample.answer = fmt::format("{}", values[target]);
}

bool verify_program_trace(Text question, Text answer, std::string& why) {
    std::vector<Statement> program;
    int asked = 0;
    std::int64_t value = 0;
    if (!parse_program(question, program, asked))
        return refuse(why, "the question is not a program");
    if (!value_before(program, program.size(), asked, value))
        return refuse(why, "the program uses a variable before it is set");
    return integer_is(answer, value, why);
}

// A forward run of the parsed program must write the same trace.
bool check_program_trace(const ReasoningSample& sample, std::string& why) {
    std::vector<Statement> program;
    int asked = 0;
    if (!parse_program(sample.question, program, asked) || program.size() != sample.steps.size())
        return refuse(why, "one step per statement is needed");
    std::int64_t values[kVariables] = {};
    for (std::size_t i = 0; i < program.size(); ++i) {
        const Statement& line = program[i];
        const auto value = [&](const Operand& o) {
            return o.variable < 0 ? o.number : values[o.variable];
        };
        const std::int64_t left = value(line.left), right = value(line.right);
        const std::int64_t result = line.op == '\0' ? left : apply(line.op, left, right);
        const char name = static_cast<char>('a' + line.target);
        const std::string expected =
            line.op == '\0' ? fmt::format("{} = {}", name, left)
                            : fmt::format("{} = {} {} {} = {}", name, left, line.op, right, result);
        if (sample.steps[i] != expected) return refuse(why, fmt::format("step {} is wrong", i + 1));
        values[line.target] = result;
    }
    return integer_is(sample.answer, values[asked], why);
}

}  // namespace stoa::families
