#pragma once
// Texts to decode, and an attention that is small enough for them.
#include <string>
#include <vector>

#include "data/tokenizer/tokenizer.h"
#include "tests/support/tiny_run.h"

namespace stoa::test {

/// Of the 67 tokens of a tiny_run.
inline std::vector<TokenId> random_text(std::uint64_t seed, std::int64_t n) {
    Draws draws(5, seed);
    std::vector<TokenId> text;
    for (std::int64_t i = 0; i < n; ++i)
        text.push_back(static_cast<TokenId>(draws.between(0, 66)));
    return text;
}

inline AttentionConfig wide_attention(const std::string& layers) {
    AttentionConfig a = tiny_attention(AttentionKind::dynamic, KeySelector::tree, layers);
    a.window = 8;
    a.leaf = 4;
    a.sinks = 2;
    a.keep = 4;
    return a;
}

}  // namespace stoa::test
