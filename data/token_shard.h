#pragma once
// Token shards: one HDF5 file with a contiguous `tokens` dataset (u16 or u32), `doc_end` (u64, one
// past the last token of each document; every document ends with end-of-text) and attributes
// {format, tokenizer_hash, vocab_size, end_of_text, split, source, checksum (xxh3 of tokens and
// doc_end)}.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/tokenizer/tokenizer.h"

namespace stoa {

struct TokenShardInfo {
    std::string tokenizer_hash;
    std::int64_t vocab_size = 0;
    TokenId end_of_text = 0;
    std::string split;   // train | holdout
    std::string source;  // free text: where the documents came from
};

/// Writes one shard: temporary name, fsync, rename. errors: DataError
void write_token_shard(const std::string& path, const TokenShardInfo& info,
                       const std::vector<TokenId>& tokens,
                       const std::vector<std::uint64_t>& doc_ends);

/// All shards of one split in a directory ("train-00000.h5", "holdout-00000.h5", ... in name order)
/// as one token stream, memory-mapped at the offset of their contiguous datasets.
class TokenStream {
public:
    /// Opens <dir>/<split>-*.h5, verifies checksums and that all shards share one tokenizer.
    /// errors: DataError (no shards, damaged file, mixed tokenizers, another tokenizer than `hash`;
    ///         an empty `hash` accepts any)
    static TokenStream open(const std::string& dir, const std::string& split,
                            const std::string& hash);
    /// Whether <dir> holds any shard of the split. errors: DataError (no such directory)
    static bool exists(const std::string& dir, const std::string& split);
    std::int64_t size() const;
    const TokenShardInfo& info() const;
    /// Copies tokens [begin, begin + count) of the stream.
    void read(std::int64_t begin, std::int64_t count, TokenId* out) const;

    TokenStream(TokenStream&&) noexcept;
    TokenStream& operator=(TokenStream&&) noexcept;
    ~TokenStream();

private:
    TokenStream();
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace stoa
