#pragma once
#include <string>
#include <string_view>

namespace stoa {

/// A simple quality rule set (after Gopher, C4 and FineWeb). First drops lines that are menus,
/// crumbs or notices of the page (documents of four lines and more), then judges what is left.
/// Returns the code of the rule that refuses the document, "" when it stays: too_short,
/// mean_word_length, alphabetic_words, stop_words, repeated_phrases, symbols, markup,
/// duplicate_lines, bullets, ellipsis_lines, no_sentences. Languages: stop words are asked only of
/// text in ASCII letters, and those of a dozen languages count.
std::string filter_document(std::string& text);

}  // namespace stoa
