// "Given: a = 17; the grass is wet; c = 4; ... . What is a - c?": the premises stand at the
// beginning, the sum over them at the end.
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "data/reasoning/exact.h"
#include "data/reasoning/families/far_text.h"
#include "data/reasoning/scan.h"

namespace stoa::families {
namespace {

constexpr Text kHead = "Given: ", kMiddle = ". What is ", kTail = "?";

struct Term {
    bool minus = false;
    Text name;
};

// "a - c + k" -> its terms
bool parse_terms(Text sum, std::vector<Term>& terms) {
    for (const Text word : split(sum, " ")) {
        const bool sign = word == "+" || word == "-";
        const bool wants_sign = !terms.empty() && !terms.back().name.empty();
        if (sign != wants_sign || word.empty()) return false;
        if (sign)
            terms.push_back({.minus = word == "-", .name = {}});
        else if (terms.empty())
            terms.push_back({.minus = false, .name = word});
        else
            terms.back().name = word;
    }
    return !terms.empty() && !terms.back().name.empty();
}

// The first step names a premise, each other one a premise and the sum so far.
std::string step_text(const Term& term, std::int64_t value, bool first, std::int64_t& sum) {
    if (first) {
        sum = value;
        return fmt::format("{} = {}", term.name, value);
    }
    const std::int64_t before = sum;
    sum = term.minus ? checked_sub(sum, value) : checked_add(sum, value);
    return fmt::format("{} = {}, {} {} {} = {}", term.name, value, before, term.minus ? '-' : '+',
                       value, sum);
}

}  // namespace

// 3 + difficulty premises, 2 + difficulty / 2 terms, and 2 + 10 difficulty fillers, nearly all of
// them behind the premises.
void generate_far_arithmetic(std::int64_t difficulty, Draws& draws, ReasoningSample& sample) {
    const FarShape shape{.facts = 3 + difficulty,
                         .queries = 2 + difficulty / 2,
                         .fillers = 2 + 10 * difficulty,
                         .gap = 1 + 9 * difficulty,
                         .keys = 26,
                         .values = difficulty < 4 ? 98 : 998,
                         .filler_words = kFarFillers};
    const FarTask task = draw_far_task(FarTaskKind::recall, shape, draws);
    const auto name = [](const FarPhrase& p) {
        return std::string(1, static_cast<char>('a' + p.symbols[0]));
    };
    const auto value = [&](const FarPhrase& p) { return 2 + p.symbols[1] - shape.keys; };
    sample.question = kHead;
    for (std::size_t i = 0; i < task.context.size(); ++i) {
        const FarPhrase& p = task.context[i];
        sample.question += i == 0 ? "" : "; ";
        sample.question += p.filler ? far_filler(p.symbols[0] - shape.keys - shape.values)
                                    : fmt::format("{} = {}", name(p), value(p));
    }
    sample.question += kMiddle;
    std::int64_t sum = 0;
    for (const FarPhrase& q : task.queries) {
        const bool first = sample.steps.empty(), minus = !first && draws.below(2) == 0;
        const std::string text = name(q);
        sample.question += fmt::format("{}{}", first ? "" : minus ? " - " : " + ", text);
        sample.steps.push_back(step_text({minus, text}, value(q), first, sum));
    }
    sample.question += kTail;
    sample.answer = std::to_string(sum);
}

// Added from the last term to the first, each premise looked up in the text.
bool verify_far_arithmetic(Text question, Text answer, std::string& why) {
    const std::size_t at = question.rfind(kMiddle);
    std::vector<Term> terms;
    if (!question.starts_with(kHead) || !question.ends_with(kTail) || at == Text::npos ||
        at + kMiddle.size() + kTail.size() > question.size())
        return refuse(why, "the question is not a sum over premises");
    Text expression = question.substr(at + kMiddle.size());
    expression.remove_suffix(kTail.size());
    if (!parse_terms(expression, terms)) return refuse(why, "the sum has no terms");
    std::int64_t sum = 0;
    for (std::size_t i = terms.size(); i-- > 0;) {
        const std::string premise = find_phrase(question, fmt::format("{} = ", terms[i].name));
        std::int64_t value = 0;
        if (Scanner s(premise); !s.integer(value) || !s.at_end())
            return refuse(why, fmt::format("{} is not given once", terms[i].name));
        sum = checked_add(sum, terms[i].minus ? -value : value);
    }
    return integer_is(answer, sum, why);
}

bool check_far_arithmetic(const ReasoningSample& sample, std::string& why) {
    FarText far;
    std::vector<Term> terms;
    if (!parse_far(sample.question, kHead, kMiddle, kTail, far) || far.queries.size() != 1 ||
        !parse_terms(far.queries[0], terms))
        return refuse(why, "the question is not a sum over premises");
    std::map<Text, std::int64_t> given;
    for (const Text phrase : far.phrases)
        if (const std::size_t is = phrase.find(" = "); is != Text::npos)
            if (Scanner s(phrase.substr(is + 3)); !s.integer(given[phrase.substr(0, is)]))
                return refuse(why, "a premise is not a number");
    std::vector<std::string> expected;
    std::int64_t sum = 0;
    for (const Term& term : terms)
        expected.push_back(step_text(term, given[term.name], expected.empty(), sum));
    return steps_are(sample.steps, expected, why);
}

}  // namespace stoa::families
