// "Sort 7, 3, 9 in ascending order.": selection sort, one extreme at a time.
#include <fmt/format.h>

#include <algorithm>

#include "data/reasoning/families/families.h"
#include "data/reasoning/scan.h"

namespace stoa::families {
namespace {

constexpr std::size_t kMostItems = 64;

bool parse_sort(Text question, std::vector<std::int64_t>& items, bool& descending) {
    Scanner s(question);
    if (!s.literal("Sort ") || !s.integers(", ", kMostItems, items)) return false;
    descending = s.literal(" in descending");
    return (descending || s.literal(" in ascending")) && s.literal(" order.") && s.at_end();
}

}  // namespace

// Difficulty 1: three or four distinct digits, ascending. Then more and larger items, descending
// order from 3, repeated items from 4, negative ones from 5.
void generate_compare_sort(std::int64_t difficulty, Draws& draws, ReasoningSample& sample) {
    const std::int64_t count = 2 + difficulty + draws.between(0, 1);
    const std::int64_t most = difficulty == 1 ? 9 : difficulty <= 4 ? 99 : 100 * difficulty;
    const std::int64_t least = difficulty < 5 ? 0 : -most;
    const bool descending = difficulty >= 3 && draws.below(2) == 1;
    std::vector<std::int64_t> left;
    while (static_cast<std::int64_t>(left.size()) < count) {
        const std::int64_t item = draws.between(least, most);
        if (difficulty < 4 && std::find(left.begin(), left.end(), item) != left.end()) continue;
        left.push_back(item);
    }
    sample.question = fmt::format("Sort {} in {} order.", join(left, ", "),
                                  descending ? "descending" : "ascending");
    std::vector<std::int64_t> sorted;
    while (left.size() > 1) {
        const auto next = descending ? std::max_element(left.begin(), left.end())
                                     : std::min_element(left.begin(), left.end());
        sample.steps.push_back(
            fmt::format("{} {} = {}", descending ? "max" : "min", join(left, " "), *next));
        sorted.push_back(*next);
        left.erase(next);
    }
    sorted.push_back(left[0]);
    sample.answer = join(sorted, ", ");
}

// A permutation of the items (equal counts), in order.
bool verify_compare_sort(Text question, Text answer, std::string& why) {
    std::vector<std::int64_t> items, sorted;
    bool descending = false;
    if (!parse_sort(question, items, descending))
        return refuse(why, "the question is not a list to sort");
    Scanner s(answer, true);
    if (!s.integers(",", kMostItems, sorted) || !s.at_end())
        return refuse(why, "the answer is not a list of integers");
    if (sorted.size() != items.size()) return refuse(why, "the answer has another length");
    for (const std::int64_t item : items)
        if (std::count(items.begin(), items.end(), item) !=
            std::count(sorted.begin(), sorted.end(), item))
            return refuse(why, fmt::format("{} occurs another number of times", item));
    for (std::size_t i = 1; i < sorted.size(); ++i)
        if (descending ? sorted[i - 1] < sorted[i] : sorted[i - 1] > sorted[i])
            return refuse(why, fmt::format("{}, {} is out of order", sorted[i - 1], sorted[i]));
    return true;
}

// Each step names what is left and its extreme; the extremes and the last item are the answer.
bool check_compare_sort(const ReasoningSample& sample, std::string& why) {
    std::vector<std::int64_t> left, listed, picked;
    bool descending = false;
    if (!parse_sort(sample.question, left, descending)) return refuse(why, "not a list to sort");
    for (std::size_t i = 0; i < sample.steps.size(); ++i) {
        Scanner s(sample.steps[i]);
        std::int64_t extreme = 0;
        const bool ok = s.literal(descending ? "max " : "min ") &&
                        s.integers(" ", kMostItems, listed) && s.literal(" = ") &&
                        s.integer(extreme) && s.at_end();
        if (!ok || listed != left)
            return refuse(why, fmt::format("step {} does not list what is left", i + 1));
        std::size_t best = 0;
        for (std::size_t j = 1; j < left.size(); ++j)
            if (descending ? left[j] > left[best] : left[j] < left[best]) best = j;
        if (left[best] != extreme)
            return refuse(why, fmt::format("step {}: {} is not the extreme", i + 1, extreme));
        picked.push_back(extreme);
        left.erase(left.begin() + static_cast<std::ptrdiff_t>(best));
    }
    if (left.size() != 1) return refuse(why, "the steps stop too early");
    picked.push_back(left[0]);
    Scanner s(sample.answer, true);
    if (!s.integers(",", kMostItems, listed) || listed != picked)
        return refuse(why, "the steps do not lead to the answer");
    return true;
}

}  // namespace stoa::families
