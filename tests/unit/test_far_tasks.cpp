#include <algorithm>
#include <map>
#include <set>
#include <span>

#include "data/reasoning/engine.h"
#include "data/reasoning/far_tasks.h"
#include "kernels/core/error.h"
#include "tests/support/catch.h"
#include "tests/support/quality_tasks.h"

using namespace stoa;

namespace {

constexpr FarTaskKind kAll[] = {FarTaskKind::recall,           FarTaskKind::selective_copy,
                                FarTaskKind::numbered_copy,    FarTaskKind::induction,
                                FarTaskKind::needle,           FarTaskKind::multi_needle,
                                FarTaskKind::variable_tracking};

FarShape shape_of(FarTaskKind kind) {
    FarShape s{.facts = 6,
               .queries = 4,
               .span = 5,
               .fillers = 60,
               .lead = 4,
               .gap = 20,
               .keys = 40,
               .values = 50,
               .filler_words = 7};
    if (kind == FarTaskKind::needle) s.facts = 1;
    if (kind == FarTaskKind::needle || kind == FarTaskKind::selective_copy) s.queries = s.keys = 1;
    if (kind == FarTaskKind::numbered_copy) s.queries = s.facts;
    if (kind == FarTaskKind::induction) s.keys = 0;
    return s;
}

std::vector<std::int64_t> flat(const std::vector<FarPhrase>& phrases) {
    std::vector<std::int64_t> symbols;
    for (const FarPhrase& p : phrases)
        symbols.insert(symbols.end(), p.symbols.begin(), p.symbols.end());
    return symbols;
}

// The one place of `part` in `whole`; -1: none, -2: several.
std::ptrdiff_t only_place(const std::vector<std::int64_t>& whole,
                          const std::vector<std::int64_t>& part) {
    const auto at = std::search(whole.begin(), whole.end(), part.begin(), part.end());
    if (at == whole.end()) return -1;
    return std::search(at + 1, whole.end(), part.begin(), part.end()) == whole.end()
               ? at - whole.begin()
               : -2;
}

}  // namespace

TEST_CASE("far tasks have the sizes of their shape, and filler before and behind", "[reasoning]") {
    for (const FarTaskKind kind : kAll) {
        const FarShape s = shape_of(kind);
        for (std::uint64_t i = 0; i < 200; ++i) {
            Draws draws(5, i);
            const FarTask task = draw_far_task(kind, s, draws);
            CAPTURE(static_cast<int>(kind), i);
            const auto fillers =
                std::ranges::count_if(task.context, [](const FarPhrase& p) { return p.filler; });
            CHECK(fillers == s.fillers);
            CHECK(std::ssize(flat(task.context)) == s.fillers + far_facts_size(kind, s));
            CHECK(std::ssize(task.queries) == s.queries);
            for (const FarPhrase& q : task.queries) {
                CHECK(std::ssize(q.symbols) == far_query_size(kind, s));
                CHECK((q.given >= 1 && q.given < q.symbols.size()));
            }
            for (std::int64_t p = 0; p < s.lead + s.gap; ++p) {
                const std::int64_t at = p < s.lead ? p : std::ssize(task.context) + s.lead - 1 - p;
                CHECK(task.context[static_cast<std::size_t>(at)].filler);
            }
            const std::int64_t most = s.keys + s.values + s.filler_words;
            for (const std::int64_t symbol : flat(task.context))
                CHECK((symbol >= 0 && symbol < most));
        }
    }
}

TEST_CASE("what a far task asks for stands in its context once", "[reasoning]") {
    for (const FarTaskKind kind : kAll)
        for (std::uint64_t i = 0; i < 200; ++i) {
            const FarShape s = shape_of(kind);
            Draws draws(6, i);
            const FarTask task = draw_far_task(kind, s, draws);
            const auto context = flat(task.context);
            CAPTURE(static_cast<int>(kind), i);
            std::set<std::pair<std::int64_t, std::int64_t>> asked;
            std::ptrdiff_t last = -1;  // where what was asked before stands
            for (const FarPhrase& q : task.queries) {
                CHECK(asked.emplace(q.symbols[0], q.symbols[1]).second);
                if (kind == FarTaskKind::variable_tracking) {
                    for (std::size_t hop = 0; hop + 1 < q.symbols.size(); ++hop) {
                        CHECK(only_place(context, {0, q.symbols[hop], q.symbols[hop + 1]}) >= 0);
                        CHECK(std::ranges::count(context, q.symbols[hop]) == (hop == 0 ? 1 : 2));
                    }
                    for (std::size_t hop = 1; hop + 1 < q.symbols.size(); ++hop)  // in order
                        CHECK(only_place(context, {q.symbols[hop], q.symbols[hop + 1]}) <
                              only_place(context, {q.symbols[hop - 1], q.symbols[hop]}));
                } else if (kind == FarTaskKind::selective_copy) {
                    std::vector<std::int64_t> kept;
                    for (const FarPhrase& p : task.context)
                        if (!p.filler) kept.push_back(p.symbols[0]);
                    CHECK(std::ranges::equal(kept, std::span(q.symbols).subspan(1)));
                } else if (kind == FarTaskKind::numbered_copy) {
                    CHECK(asked.rbegin()->first == q.symbols[0]);  // rising ...
                    CHECK(only_place(context, q.symbols) > last);  // ... in the context, too
                    last = only_place(context, q.symbols);
                    CHECK(only_place(context, {q.symbols[1]}) >= 0);  // is never noise
                    for (const FarPhrase& p : task.context)           // looks like what is copied
                        if (p.filler)
                            CHECK((p.symbols[0] >= s.keys && p.symbols[0] < s.keys + s.values));
                } else {
                    CHECK(only_place(context, q.symbols) >= 0);
                    CHECK(only_place(context, {q.symbols.begin(),
                                               q.symbols.begin() +
                                                   static_cast<std::ptrdiff_t>(q.given)}) >= 0);
                }
            }
        }
}

TEST_CASE("facts of a far task lie anywhere between lead and gap", "[reasoning]") {
    const FarShape s{.facts = 2, .queries = 1, .fillers = 8, .keys = 9, .values = 9};
    std::map<std::size_t, int> seen;
    for (std::uint64_t i = 0; i < 5000; ++i) {
        Draws draws(7, i);
        const FarTask task = draw_far_task(FarTaskKind::recall, s, draws);
        for (std::size_t p = 0; p < task.context.size(); ++p)
            seen[p] += !task.context[p].filler;
    }
    REQUIRE(seen.size() == 10);
    for (const auto& [place, count] : seen) {
        CAPTURE(place, count);
        CHECK(std::abs(count - 1000) < 150);  // 5 standard deviations
    }
}

TEST_CASE("too few symbols for a far task are an error", "[reasoning]") {
    Draws draws(8, 0);
    FarShape s = shape_of(FarTaskKind::recall);
    s.keys = 5;
    CHECK_THROWS_AS(draw_far_task(FarTaskKind::recall, s, draws), Error);
    s = shape_of(FarTaskKind::induction);
    s.values = 29;
    CHECK_THROWS_AS(draw_far_task(FarTaskKind::induction, s, draws), Error);
    s = shape_of(FarTaskKind::numbered_copy);
    s.values = s.facts;  // none left for the filler
    CHECK_THROWS_AS(draw_far_task(FarTaskKind::numbered_copy, s, draws), Error);
}

TEST_CASE("a row of tokens has its answers as targets", "[reasoning]") {
    const test::QualityTask task{.name = "multi",
                                 .kind = FarTaskKind::multi_needle,
                                 .shape = shape_of(FarTaskKind::multi_needle)};
    for (const std::int64_t n : {160, 320}) {
        const test::FarRow row = test::far_row(task, task.shape, n, Draws(9, 1));
        CHECK(std::ssize(row.tokens) == n);
        CHECK(std::ssize(row.targets) == n);
        CHECK(std::ranges::count_if(row.targets, [](int t) { return t >= 0; }) == 4);
        const std::size_t at = row.first_query + row.query.given;
        CHECK(row.targets[at - 1] == row.query.symbols.back());
        CHECK(row.tokens[at] == row.query.symbols.back());
    }
}

TEST_CASE("far problems grow to a few thousand characters", "[reasoning]") {
    for (const char* name : {"associative_recall", "selective_copy", "induction", "needle",
                             "multi_needle", "variable_tracking", "far_arithmetic", "far_code"}) {
        std::size_t before = 0;
        for (const std::int64_t difficulty : {1, 4, 7, 10}) {
            std::size_t sum = 0;
            for (std::int64_t i = 0; i < 20; ++i)
                sum += make_sample(reasoning_family(name), difficulty, 3, ReasoningSplit::train, i)
                           .question.size();
            CAPTURE(name, difficulty, sum / 20);
            CHECK(sum / 20 > before + 100);
            before = sum / 20;
        }
        CHECK((before > 1800 && before < 4500));
    }
}
