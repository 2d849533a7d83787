#pragma once
// Tasks whose answers lie far behind: facts among filler, then questions about them. Symbols are
// numbers, so that one draw is a problem in words (families/) and a row of tokens
// (tests/acceptance/attention_quality.cpp) alike.
#include <cstdint>
#include <string_view>
#include <vector>

#include "kernels/core/philox.h"

namespace stoa {

//   kind               a fact                       a query
//   recall             key value                    key -> value              [MQAR, Arora 2023]
//   selective_copy     value                        mark -> all values, in order
//   numbered_copy      number value, rising         number -> value, all in order
//   induction          a run of values, whole       the run's first -> its others
//   needle             mark value ... value         mark -> all values
//   multi_needle       key key value                key key -> value; facts share either key
//   variable_tracking  mark name value, or          name -> the name before, ..., value
//                      mark name (name before)
enum class FarTaskKind {
    recall,
    selective_copy,
    numbered_copy,
    induction,
    needle,
    multi_needle,
    variable_tracking
};

/// Symbols: keys are 0 ... keys - 1 (a kind with a mark: 0), values and then fillers follow.
struct FarShape {
    std::int64_t facts = 1;    // variable_tracking: chains
    std::int64_t queries = 1;  // of different facts; selective_copy: 1
    std::int64_t span = 1;     // needle: values; induction: a run; variable_tracking: names a chain
    std::int64_t fillers = 0;  // phrases, strewn between the facts ...
    std::int64_t lead = 0;     // ... but for the first of them
    std::int64_t gap = 0;      // ... and the last
    std::int64_t keys = 1, values = 1;
    std::int64_t filler_words = 1;  // induction, numbered_copy: filler is values that no fact has
};

/// A fact, a filler (one symbol) or a query. `given`: how many symbols a query shows; the others
/// are its answer.
struct FarPhrase {
    std::vector<std::int64_t> symbols;
    std::size_t given = 0;
    bool filler = false;
};
struct FarTask {
    std::vector<FarPhrase> context, queries;
};

/// Symbols of a fact, of which a variable_tracking chain has `span`.
std::int64_t far_fact_size(FarTaskKind kind, const FarShape& shape);
/// Symbols of all facts, and of a query.
std::int64_t far_facts_size(FarTaskKind kind, const FarShape& shape);
std::int64_t far_query_size(FarTaskKind kind, const FarShape& shape);

/// Draws a task. Keys, names, the values of a needle, a copy and all runs are different from one
/// another; other values may meet. errors: Error(internal) when there are too few symbols for that
FarTask draw_far_task(FarTaskKind kind, const FarShape& shape, Draws& draws);

/// `count` different numbers of 0 ... n - 1, in random order. errors: Error(internal), count > n
std::vector<std::int64_t> draw_distinct(std::int64_t n, std::int64_t count, Draws& draws);

}  // namespace stoa
