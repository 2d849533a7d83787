#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace stoa {

void append_utf8(std::string& out, std::uint32_t code_point);

/// The code point a windows-1252 byte stands for; U+FFFD for the five holes in the table.
std::uint32_t windows1252(unsigned char byte);

/// Length of the well-formed UTF-8 sequence at the start of `s` (1..4), or minus the length of the
/// maximal ill-formed part to be replaced by one U+FFFD [Unicode 15, 3.9, table 3-7 and D93b].
int utf8_sequence(std::string_view s);
bool is_valid_utf8(std::string_view s);

/// Bytes of a page or text file as UTF-8. Order: byte order mark (UTF-8, UTF-16), then `declared`
/// (a charset label, may be empty), then UTF-8 if valid, then windows-1252 (which the labels
/// latin1, iso-8859-1 and ascii mean on the web [WHATWG Encoding]). A declared charset that is none
/// of these is refused unless the bytes are valid UTF-8 all the same. Returns "" when refused or
/// when more than 1 % of the bytes are ill-formed.
std::string decode_text(std::string_view bytes, std::string_view declared);

}  // namespace stoa
