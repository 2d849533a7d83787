#include "data/token_shard.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "data/h5.h"
#include "data/token_shard_file.h"
#include "kernels/core/error.h"

namespace stoa {
namespace {

namespace fs = std::filesystem;

/// A writer's temporary file: gone unless it was renamed into place.
struct TemporaryFile {
    std::string path;
    ~TemporaryFile() { unlink(path.c_str()); }
};

[[noreturn]] void cannot_write(const std::string& path, const std::string& why) {
    throw DataError({.what = "cannot write the token shard",
                     .where = path,
                     .actual = why,
                     .hint = "check that the directory is writable and the disk has space"});
}

void check_contents(const std::string& path, const TokenShardInfo& info,
                    const std::vector<TokenId>& tokens,
                    const std::vector<std::uint64_t>& doc_ends) {
    const auto refuse = [&](const char* rule, const std::string& actual) {
        throw DataError({.what = "these tokens make no shard",
                         .where = path,
                         .expected = rule,
                         .actual = actual});
    };
    if (tokens.empty() || doc_ends.empty()) refuse("at least one document", "none");
    for (const TokenId t : tokens)
        if (t < 0 || t >= info.vocab_size) refuse("tokens below vocab_size", std::to_string(t));
    std::uint64_t before = 0;
    for (const std::uint64_t end : doc_ends) {
        if (end <= before || end > tokens.size())
            refuse("ascending document ends", std::to_string(end));
        if (tokens[end - 1] != info.end_of_text)
            refuse("end-of-text at each document's end", std::to_string(tokens[end - 1]));
        before = end;
    }
    if (before != tokens.size())
        refuse("the last document to end with the tokens", std::to_string(before));
}

bool write_attribute(const H5File& file, const char* name, hid_t type, const void* value) {
    const H5Space scalar(H5Screate(H5S_SCALAR));
    const H5Attribute a(H5Acreate2(file.id(), name, type, scalar.id(), H5P_DEFAULT, H5P_DEFAULT));
    return a.ok() && H5Awrite(a.id(), type, value) >= 0;
}

bool write_text(const H5File& file, const char* name, const std::string& value) {
    const H5Type type(H5Tcopy(H5T_C_S1));
    H5Tset_size(type.id(), value.size() + 1);
    H5Tset_cset(type.id(), H5T_CSET_UTF8);
    return write_attribute(file, name, type.id(), value.c_str());
}

bool write_dataset(const H5File& file, const char* name, hid_t type, std::uint64_t count,
                   const void* data) {
    const hsize_t dims[1] = {count};
    const H5Space space(H5Screate_simple(1, dims, nullptr));
    const H5Plist plist(H5Pcreate(H5P_DATASET_CREATE));
    H5Pset_layout(plist.id(), H5D_CONTIGUOUS);
    H5Pset_alloc_time(plist.id(), H5D_ALLOC_TIME_EARLY);  // one extent, at a fixed offset
    H5Pset_fill_time(plist.id(), H5D_FILL_TIME_NEVER);
    H5Pset_obj_track_times(plist.id(), false);  // the same input gives the same bytes, any day
    const H5Dataset set(
        H5Dcreate2(file.id(), name, type, space.id(), H5P_DEFAULT, plist.id(), H5P_DEFAULT));
    return set.ok() && H5Dwrite(set.id(), type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0;
}

bool write_h5(const std::string& path, const TokenShardInfo& info, hid_t token_type,
              std::span<const std::byte> tokens, std::uint64_t token_count,
              const std::vector<std::uint64_t>& doc_ends) {
    const H5Quiet quiet;
    const H5Plist access(H5Pcreate(H5P_FILE_ACCESS));
    H5Pset_libver_bounds(access.id(), H5F_LIBVER_V110, H5F_LIBVER_V110);
    H5Pset_alignment(access.id(), 1, 64);          // the mapping is read as arrays of integers
    H5Pset_small_data_block_size(access.id(), 0);  // or small datasets share a block, unaligned
    H5Pset_file_locking(access.id(), false, true);
    const H5Plist creation(H5Pcreate(H5P_FILE_CREATE));
    H5Pset_obj_track_times(creation.id(), false);  // of the root group
    H5File file(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation.id(), access.id()));
    const std::int64_t vocab = info.vocab_size, end_of_text = info.end_of_text;
    const bool written =
        file.ok() && write_text(file, "format", kTokenShardFormat) &&
        write_text(file, "tokenizer_hash", info.tokenizer_hash) &&
        write_attribute(file, "vocab_size", H5T_STD_I64LE, &vocab) &&
        write_attribute(file, "end_of_text", H5T_STD_I64LE, &end_of_text) &&
        write_text(file, "split", info.split) && write_text(file, "source", info.source) &&
        write_text(file, "checksum",
                   dataset_checksum(tokens, std::as_bytes(std::span(doc_ends)))) &&
        write_dataset(file, "tokens", token_type, token_count, tokens.data()) &&
        write_dataset(file, "doc_end", H5T_STD_U64LE, doc_ends.size(), doc_ends.data());
    return file.close() && written;
}

void append_trailer_and_sync(const std::string& temporary, const std::string& path) {
    std::string trailer;
    {
        const MappedFile mapped(temporary);
        trailer = shard_trailer(mapped.data(), mapped.bytes());
    }
    const int fd = open(temporary.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
    bool ok = fd >= 0 &&
              write(fd, trailer.data(), trailer.size()) == static_cast<ssize_t>(trailer.size()) &&
              fsync(fd) == 0;
    const int why = errno;
    if (fd >= 0) ok = close(fd) == 0 && ok;
    if (!ok) cannot_write(path, std::strerror(why));
}

void sync_directory(const std::string& path) {
    const std::string dir = fs::path(path).parent_path().string();
    const int fd = open(dir.empty() ? "." : dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    (void)fsync(fd);  // some file systems cannot; the rename itself has been done
    close(fd);
}

std::vector<std::string> shards_of(const std::string& dir, const std::string& split) {
    std::vector<std::string> paths;
    std::error_code ec;
    for (fs::directory_iterator it(dir, ec), end; !ec && it != end; it.increment(ec)) {
        const std::string name = it->path().filename().string();
        if (name.starts_with(split + "-") && name.ends_with(".h5"))
            paths.push_back(it->path().string());
    }
    if (ec)
        throw DataError({.what = "cannot list the shards", .where = dir, .actual = ec.message()});
    std::sort(paths.begin(), paths.end());
    return paths;
}

/// All shards of a stream were written with one tokenizer, the one the caller has.
void check_same_tokenizer(const TokenShard& shard, const TokenShard& first, const std::string& hash,
                          const std::string& split) {
    const auto refuse = [&](const char* what, const std::string& expected,
                            const std::string& actual) {
        throw DataError({.what = what,
                         .where = shard.path,
                         .expected = expected,
                         .actual = actual,
                         .hint = "use the tokenizer.json beside the shards, or build the shards "
                                 "again with this one"});
    };
    const std::string& wanted = hash.empty() ? first.info.tokenizer_hash : hash;
    if (shard.info.tokenizer_hash != wanted)
        refuse("the shard was made with another tokenizer", "hash " + wanted,
               shard.info.tokenizer_hash);
    if (shard.info.vocab_size != first.info.vocab_size ||
        shard.info.end_of_text != first.info.end_of_text)
        refuse("shards of one stream differ", fmt::format("vocab_size {}", first.info.vocab_size),
               std::to_string(shard.info.vocab_size));
    if (shard.info.split != split) refuse("the shard is of another split", split, shard.info.split);
}

}  // namespace

void write_token_shard(const std::string& path, const TokenShardInfo& info,
                       const std::vector<TokenId>& tokens,
                       const std::vector<std::uint64_t>& doc_ends) {
    check_contents(path, info, tokens, doc_ends);
    const TemporaryFile temporary{fmt::format("{}.tmp.{}", path, getpid())};
    bool written = false;
    if (info.vocab_size <= 65536) {
        const std::vector<std::uint16_t> narrow(tokens.begin(), tokens.end());
        written = write_h5(temporary.path, info, H5T_STD_U16LE, std::as_bytes(std::span(narrow)),
                           narrow.size(), doc_ends);
    } else {
        written = write_h5(temporary.path, info, H5T_STD_U32LE, std::as_bytes(std::span(tokens)),
                           tokens.size(), doc_ends);
    }
    if (!written) cannot_write(path, "an HDF5 error");
    append_trailer_and_sync(temporary.path, path);
    if (std::rename(temporary.path.c_str(), path.c_str()) != 0)
        cannot_write(path, std::strerror(errno));
    sync_directory(path);
}

struct TokenStream::State {
    std::vector<TokenShard> shards;
    std::vector<std::int64_t> begins;  // stream position of each shard's first token; the size last
};

TokenStream::TokenStream() : state_(std::make_unique<State>()) {}
TokenStream::TokenStream(TokenStream&&) noexcept = default;
TokenStream& TokenStream::operator=(TokenStream&&) noexcept = default;
TokenStream::~TokenStream() = default;

bool TokenStream::exists(const std::string& dir, const std::string& split) {
    return !shards_of(dir, split).empty();
}

TokenStream TokenStream::open(const std::string& dir, const std::string& split,
                              const std::string& hash) {
    TokenStream stream;
    State& s = *stream.state_;
    s.begins.push_back(0);
    for (const std::string& path : shards_of(dir, split)) {
        s.shards.push_back(open_token_shard(path));
        check_same_tokenizer(s.shards.back(), s.shards.front(), hash, split);
        s.begins.push_back(s.begins.back() + s.shards.back().token_count);
    }
    if (s.shards.empty())
        throw DataError({.what = "no token shards",
                         .where = dir,
                         .expected = fmt::format("files {}-*.h5", split),
                         .actual = "none",
                         .hint = "write them: stoa data build INPUT... --out " + dir});
    return stream;
}

std::int64_t TokenStream::size() const { return state_->begins.back(); }
const TokenShardInfo& TokenStream::info() const { return state_->shards.front().info; }

void TokenStream::read(std::int64_t begin, std::int64_t count, TokenId* out) const {
    const State& s = *state_;
    if (begin < 0 || count < 0 || count > size() - begin)
        throw DataError({.what = "read outside the token stream",
                         .expected = fmt::format("within {} tokens", size()),
                         .actual = fmt::format("{} + {}", begin, count)});
    auto i = static_cast<std::size_t>(std::upper_bound(s.begins.begin(), s.begins.end(), begin) -
                                      s.begins.begin()) -
             1;
    for (; count > 0; ++i) {
        const TokenShard& shard = s.shards[i];
        const std::int64_t at = begin - s.begins[i];
        const std::int64_t n = std::min(count, shard.token_count - at);
        if (shard.wide) {
            const auto* t = reinterpret_cast<const std::uint32_t*>(shard.tokens) + at;
            out = std::copy(t, t + n, out);
        } else {
            const auto* t = reinterpret_cast<const std::uint16_t*>(shard.tokens) + at;
            out = std::copy(t, t + n, out);
        }
        begin += n;
        count -= n;
    }
}

}  // namespace stoa
