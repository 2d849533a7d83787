#pragma once
// One shard file: what the writer and the reader of token shards agree on.
//
//   HDF5 file (libver 1.10, contiguous datasets)   opens in any HDF5 tool
//   "STOAXXH3" + xxh3-128 of all bytes before      24 bytes behind HDF5's end of file, which it
//   ignores
//
// The trailer is checked before HDF5 sees the file: the library may crash on damaged metadata.
#include <cstdint>
#include <span>
#include <string>

#include "data/mapped_file.h"
#include "data/token_shard.h"

namespace stoa {

inline constexpr const char* kTokenShardFormat = "stoa-token-shard-1";
inline constexpr const char* kTrailerMagic = "STOAXXH3";
inline constexpr std::uint64_t kTrailerBytes = 24;

/// The last 24 bytes of a shard whose HDF5 part is `bytes` long.
std::string shard_trailer(const std::byte* data, std::uint64_t bytes);
/// The `checksum` attribute: xxh3-128 over the bytes of tokens, then of doc_end, as 32 hex digits.
std::string dataset_checksum(std::span<const std::byte> tokens, std::span<const std::byte> doc_end);

/// An open, verified shard: HDF5 told where the datasets lie, the bytes come from the mapping.
struct TokenShard {
    std::string path;
    MappedFile file;
    TokenShardInfo info;
    bool wide = false;  // u32 tokens, else u16
    const std::byte* tokens = nullptr;
    std::int64_t token_count = 0;
    const std::byte* doc_end = nullptr;
    std::int64_t doc_count = 0;
};
/// errors: DataError (damaged, cut short, not a token shard)
TokenShard open_token_shard(const std::string& path);

}  // namespace stoa
