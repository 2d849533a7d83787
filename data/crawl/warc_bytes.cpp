#include "data/crawl/warc_bytes.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "kernels/core/error.h"

namespace stoa {
namespace {

constexpr std::size_t kInputBytes = 64 << 10;
constexpr std::size_t kFillBytes = 256 << 10;

bool is_member_header(const unsigned char* p) {
    return p[0] == 0x1f && p[1] == 0x8b && p[2] == 8 &&
           (p[3] & 0xe0) == 0;  // deflate, no reserved flag
}

bool starts_like_warc(std::string_view bytes) {
    const std::size_t at = bytes.find_first_not_of("\r\n \t");
    return at != std::string_view::npos && bytes.substr(at, 5) == "WARC/";
}

}  // namespace

WarcBytes::WarcBytes(const std::string& path)
    : file_(std::fopen(path.c_str(), "rb"), &std::fclose), path_(path) {
    if (!file_)
        throw DataError({.what = "cannot open the crawl file",
                         .where = path,
                         .actual = std::strerror(errno),
                         .hint = "check the path and its permissions"});
    if (inflateInit2(&stream_, 15 + 16) != Z_OK)
        throw DataError({.what = "zlib could not be started", .where = path});
    refill_input();
    const std::string_view head = input_;
    gzip_ = head.substr(0, 2) == "\x1f\x8b";
    if (gzip_ || starts_like_warc(head)) return;
    // Neither: a plain file with a damaged start, unless a gzip member with a record follows.
    const std::int64_t member = find_member(0);
    seek(member >= 0 ? member : 0);
    gzip_ = member >= 0;
    if (member > 0) {
        damage_ = fmt::format("{} bytes before the first gzip member", member);
        resume_at_ = member;
    }
}

bool WarcBytes::refill_input() {
    input_.resize(kInputBytes);
    const std::size_t got = std::fread(input_.data(), 1, kInputBytes, file_.get());
    if (got == 0 && std::ferror(file_.get()))
        throw DataError({.what = "cannot read the crawl file",
                         .where = path_,
                         .actual = std::strerror(errno),
                         .hint = "is it a regular file on a healthy disk?"});
    input_.resize(got);
    next_offset_ += std::int64_t(got);
    stream_.next_in = reinterpret_cast<Bytef*>(input_.data());
    stream_.avail_in = static_cast<uInt>(got);
    return got > 0;
}

void WarcBytes::seek(std::int64_t offset) {
    if (fseeko(file_.get(), offset, SEEK_SET) != 0)
        throw DataError({.what = "cannot seek in the crawl file",
                         .where = path_,
                         .actual = std::strerror(errno)});
    input_.clear();
    next_offset_ = offset;
    stream_.avail_in = 0;
    refill_input();
}

WarcBytes::State WarcBytes::fill() {
    if (resume_at_ >= 0) return State::damaged;  // until cross_damage()
    if (begin_ > 0) buffer_.erase(0, begin_);
    begin_ = 0;
    if (!pending_damage_.empty()) return damaged(std::exchange(pending_damage_, ""));
    return gzip_ ? fill_gzip() : fill_plain();
}

WarcBytes::State WarcBytes::fill_plain() {
    if (stream_.avail_in == 0 && !refill_input()) return State::end;
    buffer_.append(reinterpret_cast<const char*>(stream_.next_in), stream_.avail_in);
    stream_.avail_in = 0;
    return State::more;
}

WarcBytes::State WarcBytes::damaged(std::string what) {
    damage_ = std::move(what);
    suspect_ = in_member_ && member_out_ > 0;
    const std::int64_t from = in_member_ ? member_offset_ + 3 : member_offset_;
    in_member_ = false;
    resume_at_ = find_member(from);
    if (resume_at_ < 0) {  // nothing readable follows
        fseeko(file_.get(), 0, SEEK_END);
        resume_at_ = ftello(file_.get());
    }
    return State::damaged;
}

void WarcBytes::cross_damage() {
    if (resume_at_ < 0) return;
    buffer_.clear();
    begin_ = 0;
    suspect_ = false;
    seek(resume_at_);
    resume_at_ = -1;
}

/// Skips the zero bytes some tools pad with, then opens a member; false at the end of the file or
/// where something else than a member starts (then avail_in > 0).
bool WarcBytes::start_member() {
    while (true) {
        if (stream_.avail_in == 0 && !refill_input()) return false;
        if (*stream_.next_in != 0) break;
        ++stream_.next_in;
        --stream_.avail_in;
    }
    member_offset_ = file_offset();
    member_out_ = 0;
    if (stream_.avail_in < 4) seek(member_offset_);  // the header must not straddle two blocks
    // A file cut inside the header counts as a member that was cut.
    in_member_ =
        stream_.avail_in < 4 ? *stream_.next_in == 0x1f : is_member_header(stream_.next_in);
    if (in_member_) inflateReset(&stream_);
    return in_member_;
}

WarcBytes::State WarcBytes::fill_gzip() {
    if (!in_member_ && !start_member()) {
        if (stream_.avail_in == 0) return State::end;
        return damaged(fmt::format("no gzip member at offset {}", member_offset_));
    }
    const std::size_t before = buffer_.size();
    buffer_.resize(before + kFillBytes);
    stream_.next_out = reinterpret_cast<Bytef*>(buffer_.data() + before);
    stream_.avail_out = kFillBytes;
    int rc = Z_OK;
    bool ended = false;
    while (rc == Z_OK && stream_.avail_out > 0) {
        if (stream_.avail_in == 0 && !refill_input()) {
            ended = true;
            break;
        }
        rc = inflate(&stream_, Z_NO_FLUSH);
    }
    const std::size_t out = kFillBytes - stream_.avail_out;
    buffer_.resize(before + out);
    member_out_ += std::int64_t(out);
    if (rc == Z_STREAM_END) {
        in_member_ = false;
        return State::more;  // possibly by nothing: an empty member
    }
    if (ended) {
        in_member_ = false;
        truncated_ = true;
        return out > 0 ? State::more : State::end;
    }
    if (rc == Z_OK) return State::more;
    const std::string what = fmt::format("gzip member at offset {}: {}", member_offset_,
                                         stream_.msg ? stream_.msg : "damaged");
    if (out == 0) return damaged(what);
    // Hand out what came before the damage first: it may hold whole records.
    pending_damage_ = what;
    return State::more;
}

/// First offset >= from where a gzip member starts that decompresses to a WARC record; -1 for none.
std::int64_t WarcBytes::find_member(std::int64_t from) {
    seek(from);
    std::string carry;  // the last 3 bytes of the block before: a header may straddle two blocks
    while (!input_.empty()) {
        const std::string block = carry + input_;
        const std::int64_t block_offset = next_offset_ - std::int64_t(block.size());
        const std::int64_t behind = next_offset_;
        for (std::size_t i = 0; i + 4 <= block.size(); ++i) {
            const void* hit = std::memchr(block.data() + i, 0x1f, block.size() - 3 - i);
            if (hit == nullptr) break;
            i = std::size_t(static_cast<const char*>(hit) - block.data());
            if (!is_member_header(reinterpret_cast<const unsigned char*>(block.data()) + i))
                continue;
            if (holds_warc(block_offset + std::int64_t(i))) return block_offset + std::int64_t(i);
        }
        carry = block.substr(block.size() - std::min<std::size_t>(3, block.size()));
        seek(behind);
    }
    return -1;
}

bool WarcBytes::holds_warc(std::int64_t offset) {
    seek(offset);
    inflateReset(&stream_);
    char head[64];
    stream_.next_out = reinterpret_cast<Bytef*>(head);
    stream_.avail_out = sizeof head;
    int rc = Z_OK;
    while (rc == Z_OK && stream_.avail_out > 0) {
        if (stream_.avail_in == 0 && !refill_input()) break;
        rc = inflate(&stream_, Z_NO_FLUSH);
    }
    const std::string_view out(head, sizeof head - stream_.avail_out);
    return (rc == Z_OK || rc == Z_STREAM_END) && starts_like_warc(out);
}

}  // namespace stoa
