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
