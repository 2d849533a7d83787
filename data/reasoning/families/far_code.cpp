// "Code: const int k1 = 7; int f1(int n) { return n * 3 + k1; } struct Pair4 { ... }; ... What do
// the calls f1(4), f2(9) return?": definitions first, then much code that has nothing to do with
// them, then the calls.
#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "data/reasoning/exact.h"
#include "data/reasoning/families/far_text.h"
#include "data/reasoning/scan.h"

namespace stoa::families {
namespace {

constexpr Text kHead = "Code: ", kMiddle = " What do the calls ", kTail = " return?";
constexpr Text kConstant = "const int k", kFunction = "int f", kBody = "(int n) { return ";
constexpr std::size_t kMostDefinitions = 64, kDeepestCall = 8;

// "return n * factor - k<constant>", or "return f<inner>(n) + number"
struct Function {
    std::int64_t inner = 0;   // a function defined before; 0: none
    std::int64_t factor = 1;  // 1: not written
    bool minus = false;
    std::int64_t constant = 0;  // 0: `number` itself
    std::int64_t number = 0;
};
// f<i> and k<i> stand at i - 1.
struct Program {
    std::vector<std::int64_t> constants;
    std::vector<Function> functions;
};
struct Call {
    std::int64_t function = 1, argument = 0;
};

std::string definition(const Function& f, std::int64_t index) {
    const std::string head = f.inner != 0    ? fmt::format("f{}(n)", f.inner)
                             : f.factor != 1 ? fmt::format("n * {}", f.factor)
                                             : "n";
    return fmt::format("{}{}{}{} {} {}; }}", kFunction, index, kBody, head, f.minus ? '-' : '+',
                       f.constant != 0 ? fmt::format("k{}", f.constant) : std::to_string(f.number));
}

// Code between: nothing in it is named f or k.
std::string filler_code(std::int64_t kind, std::int64_t number) {
    switch (kind) {
        case 0:
            return fmt::format("void show{}(const char *text) {{ puts(text); }}", number);
        case 1:
            return fmt::format("struct Pair{} {{ int left; int right; }};", number);
        case 2:
            return fmt::format("static char buffer{}[{}];", number, 8 * number);
        case 3:
            return fmt::format("double half{}(double x) {{ return x / 2; }}", number);
        case 4:
            return fmt::format("bool empty{}(int size) {{ return size == 0; }}", number);
        case 5:
            return fmt::format("enum Mode{} {{ off, on }};", number);
        case 6:
            return fmt::format("int limit{} = {};", number, 3 * number + 1);
        default:
            return fmt::format("void reset{}(int *at) {{ *at = 0; }}", number);
    }
}

// The steps of one call, innermost first; their last number is the value.
bool trace(const Program& p, const Call& call, std::vector<std::string>& steps,
           std::int64_t& value) {
    if (call.function < 1 || call.function > std::ssize(p.functions)) return false;
    const Function& f = p.functions[static_cast<std::size_t>(call.function - 1)];
    std::int64_t left = call.argument, right = f.number;
    if (f.inner >= call.function || f.constant > std::ssize(p.constants)) return false;
    if (f.inner != 0 && !trace(p, {f.inner, call.argument}, steps, left)) return false;
    if (f.constant != 0) right = p.constants[static_cast<std::size_t>(f.constant - 1)];
    const std::int64_t product = checked_mul(left, f.factor);
    value = f.minus ? checked_sub(product, right) : checked_add(product, right);
    steps.push_back(fmt::format("f{}({}) = {}{} {} {} = {}", call.function, call.argument, left,
                                f.factor == 1 ? "" : fmt::format(" * {}", f.factor),
                                f.minus ? '-' : '+', right, value));
    return true;
}

bool parse_function(Scanner& s, Function& f) {
    if (s.literal("f")) {
        if (!s.natural(f.inner) || f.inner < 1 || !s.literal("(n)")) return false;
    } else {
        if (!s.literal("n") || (s.literal(" * ") && !s.natural(f.factor))) return false;
    }
    f.minus = s.literal(" - ");
    if (!f.minus && !s.literal(" + ")) return false;
    const bool ok = s.literal("k") ? s.natural(f.constant) && f.constant >= 1 : s.natural(f.number);
    return ok && s.literal("; }");
}

// All definitions of the text, which must be numbered in order.
bool parse_program(Text code, Program& p) {
    while (p.functions.size() + p.constants.size() <= kMostDefinitions) {
        const std::size_t k = code.find(kConstant), f = code.find(kFunction);
        if (k == Text::npos && f == Text::npos) return true;
        std::int64_t index = 0, value = 0;
        if (k < f) {
            Scanner s(code.substr(k + kConstant.size()));
            if (!s.natural(index) || index != std::ssize(p.constants) + 1 || !s.literal(" = ") ||
                !s.natural(value) || !s.literal(";"))
                return false;
            p.constants.push_back(value);
            code = s.rest();
        } else {
            Scanner s(code.substr(f + kFunction.size()));
            Function function;
            if (!s.natural(index) || index != std::ssize(p.functions) + 1 || !s.literal(kBody) ||
                !parse_function(s, function))
                return false;
            p.functions.push_back(function);
            code = s.rest();
        }
    }
    return false;
}

bool parse_call(Text text, Call& call) {
    Scanner s(text);
    return s.literal("f") && s.natural(call.function) && s.literal("(") &&
           s.natural(call.argument) && s.literal(")") && s.at_end();
}

bool cut_question(Text question, Text& code, std::vector<Text>& calls) {
    const std::size_t at = question.rfind(kMiddle);
    if (!question.starts_with(kHead) || !question.ends_with(kTail) || at == Text::npos ||
        at + kMiddle.size() + kTail.size() > question.size())
        return false;
    code = question.substr(kHead.size(), at - std::min(at, kHead.size()));
    question.remove_prefix(at + kMiddle.size());
    question.remove_suffix(kTail.size());
    calls = split(question, ", ");
    return true;
}

// What stands between the only `begin` of the code and `end`; empty: there is none, or several.
Text only_between(Text code, const std::string& begin, Text end) {
    const std::size_t at = code.find(begin);
    if (at == Text::npos || code.find(begin, at + 1) != Text::npos) return {};
    code.remove_prefix(at + begin.size());
    return code.substr(0, code.find(end));
}

// f<name>(argument) by writing numbers for names in the text of its body.
std::optional<std::int64_t> substitute(Text code, Text name, std::int64_t argument,
                                       std::size_t depth) {
    const Text body = only_between(code, fmt::format("int {}{}", name, kBody), ";");
    if (body.empty() || depth == kDeepestCall) return {};
    std::string expression;
    for (std::size_t i = 0; i < body.size();) {
        std::size_t end = i;
        while (end < body.size() && std::isalnum(static_cast<unsigned char>(body[end])) != 0)
            ++end;
        const Text word = body.substr(i, end - i);
        if (word == "n") {
            expression += std::to_string(argument);
        } else if (word.starts_with('f') && body.substr(end).starts_with("(n)")) {
            const auto value = substitute(code, word, argument, depth + 1);
            if (!value) return {};
            expression += fmt::format("({})", *value);
            end += 3;
        } else if (word.starts_with('k')) {
            expression += only_between(code, fmt::format("const int {} = ", word), ";");
        } else {
            expression += word.empty() ? body.substr(i, 1) : word;
            end = std::max(end, i + 1);
        }
        i = end;
    }
    const auto value = evaluate(expression);
    if (!value || value->den != 1) return {};
    return value->num;
}

}  // namespace

// 1 + difficulty / 2 constants, 2 + difficulty / 2 functions and 1 + difficulty / 2 calls; behind
// the definitions nearly all of 1 + 7 difficulty pieces of other code.
void generate_far_code(std::int64_t difficulty, Draws& draws, ReasoningSample& sample) {
    const std::int64_t constants = 1 + difficulty / 2, functions = 2 + difficulty / 2;
    const FarShape shape{.facts = constants + functions,
                         .fillers = 1 + 7 * difficulty,
                         .gap = 1 + 6 * difficulty,
                         .keys = constants + functions,
                         .values = 1,
                         .filler_words = 8};
    const FarTask layout = draw_far_task(FarTaskKind::recall, shape, draws);
    Program p;
    sample.question = kHead;
    for (std::size_t i = 0; i < layout.context.size(); ++i) {
        sample.question += i == 0 ? "" : " ";
        if (const FarPhrase& piece = layout.context[i]; piece.filler) {
            sample.question += filler_code(piece.symbols[0] - shape.keys - shape.values,
                                           static_cast<std::int64_t>(i) + 1);
        } else if (std::ssize(p.constants) < constants) {
            p.constants.push_back(draws.between(2, 90));
            sample.question +=
                fmt::format("{}{} = {};", kConstant, p.constants.size(), p.constants.back());
        } else {
            const std::int64_t defined = std::ssize(p.functions);
            Function f{.minus = draws.below(2) == 0, .number = draws.between(2, 40)};
            const bool calls = defined > 0 && draws.below(2) == 0;
            if (calls) f.inner = draws.between(std::max<std::int64_t>(1, defined - 2), defined);
            if (!calls && draws.below(3) != 0) f.factor = draws.between(2, 9);
            if (draws.below(3) != 0) f.constant = draws.between(1, constants);
            if (f.constant != 0) f.number = 0;
            p.functions.push_back(f);
            sample.question += definition(f, defined + 1);
        }
    }
    sample.question += kMiddle;
    std::int64_t value = 0;
    const char* before = "";
    for (const std::int64_t f : draw_distinct(functions, 1 + difficulty / 2, draws)) {
        const Call call{f + 1, draws.between(2, 9 + 4 * difficulty)};
        sample.question += fmt::format("{}f{}({})", before, call.function, call.argument);
        (void)trace(p, call, sample.steps, value);
        before = ", ";
    }
    sample.question += kTail;
    sample.answer = std::to_string(value);
}

bool verify_far_code(Text question, Text answer, std::string& why) {
    Text code;
    std::vector<Text> calls;
    Call last;
    if (!cut_question(question, code, calls) || !parse_call(calls.back(), last))
        return refuse(why, "the question is not code with calls");
    const auto value = substitute(code, fmt::format("f{}", last.function), last.argument, 0);
    if (!value) return refuse(why, "the last call has no value");
    return integer_is(answer, *value, why);
}

bool check_far_code(const ReasoningSample& sample, std::string& why) {
    Text code;
    std::vector<Text> calls;
    Program p;
    if (!cut_question(sample.question, code, calls) || !parse_program(code, p))
        return refuse(why, "the question is not code with calls");
    std::vector<std::string> expected;
    for (const Text text : calls) {
        Call call;
        std::int64_t value = 0;
        if (!parse_call(text, call) || !trace(p, call, expected, value))
            return refuse(why, fmt::format("{} cannot be called", text));
    }
    return steps_are(sample.steps, expected, why);
}

}  // namespace stoa::families
