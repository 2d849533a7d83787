// "Program: let k = 17; the sky is clear; let m = k; let q = m. What is q?": chains of assignments
// that lie apart, several of them, of which some are asked for.
#include <fmt/format.h>

#include <map>

#include "data/reasoning/families/far_text.h"
#include "data/reasoning/scan.h"

namespace stoa::families {
namespace {

constexpr Text kHead = "Program: ", kMiddle = ". What is ", kTail = "?";
constexpr std::size_t kLongestChain = 64;

// a ... z, then aa, ba, ...
std::string name_text(std::int64_t i) {
    std::string name(1, static_cast<char>('a' + i % 26));
    if (i >= 26) name += static_cast<char>('a' + i / 26 - 1);
    return name;
}

}  // namespace

// 2 + difficulty / 2 chains of as many assignments among 3 + 8 difficulty fillers.
void generate_variable_tracking(std::int64_t difficulty, Draws& draws, ReasoningSample& sample) {
    const FarShape shape{.facts = 2 + difficulty / 2,
                         .queries = 1 + difficulty / 3,
                         .span = 2 + difficulty / 2,
                         .fillers = 3 + 8 * difficulty,
                         .gap = 1 + 2 * difficulty,
                         .keys = 1 + 60,
                         .values = 900,
                         .filler_words = kFarFillers};
    const FarTask task = draw_far_task(FarTaskKind::variable_tracking, shape, draws);
    const auto text = [&](std::int64_t symbol) {
        return symbol < shape.keys ? name_text(symbol - 1)
                                   : std::to_string(100 + symbol - shape.keys);
    };
    sample.question = kHead;
    for (std::size_t i = 0; i < task.context.size(); ++i) {
        const auto& symbols = task.context[i].symbols;
        sample.question += i == 0 ? "" : "; ";
        sample.question += task.context[i].filler
                               ? far_filler(symbols[0] - shape.keys - shape.values)
                               : fmt::format("let {} = {}", text(symbols[1]), text(symbols[2]));
    }
    sample.question += kMiddle;
    for (const FarPhrase& q : task.queries) {
        std::string step;
        for (const std::int64_t symbol : q.symbols)
            step += fmt::format("{}{}", step.empty() ? "" : " = ", text(symbol));
        sample.question +=
            fmt::format("{}{}", sample.steps.empty() ? "" : ", ", text(q.symbols.front()));
        sample.steps.push_back(step);
        sample.answer = text(q.symbols.back());
    }
    sample.question += kTail;
}

// Backwards from the last name: the one assignment to it, and so on to a number.
bool verify_variable_tracking(Text question, Text answer, std::string& why) {
    const std::size_t at = question.rfind(kMiddle);
    if (!question.starts_with(kHead) || !question.ends_with(kTail) || at == Text::npos)
        return refuse(why, "the question is not a program");
    Text last = question.substr(at + kMiddle.size());
    last.remove_suffix(kTail.size());
    std::string value(last.substr(last.find_last_of(' ') + 1));  // npos + 1: the whole
    for (std::size_t hop = 0; hop < kLongestChain; ++hop) {
        value = find_phrase(question, fmt::format("let {} = ", value));
        std::int64_t number = 0;
        if (value.empty()) return refuse(why, "a name is not assigned to once");
        if (Scanner s(value); s.natural(number) && s.at_end())
            return integer_is(answer, number, why);
    }
    return refuse(why, "the assignments do not end in a number");
}

// A forward run of the program.
bool check_variable_tracking(const ReasoningSample& sample, std::string& why) {
    FarText far;
    if (!parse_far(sample.question, kHead, kMiddle, kTail, far))
        return refuse(why, "the question is not a program");
    std::map<Text, std::string> chain;  // "m" -> "m = k = 17"
    for (Text phrase : far.phrases) {
        if (!phrase.starts_with("let ")) continue;
        phrase.remove_prefix(4);
        const auto sides = split(phrase, " = ");
        if (sides.size() != 2) return refuse(why, "an assignment has two sides");
        const auto right = chain.find(sides[1]);
        chain[sides[0]] = fmt::format("{} = {}", sides[0],
                                      right == chain.end() ? std::string(sides[1]) : right->second);
    }
    std::vector<std::string> expected;
    for (const Text query : far.queries)
        expected.push_back(chain[query]);
    return steps_are(sample.steps, expected, why);
}

}  // namespace stoa::families
