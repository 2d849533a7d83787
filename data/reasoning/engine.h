#pragma once
// The rule engine: problems with worked steps and a final answer. Sample i is a pure function of
// (family, difficulty, seed, split, i): any rank can make it, in any order.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/philox.h"

namespace stoa {

/// Train and held-out problems are disjoint twice: their draws come from different keys, and a
/// problem belongs to the split that the hash of its question names (1 in 16 is held out), so equal
/// problems reached from different seeds can never leak.
enum class ReasoningSplit { train, holdout };

struct ReasoningSample {
    std::string family;
    std::int64_t difficulty = 1;
    std::uint64_t seed = 0;
    ReasoningSplit split = ReasoningSplit::train;
    std::int64_t index = 0;
    std::string question;            // one line
    std::vector<std::string> steps;  // one line each, without a number
    std::string answer;              // canonical form
};

/// A family: a plain table row, no class tree. `generate` fills question, steps, answer.
/// `verify` parses nothing but the question and the answer text, recomputes the answer by another
/// way than `generate` and says whether `answer` is right; `why` receives the reason of a refusal.
/// `verify` never throws and takes any bytes. `verify_steps` judges the worked steps of a sample
/// whose answer is already accepted; a family without one has steps that are all "expression =
/// expression" chains of numbers, the last of which ends in the answer.
struct ReasoningFamily {
    const char* name;
    const char* summary;
    void (*generate)(std::int64_t difficulty, Draws& draws, ReasoningSample& sample);
    bool (*verify)(std::string_view question, std::string_view answer, std::string& why);
    bool (*verify_steps)(const ReasoningSample& sample, std::string& why);
};
const std::vector<ReasoningFamily>& reasoning_families();
/// errors: DataError with a suggestion when the name is unknown
const ReasoningFamily& reasoning_family(std::string_view name);

/// The split a question belongs to: 1 in 16 is held out, by the xxh3 of its text.
ReasoningSplit split_of(std::string_view question);

/// errors: DataError (difficulty outside 1..10, index < 0, or the family has no problem of that
/// split)
ReasoningSample make_sample(const ReasoningFamily& family, std::int64_t difficulty,
                            std::uint64_t seed, ReasoningSplit split, std::int64_t index);

/// The text a model trains on:
///   "Problem: Q\nStep 1: ...\nStep 2: ...\nAnswer: A"
/// `prompt` ends after "Problem: Q\n"; `solution` is the rest. End-of-text is added by the loader.
struct RenderedSample {
    std::string prompt, solution;
};
RenderedSample render(const ReasoningSample& sample);
/// The final answer in a generated solution: the text after the last "Answer:" up to the line end,
/// trimmed; empty when there is none.
std::string extract_answer(std::string_view solution);

/// One JSON object per line:
/// {"family","difficulty","seed","split","index","question","steps","answer"}
std::string to_json_line(const ReasoningSample& sample);
/// errors: DataError (not JSON, missing or mistyped field), naming the line
ReasoningSample from_json_line(const std::string& line, std::int64_t line_number);

/// Recomputes the answer by the family's verifier and checks each step: the numbers in a chain
/// "expression = expression [= expression]" must be equal, and the steps must end in the answer.
/// `why` receives the reason of a refusal. Never throws; an unknown family is a refusal.
bool verify_sample(const ReasoningSample& sample, std::string& why);

}  // namespace stoa
