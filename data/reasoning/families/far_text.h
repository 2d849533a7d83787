#pragma once
// What the families with far answers share: words for symbols, filler, and how their questions are
// cut: "<head>phrase; phrase; ... phrase<middle>query, query<tail>". No word has a digit, and no
// phrase a ';' or a '.', so that facts can be told from filler.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/reasoning/families/families.h"
#include "data/reasoning/far_tasks.h"

namespace stoa::families {

inline constexpr std::int64_t kFarWords = 64, kFarAdjectives = 16, kFarFillers = 32;
const char* far_word(std::int64_t i);       // a noun
const char* far_adjective(std::int64_t i);  // also before a noun: "red lamp"
const char* far_filler(std::int64_t i);     // a sentence: "the grass is wet"

std::vector<Text> split(Text text, Text separator);
Text trim(Text text);

struct FarText {
    std::vector<Text> phrases, queries;
};
/// false when the question is not cut so, or has no query.
bool parse_far(Text question, Text head, Text middle, Text tail, FarText& far);

/// The rest of the one phrase that begins with `key`: found in the text, not in its parts, which is
/// the verifiers' way. Nothing when none or several begin so.
std::string find_phrase(Text question, Text key);

/// One step for each of `expected`, in order. why: the first that differs
bool steps_are(const std::vector<std::string>& steps, const std::vector<std::string>& expected,
               std::string& why);

}  // namespace stoa::families
