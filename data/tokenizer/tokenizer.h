#pragma once
// Byte-level BPE in the Hugging Face tokenizer.json format: Qwen2 split, no normaliser, ByteLevel.
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace stoa {

using TokenId = std::int32_t;
inline constexpr const char* kEndOfText = "<|endoftext|>";

/// What BPE training yields: vocab[id] = bytes of token id (special tokens after the vocabulary),
/// and the merges in rank order as pairs of ids.
struct BpeModel {
    std::vector<std::string> vocab;
    std::vector<std::pair<TokenId, TokenId>> merges;
    std::vector<std::string> special_tokens;
    std::string split_pattern;
};

class Tokenizer {
public:
    /// errors: DataError (malformed model)
    explicit Tokenizer(BpeModel model);
    /// Reads tokenizer.json. errors: DataError naming the file and what is wrong or unsupported.
    static Tokenizer load(const std::string& path);
    /// Writes tokenizer.json (temporary name, then rename). errors: DataError
    void save(const std::string& path) const;

    /// Token ids of any bytes, valid UTF-8 or not; special tokens in the text are encoded as text.
    /// Safe to call from several threads (they take turns).
    std::vector<TokenId> encode(std::string_view text) const;
    std::string decode(const std::vector<TokenId>& ids) const;  // special tokens as their text

    std::int64_t vocab_size() const;  // special tokens included
    TokenId end_of_text() const;
    /// xxh3 of vocabulary, merges and split: ties shards and checkpoints to their tokenizer.
    std::string hash() const;

    Tokenizer(Tokenizer&&) noexcept;
    Tokenizer& operator=(Tokenizer&&) noexcept;
    ~Tokenizer();

private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace stoa
