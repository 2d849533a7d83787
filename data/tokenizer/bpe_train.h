#pragma once
#include <string>
#include <vector>

#include "data/tokenizer/tokenizer.h"

namespace stoa {

extern const char* const kQwen2Split;
extern const char* const kGpt2Split;

/// Byte-level BPE training [Sennrich et al. 2016]: start from 256 bytes, repeatedly merge the most
/// frequent adjacent pair inside pieces of the split; ties go to the pair whose bytes are
/// lexicographically greater. `vocab_size` includes the bytes and the special tokens.
/// Documents are separate pieces of text. Two ways to the same bytes share one token. A piece of more
/// than 256 bytes is counted in parts. Deterministic; fewer tokens when the text has no more pairs.
/// errors: DataError (empty corpus, vocab_size < 256 + special tokens)
BpeModel train_bpe(const std::vector<std::string>& documents, std::int64_t vocab_size,
                   const std::vector<std::string>& special_tokens = {kEndOfText},
                   const std::string& split_pattern = kQwen2Split);

}  // namespace stoa
