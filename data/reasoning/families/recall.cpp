// "Note: the grass is wet; birch is 417; amber is 38. Recall amber, birch.": facts among filler.
// Three families: associative_recall (many facts, many questions), needle (one code of several
// digits) and multi_needle (keys of two words that other facts share).
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "data/reasoning/families/far_text.h"

namespace stoa::families {
namespace {

constexpr Text kHead = "Note: ", kMiddle = ". Recall ", kTail = ".";

// fact: the phrase of a fact's or a query's symbols; its last word is the value.
template <class Fact>
void write_recall(const FarTask& task, const FarShape& shape, ReasoningSample& sample,
                  const Fact& fact) {
    const char* before = "";
    sample.question = kHead;
    for (const FarPhrase& p : task.context) {
        sample.question += before;
        sample.question +=
            p.filler ? far_filler(p.symbols[0] - shape.keys - shape.values) : fact(p);
        before = "; ";
    }
    before = "";
    sample.question += kMiddle;
    for (const FarPhrase& q : task.queries) {
        sample.steps.push_back(fact(q));
        const std::string& step = sample.steps.back();
        const std::size_t is = step.rfind(" is ");
        sample.question += before + step.substr(0, is);
        sample.answer = step.substr(is + 4);
        before = ", ";
    }
    sample.question += kTail;
}

bool is_number(Text text) {
    return !text.empty() && text.size() <= 18 && text.find_first_not_of("0123456789") == Text::npos;
}

}  // namespace

// 4 + 3 difficulty facts among 2 + 8 difficulty fillers, at least half of these after the last.
void generate_associative_recall(std::int64_t difficulty, Draws& draws, ReasoningSample& sample) {
    const FarShape shape{.facts = 4 + 3 * difficulty,
                         .queries = 2 + difficulty,
                         .fillers = 2 + 8 * difficulty,
                         .gap = 1 + 4 * difficulty,
                         .keys = kFarWords,
                         .values = 900,
                         .filler_words = kFarFillers};
    const FarTask task = draw_far_task(FarTaskKind::recall, shape, draws);
    write_recall(task, shape, sample, [&](const FarPhrase& p) {
        return fmt::format("{} is {}", far_word(p.symbols[0]), 100 + p.symbols[1] - shape.keys);
    });
}

// One code of 3 to 8 different digits among 4 + 11 difficulty fillers.
void generate_needle(std::int64_t difficulty, Draws& draws, ReasoningSample& sample) {
    const FarShape shape{.span = 3 + difficulty / 2,
                         .fillers = 4 + 11 * difficulty,
                         .gap = 1 + difficulty,
                         .keys = 1,
                         .values = 10,
                         .filler_words = kFarFillers};
    const FarTask task = draw_far_task(FarTaskKind::needle, shape, draws);
    write_recall(task, shape, sample, [&](const FarPhrase& p) {
        std::string text = "the code is ";
        for (std::size_t i = 1; i < p.symbols.size(); ++i)
            text += static_cast<char>('0' + p.symbols[i] - shape.keys);
        return text;
    });
}

// 3 + 2 difficulty facts, whose first words and second words meet, among 2 + 8 difficulty fillers.
void generate_multi_needle(std::int64_t difficulty, Draws& draws, ReasoningSample& sample) {
    const std::int64_t half = 4 + difficulty;  // of each kind of word
    const FarShape shape{.facts = 3 + 2 * difficulty,
                         .queries = 2 + difficulty / 2,
                         .fillers = 2 + 8 * difficulty,
                         .gap = 1 + 3 * difficulty,
                         .keys = 2 * half,
                         .values = 900,
                         .filler_words = kFarFillers};
    const FarTask task = draw_far_task(FarTaskKind::multi_needle, shape, draws);
    write_recall(task, shape, sample, [&](const FarPhrase& p) {
        return fmt::format("the {} {} is {}", far_adjective(p.symbols[0]),
                           far_word(p.symbols[1] - half), 100 + p.symbols[2] - shape.keys);
    });
}

bool verify_recall(Text question, Text answer, std::string& why) {
    const std::size_t at = question.rfind(kMiddle);
    if (!question.starts_with(kHead) || at == Text::npos || !question.ends_with(kTail))
        return refuse(why, "the question is not a note with keys to recall");
    Text last = question.substr(at + kMiddle.size());
    last.remove_suffix(kTail.size());
    const std::size_t comma = last.rfind(", ");
    if (comma != Text::npos) last.remove_prefix(comma + 2);
    const std::string value = find_phrase(question, fmt::format("{} is ", last));
    if (!is_number(value)) return refuse(why, fmt::format("\"{}\" has no single number", last));
    return trim(answer) == value ||
           refuse(why, fmt::format("{} is {}, not what is answered", last, value));
}

// The facts by key, from the parts of the question; one step for each query.
bool check_recall(const ReasoningSample& sample, std::string& why) {
    FarText far;
    if (!parse_far(sample.question, kHead, kMiddle, kTail, far))
        return refuse(why, "the question is not a note with keys to recall");
    std::map<Text, Text> facts;
    for (const Text phrase : far.phrases)
        if (const std::size_t is = phrase.rfind(" is "); is != Text::npos)
            facts[phrase.substr(0, is)] = phrase.substr(is + 4);
    std::vector<std::string> expected;
    for (const Text key : far.queries)
        expected.push_back(fmt::format("{} is {}", key, facts[key]));
    return steps_are(sample.steps, expected, why) &&
           (facts[far.queries.back()] == trim(sample.answer) ||
            refuse(why, "the steps do not lead to the answer"));
}

}  // namespace stoa::families
