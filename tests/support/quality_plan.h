#pragma once
// The tasks of attention_quality, and settings beside them that are known to fail.
#include <string>
#include <vector>

#include "kernels/core/error.h"
#include "tests/support/quality_tasks.h"

namespace stoa::test {

/// What is asked for lies at least `gap` fillers back, more than two windows.
inline std::vector<QualityTask> quality_tasks() {
    return {
        {.name = "recall",
         .kind = FarTaskKind::recall,
         .shape = {.facts = 16,
                   .queries = 12,
                   .lead = 4,
                   .gap = 40,
                   .keys = 48,
                   .values = 48,
                   .filler_words = 16}},
        {.name = "selective_copy",
         .kind = FarTaskKind::numbered_copy,
         .shape = {.facts = 8, .queries = 8, .lead = 4, .gap = 40, .keys = 8, .values = 32}},
        {.name = "induction",
         .kind = FarTaskKind::induction,
         .shape =
             {.facts = 3, .queries = 3, .span = 8, .lead = 4, .gap = 40, .keys = 0, .values = 64}},
        {.name = "needle",
         .kind = FarTaskKind::needle,
         .shape = {.span = 8, .lead = 4, .gap = 40, .keys = 1, .values = 32, .filler_words = 16}},
        {.name = "multi_needle",
         .kind = FarTaskKind::multi_needle,
         .shape = {.facts = 12,
                   .queries = 10,
                   .lead = 4,
                   .gap = 40,
                   .keys = 16,
                   .values = 48,
                   .filler_words = 16}},
        {.name = "variable_tracking",
         .kind = FarTaskKind::variable_tracking,
         .shape = {.facts = 5,
                   .queries = 5,
                   .span = 2,
                   .lead = 4,
                   .gap = 40,
                   .keys = 1 + 32,
                   .values = 32,
                   .filler_words = 16}},
        {.name = "code",
         .shape = {.facts = 0},
         .seq_len = 512,
         .batch = 6,
         .window = 64,
         .leaf = 8},
    };
}

/// A change of recall, the same for all kinds. An empty name changes nothing.
struct QualityCase {
    std::string name;
    std::int64_t leaf = 0, beam = 0;  // 0: the task's
    std::int64_t facts = 0;
    bool look_back = true;  // how the first layer begins
    void apply(QualityTask& t) const {
        if (leaf > 0) t.leaf = leaf, t.beam = beam;
        if (facts > 0) t.shape.facts = facts;
    }
};
/// errors: Error(config) for a name that is in no list
inline QualityCase quality_case(const std::string& name) {
    for (const QualityCase& c : {
             QualityCase{},
             QualityCase{.name = "few_leaves", .leaf = 8, .beam = 4},  // also 32 tokens
             QualityCase{.name = "fewer_leaves", .leaf = 16, .beam = 2},
             QualityCase{.name = "eight_tokens", .leaf = 4, .beam = 2},  // importance keeps 8
             QualityCase{.name = "many_facts", .facts = 32},
             QualityCase{.name = "no_look_back", .look_back = false},
         })
        if (c.name == name) return c;
    throw Error(ExitCode::config, {.what = "no such case", .where = "--case", .actual = name});
}

}  // namespace stoa::test
