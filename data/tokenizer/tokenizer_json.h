#pragma once
#include <string>

#include "data/tokenizer/tokenizer.h"

namespace stoa {

/// The Hugging Face tokenizer.json of a byte-level BPE model, and back. Everything in a file that
/// would make another program tokenize differently than we do is refused by name (normalisers,
/// other model types, other pre-tokenizers, tokens added outside the vocabulary's end). errors:
/// DataError naming the file and the field
BpeModel read_tokenizer_json(const std::string& path);
void write_tokenizer_json(const BpeModel& model, const std::string& path);

/// GPT-2's printable stand-ins: byte -> code point as UTF-8, for whole strings.
std::string bytes_to_unicode(std::string_view bytes);
/// The inverse; `ok` turns false at a character that stands for no byte.
std::string unicode_to_bytes(std::string_view text, bool& ok);

}  // namespace stoa
