// "Mia has 3 boxes with 4 pens each. Mia gets 5 pens. How many pens does Mia have now?": quantities
// that grow and shrink, with sentences about somebody else between them.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "data/reasoning/exact.h"
#include "data/reasoning/families/families.h"
#include "data/reasoning/scan.h"
#include "data/reasoning/steps.h"

namespace stoa::families {
namespace {

constexpr std::array kNames = {"Mia", "Tom", "Ada", "Ben", "Eva", "Leo", "Zoe", "Max"};
constexpr std::array kItems = {"pens",   "apples", "coins",  "books",
                               "shells", "cards",  "stamps", "nuts"};

template <std::size_t N>
bool one_of(const std::array<const char*, N>& list, Text word) {
    return std::find(list.begin(), list.end(), word) != list.end();
}

struct Fact {
    enum class Kind { has, has_boxes, gets, buys_boxes, gives } kind = Kind::has;
    std::string who, item;
    std::int64_t count = 0, each = 1;
};

/// One sentence, without its full stop.
bool parse_fact(Scanner& s, Fact& fact) {
    using Kind = Fact::Kind;
    fact.who = s.word();
    if (!one_of(kNames, fact.who)) return false;
    if (s.literal(" has "))
        fact.kind = Kind::has;
    else if (s.literal(" gets "))
        fact.kind = Kind::gets;
    else if (s.literal(" buys "))
        fact.kind = Kind::buys_boxes;
    else if (s.literal(" gives away "))
        fact.kind = Kind::gives;
    else
        return false;
    if (!s.natural(fact.count)) return false;
    if (s.literal(" boxes with ")) {
        if (fact.kind == Kind::has) fact.kind = Kind::has_boxes;
        if (!s.natural(fact.each) || !s.literal(" ")) return false;
        fact.item = s.word();
        return one_of(kItems, fact.item) && s.literal(" each") &&
               (fact.kind == Kind::has_boxes || fact.kind == Kind::buys_boxes);
    }
    if (fact.kind == Kind::buys_boxes || !s.literal(" ")) return false;
    fact.item = s.word();
    return one_of(kItems, fact.item);
}

bool parse_story(Text question, std::vector<Fact>& facts, std::string& who, std::string& item) {
    Scanner s(question);
    while (!s.literal("How many ")) {
        facts.emplace_back();
        if (facts.size() > 32 || !parse_fact(s, facts.back()) || !s.literal(". ")) return false;
    }
    item = s.word();
    if (!s.literal(" does ")) return false;
    who = s.word();
    return s.literal(" have now?") && s.at_end() && one_of(kItems, item) && one_of(kNames, who);
}

std::string sentence(const Fact& f) {
    using Kind = Fact::Kind;
    switch (f.kind) {
        case Kind::has:
            return fmt::format("{} has {} {}. ", f.who, f.count, f.item);
        case Kind::gets:
            return fmt::format("{} gets {} {}. ", f.who, f.count, f.item);
        case Kind::gives:
            return fmt::format("{} gives away {} {}. ", f.who, f.count, f.item);
        case Kind::has_boxes:
            return fmt::format("{} has {} boxes with {} {} each. ", f.who, f.count, f.each, f.item);
        case Kind::buys_boxes:
            return fmt::format("{} buys {} boxes with {} {} each. ", f.who, f.count, f.each,
                               f.item);
    }
    return "";
}

/// Adds the steps of one fact about the asked quantity; returns the new total.
std::int64_t work_out(const Fact& fact, std::int64_t total, std::vector<std::string>& steps) {
    using Kind = Fact::Kind;
    const std::int64_t amount = checked_mul(fact.count, fact.each);
    if (fact.kind == Kind::has_boxes || fact.kind == Kind::buys_boxes)
        steps.push_back(fmt::format("{} * {} = {}", fact.count, fact.each, amount));
    if (fact.kind == Kind::has || fact.kind == Kind::has_boxes) return amount;
    const bool gives = fact.kind == Kind::gives;
    const std::int64_t next = gives ? checked_sub(total, amount) : checked_add(total, amount);
    steps.push_back(fmt::format("{} {} {} = {}", total, gives ? '-' : '+', amount, next));
    return next;
}

}  // namespace

// 1 + (difficulty + 1) / 2 changes; numbers to 9 + 5 per level; from difficulty 4, distractors.
void generate_word_problem(std::int64_t difficulty, Draws& draws, ReasoningSample& sample) {
    using Kind = Fact::Kind;
    const std::int64_t most = 9 + 5 * (difficulty - 1);
    const std::string who = kNames[draws.below(kNames.size())];
    const std::string item = kItems[draws.below(kItems.size())];
    const bool in_boxes = draws.below(2) == 1;
    Fact fact{in_boxes ? Kind::has_boxes : Kind::has, who, item, draws.between(2, most), 1};
    if (in_boxes) fact.each = draws.between(2, most);
    sample.question = sentence(fact);
    std::int64_t total = work_out(fact, 0, sample.steps);
    const std::int64_t changes = 1 + (difficulty + 1) / 2;
    for (std::int64_t i = 0; i < changes; ++i) {
        if (difficulty >= 4 && draws.below(3) == 0) {  // somebody else's, or something else
            Fact other{Kind::gets, who, item, draws.between(2, most), 1};
            const bool other_person = draws.below(2) == 0;
            std::string& changed = other_person ? other.who : other.item;
            while (other.who == who && other.item == item)
                changed = (other_person ? kNames : kItems)[draws.below(kNames.size())];
            sample.question += sentence(other);
        }
        const std::uint32_t kind = draws.below(total > 1 ? 3 : 2);
        fact = {kind == 0   ? Kind::gets
                : kind == 1 ? Kind::buys_boxes
                            : Kind::gives,
                who, item, 0, 1};
        fact.count = draws.between(2, fact.kind == Kind::gives ? std::min(most, total) : most);
        if (fact.kind == Kind::buys_boxes) fact.each = draws.between(2, most);
        sample.question += sentence(fact);
        total = work_out(fact, total, sample.steps);
    }
    sample.question += fmt::format("How many {} does {} have now?", item, who);
    sample.answer = fmt::format("{}", total);
}

// All that this person got of this item minus all that was given away, in any order.
bool verify_word_problem(Text question, Text answer, std::string& why) {
    std::vector<Fact> facts;
    std::string who, item;
    if (!parse_story(question, facts, who, item)) return refuse(why, "the question is not a story");
    std::int64_t got = 0, given = 0, starts = 0;
    for (const Fact& fact : facts) {
        if (fact.who != who || fact.item != item) continue;
        const std::int64_t amount = checked_mul(fact.count, fact.each);
        starts += fact.kind == Fact::Kind::has || fact.kind == Fact::Kind::has_boxes;
        auto& side = fact.kind == Fact::Kind::gives ? given : got;
        side = checked_add(side, amount);
    }
    if (starts != 1) return refuse(why, "the story does not say once what there is at first");
    return integer_is(answer, checked_sub(got, given), why);
}

// The equations hold, and they follow the story.
bool check_word_problem(const ReasoningSample& sample, std::string& why) {
    std::vector<Fact> facts;
    std::string who, item;
    if (!parse_story(sample.question, facts, who, item)) return refuse(why, "not a story");
    if (!chains_lead_to(sample.steps, sample.answer, why)) return false;
    std::vector<std::string> expected;
    std::int64_t total = 0;
    for (const Fact& fact : facts)
        if (fact.who == who && fact.item == item) total = work_out(fact, total, expected);
    return sample.steps == expected || refuse(why, "a step does not follow the story");
}

}  // namespace stoa::families
