#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace stoa {

/// Decodes the character reference at the start of `s` ("&amp;", "&#8217;", "&#x2019;") into `out`
/// and returns its length, or 0 when there is none. Numbers 128..159 mean windows-1252; surrogates
/// and numbers beyond Unicode become U+FFFD. [WHATWG HTML, 13.2.5.72 on; the common names only]
std::size_t decode_entity(std::string_view s, std::string& out);

}  // namespace stoa
