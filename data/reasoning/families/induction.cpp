// "Text: amber; birch; cedar; dune; amber; elm. Go on after birch.": what followed a word the one
// time that it was read, for runs of words among other words.
#include <fmt/format.h>

#include <algorithm>

#include "data/reasoning/families/far_text.h"
#include "data/reasoning/scan.h"

namespace stoa::families {
namespace {

constexpr Text kHead = "Text: ", kTail = " words each.";
constexpr Text kMiddle = ". Go on after ";

// "a, b with 3" -> the words and the count
bool parse_induction(Text question, FarText& far, std::size_t& count) {
    std::int64_t n = 0;
    const std::size_t with = question.rfind(" with ");
    if (with == Text::npos) return false;
    Scanner s(question.substr(with + 6));
    if (!s.natural(n) || n < 1 || n > kFarWords || s.rest() != kTail) return false;
    count = static_cast<std::size_t>(n);
    return parse_far(question, kHead, kMiddle, question.substr(with), far);
}

}  // namespace

// 1 + difficulty / 2 runs of 4 to 7 words among 6 + 28 difficulty others.
void generate_induction(std::int64_t difficulty, Draws& draws, ReasoningSample& sample) {
    const FarShape shape{.facts = 1 + difficulty / 2,
                         .queries = 1 + difficulty / 3,
                         .span = 4 + difficulty / 3,
                         .fillers = 6 + 28 * difficulty,
                         .gap = 2 + 6 * difficulty,
                         .keys = 0,
                         .values = kFarWords};
    const FarTask task = draw_far_task(FarTaskKind::induction, shape, draws);
    const auto words = [](const FarPhrase& p, std::size_t begin, const char* separator) {
        std::string text;
        for (std::size_t i = begin; i < p.symbols.size(); ++i)
            text += fmt::format("{}{}", i == begin ? "" : separator, far_word(p.symbols[i]));
        return text;
    };
    sample.question = kHead;
    for (std::size_t i = 0; i < task.context.size(); ++i)
        sample.question += (i == 0 ? "" : "; ") + words(task.context[i], 0, "; ");
    sample.question += kMiddle;
    for (const FarPhrase& q : task.queries) {
        const char* first = far_word(q.symbols[0]);
        sample.question += fmt::format("{}{}", sample.steps.empty() ? "" : ", ", first);
        sample.answer = words(q, 1, ", ");
        sample.steps.push_back(fmt::format("{}: {}", first, sample.answer));
    }
    sample.question += fmt::format(" with {}{}", shape.span - 1, kTail);
}

// The word in the text, and what stands behind it there.
bool verify_induction(Text question, Text answer, std::string& why) {
    FarText far;
    std::size_t count = 0;
    if (!parse_induction(question, far, count))
        return refuse(why, "the question is not a text to go on with");
    const Text last = far.queries.back();
    const std::string text =
        fmt::format("; {};", question.substr(kHead.size(), question.find(kMiddle) - kHead.size()));
    const std::string word = fmt::format("; {};", last);
    std::size_t at = text.find(word);
    if (at == std::string::npos || text.find(word, at + 1) != std::string::npos)
        return refuse(why, fmt::format("\"{}\" is not in the text once", last));
    std::string following;
    at += word.size();
    for (std::size_t i = 0; i < count && at < text.size(); ++i) {
        const std::size_t end = text.find(';', at);
        if (end == std::string::npos) return refuse(why, "the text ends too early");
        following += (i == 0 ? "" : ",") + text.substr(at, end - at);
        at = end + 1;
    }
    // " b, c" as answered, " b, c" as found: spaces around a word do not count
    const auto given = split(answer, ","), found = split(following, ",");
    const bool same = std::ranges::equal(
        given, found, [](Text a, Text b) { return trim(a) == trim(b) && !trim(a).empty(); });
    return same || refuse(why, fmt::format("what follows is {}", following));
}

bool check_induction(const ReasoningSample& sample, std::string& why) {
    FarText far;
    std::size_t count = 0;
    if (!parse_induction(sample.question, far, count)) return refuse(why, "not a text to go on");
    std::vector<std::string> expected;
    for (const Text query : far.queries) {
        auto word = std::ranges::find(far.phrases, query);
        std::string step = fmt::format("{}: ", query);
        for (std::size_t i = 0; i < count && word != far.phrases.end(); ++i)
            if (++word != far.phrases.end()) step += fmt::format("{}{}", i == 0 ? "" : ", ", *word);
        expected.push_back(step);
    }
    return steps_are(sample.steps, expected, why);
}

}  // namespace stoa::families
