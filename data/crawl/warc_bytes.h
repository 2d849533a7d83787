#pragma once
// The decompressed bytes of a crawl file as one window that moves forward, with the places marked
// where damaged compressed data had to be skipped. Used by warc_reader only.
#include <zlib.h>

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>

namespace stoa {

class WarcBytes {
public:
    enum class State {
        more,     // bytes were added (none for an empty gzip member)
        damaged,  // the bytes after the window are not the continuation of it: see cross_damage()
        end,      // end of file
    };

    /// errors: DataError when the file cannot be opened or read
    explicit WarcBytes(const std::string& path);
    WarcBytes(const WarcBytes&) = delete;
    WarcBytes& operator=(const WarcBytes&) = delete;

    std::string_view window() const { return std::string_view(buffer_).substr(begin_); }
    void consume(std::size_t bytes) { begin_ += bytes; }
    /// Puts bytes back in front of the window.
    void unread(std::string_view bytes) {
        buffer_.replace(0, begin_, bytes);
        begin_ = 0;
    }
    /// Appends up to 256 KiB to the window.
    State fill();
    /// After State::damaged: whether the bytes at the end of the window come from the damaged
    /// member itself, so that a record ending there cannot be trusted.
    bool window_end_suspect() const { return suspect_; }
    /// Drops the window and goes on behind the damage.
    void cross_damage();
    /// The file ends inside a gzip member.
    bool truncated() const { return truncated_; }
    /// Where in the (compressed) file the reader is, for messages.
    std::int64_t file_offset() const { return next_offset_ - std::int64_t(stream_.avail_in); }
    /// What went wrong in the last damaged part, in words.
    const std::string& damage() const { return damage_; }

private:
    bool refill_input();
    void seek(std::int64_t offset);
    bool start_member();
    State fill_plain();
    State fill_gzip();
    State damaged(std::string what);
    std::int64_t find_member(std::int64_t from);
    bool holds_warc(std::int64_t offset);

    std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
    std::string path_;
    std::string input_;             // one block of the file
    std::int64_t next_offset_ = 0;  // file offset behind input_
    std::string buffer_;            // decompressed; [begin_, size) is the window
    std::size_t begin_ = 0;
    struct InflateStream : z_stream {
        InflateStream() : z_stream{} {}
        ~InflateStream() { inflateEnd(this); }  // harmless before inflateInit2
    };
    InflateStream stream_;
    bool gzip_ = false, in_member_ = false;
    std::int64_t member_offset_ = 0, member_out_ = 0, resume_at_ = -1;
    bool suspect_ = false, truncated_ = false;
    std::string damage_, pending_damage_;
};

}  // namespace stoa
