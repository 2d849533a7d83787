#pragma once
#include <string>
#include <string_view>

namespace stoa {

/// A simple quality rule set (after Gopher and C4: length, mean word length, symbol and alphabetic
/// share, duplicate lines). Lines that fail are dropped from the text; returns the reason code when
/// the whole document is refused, "" when it stays.
std::string filter_document(std::string& text);

}  // namespace stoa
