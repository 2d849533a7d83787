#include "data/reasoning/far_tasks.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "kernels/core/error.h"

namespace stoa {
namespace {

using Symbols = std::vector<std::int64_t>;

std::int64_t draw_value(const FarShape& shape, Draws& draws) {
    return shape.keys + draws.between(0, shape.values - 1);
}
Symbols distinct_values(const FarShape& shape, std::int64_t count, Draws& draws) {
    Symbols values = draw_distinct(shape.values, count, draws);
    for (std::int64_t& v : values)
        v += shape.keys;
    return values;
}

// The facts in the order in which they appear, and a query for each.
struct Facts {
    std::vector<FarPhrase> facts, queries;
};

Facts draw_pairs(const FarShape& shape, Draws& draws) {
    Facts f;
    for (const std::int64_t key : draw_distinct(shape.keys, shape.facts, draws)) {
        f.facts.push_back({{key, draw_value(shape, draws)}});
        f.queries.push_back({f.facts.back().symbols, 1});
    }
    return f;
}

// Keys are pairs of a first and a second half of the alphabet.
Facts draw_key_pairs(const FarShape& shape, Draws& draws) {
    Facts f;
    const std::int64_t half = shape.keys / 2;
    for (const std::int64_t pair : draw_distinct(half * half, shape.facts, draws)) {
        f.facts.push_back({{pair / half, half + pair % half, draw_value(shape, draws)}});
        f.queries.push_back({f.facts.back().symbols, 2});
    }
    return f;
}

Facts draw_copy(const FarShape& shape, Draws& draws) {
    Facts f;
    FarPhrase query{{0}, 1};
    for (const std::int64_t value : distinct_values(shape, shape.facts, draws)) {
        f.facts.push_back({{value}});
        query.symbols.push_back(value);
    }
    f.queries.push_back(query);
    return f;
}

// Numbers are keys, rising. `unused`: the values that are not copied, which the background is made
// of, so that only the number before it tells what is to be copied.
Facts draw_numbered(const FarShape& shape, Draws& draws, Symbols& unused) {
    Facts f;
    unused = distinct_values(shape, std::max(shape.values, shape.facts + 1), draws);
    Symbols numbers = draw_distinct(shape.keys, shape.facts, draws);
    std::ranges::sort(numbers);
    for (const std::int64_t number : numbers) {
        f.facts.push_back({{number, unused.back()}});
        f.queries.push_back({f.facts.back().symbols, 1});
        unused.pop_back();
    }
    return f;
}

Facts draw_needle(const FarShape& shape, Draws& draws) {
    FarPhrase needle{{0}};
    std::ranges::copy(distinct_values(shape, shape.span, draws),
                      std::back_inserter(needle.symbols));
    FarPhrase query = needle;
    query.given = 1;
    return {{needle}, {query}};
}

// `unused`: the values that are in no run, which the background is made of.
Facts draw_runs(const FarShape& shape, Draws& draws, Symbols& unused) {
    Facts f;
    unused = distinct_values(shape, std::max(shape.values, shape.facts * shape.span), draws);
    for (std::int64_t i = 0; i < shape.facts; ++i) {
        f.facts.push_back({{unused.end() - shape.span, unused.end()}});
        unused.resize(unused.size() - static_cast<std::size_t>(shape.span));
        f.queries.push_back({f.facts.back().symbols, 1});
    }
    return f;
}

// Chains interleaved at random, each in its own order.
Facts draw_chains(const FarShape& shape, Draws& draws) {
    Facts f;
    Symbols names = draw_distinct(shape.keys - 1, shape.facts * shape.span, draws), turns;
    for (std::int64_t chain = 0; chain < shape.facts; ++chain) {
        f.queries.push_back({{draw_value(shape, draws)}, 1});
        turns.insert(turns.end(), static_cast<std::size_t>(shape.span), chain);
    }
    for (const std::int64_t at : draw_distinct(std::ssize(turns), std::ssize(turns), draws)) {
        Symbols& chain =
            f.queries[static_cast<std::size_t>(turns[static_cast<std::size_t>(at)])].symbols;
        f.facts.push_back({{0, names.back() + 1, chain.front()}});
        chain.insert(chain.begin(), names.back() + 1);
        names.pop_back();
    }
    return f;
}

// Fillers with the facts strewn between them, all places alike.
std::vector<FarPhrase> strew(const std::vector<FarPhrase>& facts, const FarShape& shape,
                             const Symbols& background, Draws& draws) {
    std::vector<FarPhrase> context;
    const auto add_fillers = [&](std::int64_t count) {
        for (; count > 0; --count) {
            const std::int64_t symbol =
                background.empty()
                    ? shape.keys + shape.values + draws.between(0, shape.filler_words - 1)
                    : background[draws.below(static_cast<std::uint32_t>(background.size()))];
            context.push_back({{symbol}, 0, true});
        }
    };
    std::int64_t between = shape.fillers - shape.lead - shape.gap;
    add_fillers(shape.lead);
    for (std::size_t fact = 0; fact < facts.size();) {
        const auto left = static_cast<std::int64_t>(facts.size() - fact);
        if (draws.between(1, left + between) <= left)
            context.push_back(facts[fact++]);
        else
            add_fillers(1), --between;
    }
    add_fillers(between + shape.gap);
    return context;
}

}  // namespace

std::vector<std::int64_t> draw_distinct(std::int64_t n, std::int64_t count, Draws& draws) {
    if (count > n)
        throw Error(ExitCode::internal, {.what = "too few symbols for a far task",
                                         .expected = fmt::format("{} different ones", count),
                                         .actual = std::to_string(n)});
    std::vector<std::int64_t> all(static_cast<std::size_t>(n));
    std::iota(all.begin(), all.end(), 0);
    for (std::int64_t i = 0; i < count; ++i)  // [Fisher & Yates]
        std::swap(all[static_cast<std::size_t>(i)],
                  all[static_cast<std::size_t>(draws.between(i, n - 1))]);
    all.resize(static_cast<std::size_t>(count));
    return all;
}

std::int64_t far_fact_size(FarTaskKind kind, const FarShape& shape) {
    switch (kind) {
        case FarTaskKind::recall:
        case FarTaskKind::numbered_copy:
            return 2;
        case FarTaskKind::selective_copy:
            return 1;
        case FarTaskKind::induction:
            return shape.span;
        case FarTaskKind::needle:
            return 1 + shape.span;
        case FarTaskKind::multi_needle:
        case FarTaskKind::variable_tracking:
            return 3;
    }
    return 0;
}

std::int64_t far_facts_size(FarTaskKind kind, const FarShape& shape) {
    const std::int64_t count =
        kind == FarTaskKind::variable_tracking ? shape.facts * shape.span : shape.facts;
    return count * far_fact_size(kind, shape);
}

std::int64_t far_query_size(FarTaskKind kind, const FarShape& shape) {
    if (kind == FarTaskKind::selective_copy) return 1 + shape.facts;
    if (kind == FarTaskKind::variable_tracking) return 1 + shape.span;
    return far_fact_size(kind, shape);
}

FarTask draw_far_task(FarTaskKind kind, const FarShape& shape, Draws& draws) {
    Facts f;
    Symbols background;
    switch (kind) {
        case FarTaskKind::recall:
            f = draw_pairs(shape, draws);
            break;
        case FarTaskKind::selective_copy:
            f = draw_copy(shape, draws);
            break;
        case FarTaskKind::numbered_copy:
            f = draw_numbered(shape, draws, background);
            break;
        case FarTaskKind::induction:
            f = draw_runs(shape, draws, background);
            break;
        case FarTaskKind::needle:
            f = draw_needle(shape, draws);
            break;
        case FarTaskKind::multi_needle:
            f = draw_key_pairs(shape, draws);
            break;
        case FarTaskKind::variable_tracking:
            f = draw_chains(shape, draws);
            break;
    }
    FarTask task{.context = strew(f.facts, shape, background, draws), .queries = {}};
    Symbols asked = draw_distinct(std::ssize(f.queries), shape.queries, draws);
    if (kind == FarTaskKind::numbered_copy) std::ranges::sort(asked);
    for (const std::int64_t q : asked)
        task.queries.push_back(f.queries[static_cast<std::size_t>(q)]);
    return task;
}

}  // namespace stoa
