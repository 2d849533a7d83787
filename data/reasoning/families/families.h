#pragma once
// The families' functions, one file each; the table that names them is in engine.cpp. In every
// file:
//   generate  draws a problem, writes the question, the steps and the answer
//   verify    parses the question and the answer text, and recomputes by another way; may throw
//   Error
//             when hostile numbers leave the exact range (the table turns that into a refusal)
//   check     judges the worked steps against the question, where plain "a = b" checking is not
//   enough
#include <string>
#include <string_view>

#include "data/reasoning/engine.h"

namespace stoa::families {

using Text = std::string_view;

void generate_chain_sum(std::int64_t difficulty, Draws& draws, ReasoningSample& sample);
bool verify_chain_sum(Text question, Text answer, std::string& why);
bool check_chain_sum(const ReasoningSample& sample, std::string& why);

void generate_linear_equation(std::int64_t difficulty, Draws& draws, ReasoningSample& sample);
bool verify_linear_equation(Text question, Text answer, std::string& why);
bool check_linear_equation(const ReasoningSample& sample, std::string& why);

void generate_compare_sort(std::int64_t difficulty, Draws& draws, ReasoningSample& sample);
bool verify_compare_sort(Text question, Text answer, std::string& why);
bool check_compare_sort(const ReasoningSample& sample, std::string& why);

void generate_polynomial_shift(std::int64_t difficulty, Draws& draws, ReasoningSample& sample);
bool verify_polynomial_shift(Text question, Text answer, std::string& why);
bool check_polynomial_shift(const ReasoningSample& sample, std::string& why);

void generate_gcd(std::int64_t difficulty, Draws& draws, ReasoningSample& sample);
bool verify_gcd(Text question, Text answer, std::string& why);
bool check_gcd(const ReasoningSample& sample, std::string& why);

void generate_base_conversion(std::int64_t difficulty, Draws& draws, ReasoningSample& sample);
bool verify_base_conversion(Text question, Text answer, std::string& why);
bool check_base_conversion(const ReasoningSample& sample, std::string& why);

void generate_modular_power(std::int64_t difficulty, Draws& draws, ReasoningSample& sample);
bool verify_modular_power(Text question, Text answer, std::string& why);
bool check_modular_power(const ReasoningSample& sample, std::string& why);

void generate_boolean_evaluation(std::int64_t difficulty, Draws& draws, ReasoningSample& sample);
bool verify_boolean_evaluation(Text question, Text answer, std::string& why);
bool check_boolean_evaluation(const ReasoningSample& sample, std::string& why);

void generate_fraction_sum(std::int64_t difficulty, Draws& draws, ReasoningSample& sample);
bool verify_fraction_sum(Text question, Text answer, std::string& why);
bool check_fraction_sum(const ReasoningSample& sample, std::string& why);

void generate_long_multiplication(std::int64_t difficulty, Draws& draws, ReasoningSample& sample);
bool verify_long_multiplication(Text question, Text answer, std::string& why);
bool check_long_multiplication(const ReasoningSample& sample, std::string& why);

void generate_program_trace(std::int64_t difficulty, Draws& draws, ReasoningSample& sample);
bool verify_program_trace(Text question, Text answer, std::string& why);
bool check_program_trace(const ReasoningSample& sample, std::string& why);

void generate_word_problem(std::int64_t difficulty, Draws& draws, ReasoningSample& sample);
bool verify_word_problem(Text question, Text answer, std::string& why);
bool check_word_problem(const ReasoningSample& sample, std::string& why);

void generate_calendar(std::int64_t difficulty, Draws& draws, ReasoningSample& sample);
bool verify_calendar(Text question, Text answer, std::string& why);
bool check_calendar(const ReasoningSample& sample, std::string& why);

void generate_associative_recall(std::int64_t difficulty, Draws& draws, ReasoningSample& sample);
void generate_needle(std::int64_t difficulty, Draws& draws, ReasoningSample& sample);
void generate_multi_needle(std::int64_t difficulty, Draws& draws, ReasoningSample& sample);
bool verify_recall(Text question, Text answer, std::string& why);  // of the three
bool check_recall(const ReasoningSample& sample, std::string& why);

void generate_selective_copy(std::int64_t difficulty, Draws& draws, ReasoningSample& sample);
bool verify_selective_copy(Text question, Text answer, std::string& why);
bool check_selective_copy(const ReasoningSample& sample, std::string& why);

void generate_induction(std::int64_t difficulty, Draws& draws, ReasoningSample& sample);
bool verify_induction(Text question, Text answer, std::string& why);
bool check_induction(const ReasoningSample& sample, std::string& why);

void generate_variable_tracking(std::int64_t difficulty, Draws& draws, ReasoningSample& sample);
bool verify_variable_tracking(Text question, Text answer, std::string& why);
bool check_variable_tracking(const ReasoningSample& sample, std::string& why);

void generate_far_arithmetic(std::int64_t difficulty, Draws& draws, ReasoningSample& sample);
bool verify_far_arithmetic(Text question, Text answer, std::string& why);
bool check_far_arithmetic(const ReasoningSample& sample, std::string& why);

void generate_far_code(std::int64_t difficulty, Draws& draws, ReasoningSample& sample);
bool verify_far_code(Text question, Text answer, std::string& why);
bool check_far_code(const ReasoningSample& sample, std::string& why);

// Shared by the families.

/// why = reason; returns false, so that a refusal is one line.
bool refuse(std::string& why, std::string reason);
/// The answer is exactly the integer `expected` (spaces around it are allowed).
bool integer_is(Text answer, std::int64_t expected, std::string& why);
/// Uniform among the integers of `digits` decimal digits (one digit: 1..9).
std::int64_t draw_digits(Draws& draws, std::int64_t digits);
/// The values joined by `separator`.
std::string join(const std::vector<std::int64_t>& values, const char* separator);

}  // namespace stoa::families
