#include "data/reasoning/engine.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>

#include "configs/load_run_config.h"
#include "data/reasoning/families/families.h"
#include "kernels/core/error.h"

namespace stoa {
namespace {

constexpr int kMaxAttempts = 4096;  // a question misses its split 15 times in 16 at worst

std::uint64_t hash_of(std::string_view text) { return XXH3_64bits(text.data(), text.size()); }

/// Numbers from hostile text may leave the exact range: that is a refusal, not a crash.
template <bool (*Verify)(std::string_view, std::string_view, std::string&)>
bool guarded(std::string_view question, std::string_view answer, std::string& why) {
    try {
        return Verify(question, answer, why);
    } catch (const Error& e) {
        why = e.what();
        return false;
    }
}

bool printable(std::string_view line) {
    return std::none_of(line.begin(), line.end(),
                        [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; });
}

}  // namespace

const std::vector<ReasoningFamily>& reasoning_families() {
    using namespace families;
    static const std::vector<ReasoningFamily> table = {
        {"chain_sum", "sums and differences of several terms", generate_chain_sum,
         guarded<verify_chain_sum>, check_chain_sum},
        {"linear_equation", "one equation with one unknown", generate_linear_equation,
         guarded<verify_linear_equation>, check_linear_equation},
        {"compare_sort", "selection sort of a list", generate_compare_sort,
         guarded<verify_compare_sort>, check_compare_sort},
        {"polynomial_shift", "f(x + k) - f(x) of a polynomial", generate_polynomial_shift,
         guarded<verify_polynomial_shift>, check_polynomial_shift},
        {"gcd", "greatest common divisor by Euclid", generate_gcd, guarded<verify_gcd>, check_gcd},
        {"base_conversion", "an integer in another base", generate_base_conversion,
         guarded<verify_base_conversion>, check_base_conversion},
        {"modular_power", "a power modulo n by square and multiply", generate_modular_power,
         guarded<verify_modular_power>, check_modular_power},
        {"boolean_evaluation", "a formula under a truth assignment", generate_boolean_evaluation,
         guarded<verify_boolean_evaluation>, check_boolean_evaluation},
        {"fraction_sum", "fractions added in lowest terms", generate_fraction_sum,
         guarded<verify_fraction_sum>, check_fraction_sum},
        {"long_multiplication", "a product by partial products", generate_long_multiplication,
         guarded<verify_long_multiplication>, check_long_multiplication},
        {"program_trace", "straight-line assignments run by hand", generate_program_trace,
         guarded<verify_program_trace>, check_program_trace},
        {"word_problem", "a story of quantities that change", generate_word_problem,
         guarded<verify_word_problem>, check_word_problem},
        {"calendar", "a date some days later", generate_calendar, guarded<verify_calendar>,
         check_calendar},
        // The answers of these lie far behind, the further the higher the difficulty.
        {"associative_recall", "numbers by their words, several at a time",
         generate_associative_recall, guarded<verify_recall>, check_recall},
        {"selective_copy", "the numbers of a text without what is between", generate_selective_copy,
         guarded<verify_selective_copy>, check_selective_copy},
        {"induction", "what followed a word before", generate_induction, guarded<verify_induction>,
         check_induction},
        {"needle", "one code in a long text", generate_needle, guarded<verify_recall>,
         check_recall},
        {"multi_needle", "numbers in a long text, by two words that others share",
         generate_multi_needle, guarded<verify_recall>, check_recall},
        {"variable_tracking", "names assigned from names, back to a number",
         generate_variable_tracking, guarded<verify_variable_tracking>, check_variable_tracking},
        {"far_arithmetic", "a sum over premises given long before", generate_far_arithmetic,
         guarded<verify_far_arithmetic>, check_far_arithmetic},
        {"far_code", "calls of functions defined long before", generate_far_code,
         guarded<verify_far_code>, check_far_code},
    };
    return table;
}

const ReasoningFamily& reasoning_family(std::string_view name) {
    std::vector<std::string> names;
    for (const ReasoningFamily& family : reasoning_families()) {
        if (name == family.name) return family;
        names.emplace_back(family.name);
    }
    const std::vector<std::string> close = suggest(std::string(name), names);
    throw DataError({.what = "unknown reasoning family",
                     .expected = fmt::format("one of {}", fmt::join(names, ", ")),
                     .actual = std::string(name),
                     .hint = close.empty() ? "stoa reason list shows the families"
                                           : fmt::format("did you mean {}?", close[0])});
}

ReasoningSplit split_of(std::string_view question) {
    return hash_of(question) % 16 == 0 ? ReasoningSplit::holdout : ReasoningSplit::train;
}

ReasoningSample make_sample(const ReasoningFamily& family, std::int64_t difficulty,
                            std::uint64_t seed, ReasoningSplit split, std::int64_t index) {
    if (difficulty < 1 || difficulty > 10)
        throw DataError({.what = "reasoning difficulty",
                         .expected = "1..10",
                         .actual = std::to_string(difficulty)});
    if (index < 0)
        throw DataError({.what = "reasoning sample index",
                         .expected = ">= 0",
                         .actual = std::to_string(index)});
    // Each of family, difficulty, seed, split and attempt passes through a block of Philox, and the
    // index is the counter: no sum of two of them can meet (seed s, index i + 1 is not s + 1, i).
    std::uint64_t key = mix_key(hash_of(family.name), static_cast<std::uint64_t>(difficulty));
    key = mix_key(mix_key(key, seed), split == ReasoningSplit::holdout ? 1 : 0);
    for (std::uint64_t attempt = 0; attempt < kMaxAttempts; ++attempt) {
        ReasoningSample sample;
        sample.family = family.name;
        sample.difficulty = difficulty;
        sample.seed = seed;
        sample.split = split;
        sample.index = index;
        Draws draws(mix_key(key, attempt), static_cast<std::uint64_t>(index));
        family.generate(difficulty, draws, sample);
        if (split_of(sample.question) == split) return sample;
    }
    throw DataError(
        {.what = fmt::format("{} has no {} problem at difficulty {}", family.name,
                             split == ReasoningSplit::holdout ? "held-out" : "train", difficulty),
         .expected = fmt::format("one within {} draws", kMaxAttempts),
         .hint = "raise the difficulty"});
}

RenderedSample render(const ReasoningSample& sample) {
    RenderedSample text;
    text.prompt = fmt::format("Problem: {}\n", sample.question);
    for (std::size_t i = 0; i < sample.steps.size(); ++i)
        text.solution += fmt::format("Step {}: {}\n", i + 1, sample.steps[i]);
    text.solution += fmt::format("Answer: {}", sample.answer);
    return text;
}

std::string extract_answer(std::string_view solution) {
    constexpr std::string_view kMark = "Answer:";
    const std::size_t at = solution.rfind(kMark);
    if (at == std::string_view::npos) return "";
    std::string_view text = solution.substr(at + kMark.size());
    text = text.substr(0, text.find('\n'));
    const std::size_t begin = text.find_first_not_of(" \t\r");
    if (begin == std::string_view::npos) return "";
    return std::string(text.substr(begin, text.find_last_not_of(" \t\r") - begin + 1));
}

bool verify_sample(const ReasoningSample& sample, std::string& why) {
    try {
        const ReasoningFamily& family = reasoning_family(sample.family);
        bool lines = printable(sample.question) && printable(sample.answer);
        for (const std::string& step : sample.steps)
            lines = lines && printable(step);
        if (!lines) {
            why = "question, steps and answer must be one line each";
            return false;
        }
        if (!family.verify(sample.question, sample.answer, why)) return false;
        return family.verify_steps(sample, why);
    } catch (const Error& e) {
        why = e.what();
        return false;
    }
}

}  // namespace stoa
