#include "data/token_shard_file.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <cstring>
#include <memory>

#include "data/h5.h"
#include "kernels/core/error.h"

namespace stoa {
namespace {

[[noreturn]] void refuse(const std::string& path, const std::string& what,
                         const std::string& expected, const std::string& actual) {
    throw DataError({.what = what,
                     .where = path,
                     .expected = expected,
                     .actual = actual,
                     .hint = "write the shards again: stoa data build ..."});
}

void verify_trailer(const std::string& path, const MappedFile& file) {
    if (file.bytes() <= kTrailerBytes)
        refuse(path, "not a token shard, or cut short", "an HDF5 file with a trailer",
               fmt::format("{} bytes", file.bytes()));
    const std::uint64_t body = file.bytes() - kTrailerBytes;
    const char* trailer = reinterpret_cast<const char*>(file.data()) + body;
    if (std::memcmp(trailer, kTrailerMagic, std::strlen(kTrailerMagic)) != 0)
        refuse(path, "not a token shard, or cut short", "a trailer at the end of the file", "none");
    if (std::memcmp(trailer, shard_trailer(file.data(), body).data(), kTrailerBytes) != 0)
        refuse(path, "the token shard is damaged", "the checksum in its trailer", "another one");
}

std::string read_string(const H5File& file, const std::string& path, const char* name) {
    const H5Attribute attribute(H5Aopen(file.id(), name, H5P_DEFAULT));
    const H5Type type(attribute.ok() ? H5Aget_type(attribute.id()) : H5I_INVALID_HID);
    const bool fixed =
        type.ok() && H5Tget_class(type.id()) == H5T_STRING && H5Tis_variable_str(type.id()) == 0;
    const H5Space space(fixed ? H5Aget_space(attribute.id()) : H5I_INVALID_HID);
    if (!space.ok() || H5Sget_simple_extent_npoints(space.id()) != 1)
        refuse(path, "not a token shard", fmt::format("a text attribute {}", name), "none");
    std::string value(H5Tget_size(type.id()), '\0');
    if (H5Aread(attribute.id(), type.id(), value.data()) < 0)
        refuse(path, "cannot read the token shard", fmt::format("attribute {}", name),
               "an HDF5 error");
    return value.substr(0, value.find('\0'));
}

std::int64_t read_int(const H5File& file, const std::string& path, const char* name) {
    const H5Attribute attribute(H5Aopen(file.id(), name, H5P_DEFAULT));
    const H5Space space(attribute.ok() ? H5Aget_space(attribute.id()) : H5I_INVALID_HID);
    std::int64_t value = 0;
    if (!space.ok() || H5Sget_simple_extent_npoints(space.id()) != 1 ||
        H5Aread(attribute.id(), H5T_NATIVE_INT64, &value) < 0)
        refuse(path, "not a token shard", fmt::format("a number in attribute {}", name), "none");
    return value;
}

struct Located {
    const std::byte* data = nullptr;
    std::int64_t count = 0;
    std::size_t item_bytes = 0;
};

/// Where the elements of a contiguous little-endian unsigned dataset lie in the mapping.
Located locate(const H5File& h5, const std::string& path, const MappedFile& file,
               const char* name) {
    const H5Dataset set(H5Dopen2(h5.id(), name, H5P_DEFAULT));
    const H5Space space(set.ok() ? H5Dget_space(set.id()) : H5I_INVALID_HID);
    const H5Type type(set.ok() ? H5Dget_type(set.id()) : H5I_INVALID_HID);
    const H5Plist plist(set.ok() ? H5Dget_create_plist(set.id()) : H5I_INVALID_HID);
    if (!space.ok() || !type.ok() || !plist.ok() || H5Sget_simple_extent_ndims(space.id()) != 1 ||
        H5Tget_class(type.id()) != H5T_INTEGER || H5Tget_sign(type.id()) != H5T_SGN_NONE ||
        H5Tget_order(type.id()) != H5T_ORDER_LE || H5Pget_layout(plist.id()) != H5D_CONTIGUOUS)
        refuse(path, "not a token shard",
               fmt::format("a contiguous list of unsigned integers in {}", name), "something else");
    const auto count = static_cast<std::uint64_t>(H5Sget_simple_extent_npoints(space.id()));
    const std::size_t item = H5Tget_size(type.id());
    const haddr_t offset = H5Dget_offset(set.id());
    const std::uint64_t body = file.bytes() - kTrailerBytes;
    if (count == 0 || offset == HADDR_UNDEF || offset % item != 0 || offset > body ||
        count > (body - offset) / item)
        refuse(path, "not a token shard", fmt::format("{} inside the file", name),
               fmt::format("{} elements at byte {} of {}", count, offset, body));
    return {file.data() + offset, static_cast<std::int64_t>(count), item};
}

template <class Token>
TokenId largest_token(const std::byte* data, std::int64_t count) {
    const auto* t = reinterpret_cast<const Token*>(data);
    Token largest = 0;
    for (std::int64_t i = 0; i < count; ++i)
        largest = std::max(largest, t[i]);
    return static_cast<TokenId>(std::min<std::uint64_t>(largest, INT32_MAX));
}

/// Tokens inside the vocabulary, documents in order and each closed by end-of-text.
void verify_contents(const TokenShard& s) {
    const TokenId largest = s.wide ? largest_token<std::uint32_t>(s.tokens, s.token_count)
                                   : largest_token<std::uint16_t>(s.tokens, s.token_count);
    if (largest >= s.info.vocab_size)
        refuse(s.path, "a token outside the vocabulary", fmt::format("< {}", s.info.vocab_size),
               std::to_string(largest));
    const auto* ends = reinterpret_cast<const std::uint64_t*>(s.doc_end);
    std::uint64_t before = 0;
    for (std::int64_t d = 0; d < s.doc_count; before = ends[d++]) {
        if (ends[d] <= before || ends[d] > static_cast<std::uint64_t>(s.token_count))
            refuse(s.path, "document ends out of order", "ascending ends within the tokens",
                   std::to_string(ends[d]));
        const std::uint64_t last = ends[d] - 1;
        const auto token = s.wide ? reinterpret_cast<const std::uint32_t*>(s.tokens)[last]
                                  : reinterpret_cast<const std::uint16_t*>(s.tokens)[last];
        if (static_cast<TokenId>(token) != s.info.end_of_text)
            refuse(s.path, fmt::format("document {} is not closed", d),
                   fmt::format("end-of-text ({})", s.info.end_of_text), std::to_string(token));
    }
    if (before != static_cast<std::uint64_t>(s.token_count))
        refuse(s.path, "tokens after the last document", std::to_string(before),
               std::to_string(s.token_count));
}

}  // namespace

std::string shard_trailer(const std::byte* data, std::uint64_t bytes) {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits(data, bytes));
    return kTrailerMagic +
           std::string(reinterpret_cast<const char*>(canonical.digest), sizeof canonical.digest);
}

std::string dataset_checksum(std::span<const std::byte> tokens,
                             std::span<const std::byte> doc_end) {
    const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(),
                                                                                XXH3_freeState);
    XXH3_128bits_reset(state.get());
    XXH3_128bits_update(state.get(), tokens.data(), tokens.size());
    XXH3_128bits_update(state.get(), doc_end.data(), doc_end.size());
    const XXH128_hash_t h = XXH3_128bits_digest(state.get());
    return fmt::format("{:016x}{:016x}", h.high64, h.low64);
}

TokenShard open_token_shard(const std::string& path) {
    MappedFile mapped(path);
    verify_trailer(path, mapped);
    const H5Quiet quiet;
    const H5Plist access(H5Pcreate(H5P_FILE_ACCESS));
    H5Pset_file_locking(access.id(), false, true);  // shards may lie on a read-only file system
    const H5File h5(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.id()));
    if (!h5.ok()) refuse(path, "not a token shard", "an HDF5 file", "something else");
    if (const std::string format = read_string(h5, path, "format"); format != kTokenShardFormat)
        refuse(path, "unknown shard format", kTokenShardFormat, format);
    TokenShard s{.path = path, .file = std::move(mapped), .info = {}};
    s.info = {.tokenizer_hash = read_string(h5, path, "tokenizer_hash"),
              .vocab_size = read_int(h5, path, "vocab_size"),
              .end_of_text = static_cast<TokenId>(read_int(h5, path, "end_of_text")),
              .split = read_string(h5, path, "split"),
              .source = read_string(h5, path, "source")};
    const Located tokens = locate(h5, path, s.file, "tokens"),
                  ends = locate(h5, path, s.file, "doc_end");
    if ((tokens.item_bytes != 2 && tokens.item_bytes != 4) || ends.item_bytes != 8)
        refuse(path, "not a token shard", "tokens of 2 or 4 bytes, doc_end of 8",
               fmt::format("{} and {}", tokens.item_bytes, ends.item_bytes));
    s.wide = tokens.item_bytes == 4;
    s.tokens = tokens.data, s.token_count = tokens.count;
    s.doc_end = ends.data, s.doc_count = ends.count;
    const std::string checksum =
        dataset_checksum({s.tokens, static_cast<std::size_t>(s.token_count) * tokens.item_bytes},
                         {s.doc_end, static_cast<std::size_t>(s.doc_count) * 8});
    if (const std::string stored = read_string(h5, path, "checksum"); stored != checksum)
        refuse(path, "the token shard is damaged", "checksum " + stored, checksum);
    verify_contents(s);
    return s;
}

}  // namespace stoa
