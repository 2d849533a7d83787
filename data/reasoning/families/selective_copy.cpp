// "Copy the numbers from: the grass is wet; 41; the sky is clear; 7.": what counts, in order,
// without the filler between.
#include <fmt/format.h>

#include "data/reasoning/families/far_text.h"
#include "data/reasoning/scan.h"

namespace stoa::families {
namespace {

constexpr Text kHead = "Copy the numbers from: ";
constexpr std::size_t kMostNumbers = 64;

std::string step_text(std::size_t i, std::int64_t number) {
    return fmt::format("number {} is {}", i + 1, number);
}

}  // namespace

// 2 + 2 difficulty numbers among 4 + 10 difficulty fillers.
void generate_selective_copy(std::int64_t difficulty, Draws& draws, ReasoningSample& sample) {
    const FarShape shape{.facts = 2 + 2 * difficulty,
                         .fillers = 4 + 10 * difficulty,
                         .gap = 1 + difficulty,
                         .keys = 1,
                         .values = 90,
                         .filler_words = kFarFillers};
    const FarTask task = draw_far_task(FarTaskKind::selective_copy, shape, draws);
    const auto number = [&](std::int64_t symbol) { return 10 + symbol - shape.keys; };
    const char* before = "";
    sample.question = kHead;
    for (const FarPhrase& p : task.context) {
        sample.question += before;
        sample.question += p.filler ? far_filler(p.symbols[0] - shape.keys - shape.values)
                                    : std::to_string(number(p.symbols[0]));
        before = "; ";
    }
    sample.question += '.';
    std::vector<std::int64_t> copied;
    for (std::size_t i = 1; i < task.queries[0].symbols.size(); ++i) {
        copied.push_back(number(task.queries[0].symbols[i]));
        sample.steps.push_back(step_text(i - 1, copied.back()));
    }
    sample.answer = join(copied, ", ");
}

// Any run of digits in the text is a number to copy: the filler has none.
bool verify_selective_copy(Text question, Text answer, std::string& why) {
    if (!question.starts_with(kHead) || !question.ends_with('.'))
        return refuse(why, "the question is not a text to copy numbers from");
    std::vector<std::int64_t> numbers, answered;
    Scanner s(answer, true);
    if (!s.integers(",", kMostNumbers, answered) || !s.at_end())
        return refuse(why, "the answer is not a list of numbers");
    for (Text rest = question;;) {
        const std::size_t at = rest.find_first_of("0123456789");
        if (at == Text::npos) break;
        rest.remove_prefix(at);
        Scanner digits(rest);
        std::int64_t number = 0;
        if (!digits.natural(number)) return refuse(why, "a number is not in canonical form");
        numbers.push_back(number);
        rest = digits.rest();
    }
    return (!numbers.empty() && numbers == answered) ||
           refuse(why, fmt::format("the numbers are {}", join(numbers, ", ")));
}

// Phrase by phrase: those that are a number.
bool check_selective_copy(const ReasoningSample& sample, std::string& why) {
    std::vector<std::string> expected;
    Text body = sample.question;
    body.remove_prefix(kHead.size());
    body.remove_suffix(1);
    for (const Text phrase : split(body, "; ")) {
        std::int64_t number = 0;
        if (parse_integer_answer(phrase, number))
            expected.push_back(step_text(expected.size(), number));
    }
    return steps_are(sample.steps, expected, why);
}

}  // namespace stoa::families
