#include "data/crawl/warc_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>

#include "data/crawl/ascii.h"
#include "data/crawl/warc_bytes.h"
#include "kernels/core/error.h"

namespace stoa {
namespace {

constexpr std::size_t kMaxHeaderBytes = 256 << 10;
constexpr std::int64_t kMaxBodyBytes = std::int64_t{64} << 20;
constexpr std::int64_t kMaxUnreadBytes = std::int64_t{256} << 20;
constexpr std::size_t kMaxNotes = 20;
using State = WarcBytes::State;

struct Reader {
    WarcBytes bytes;
    WarcCounts counts;
    std::string path;
    std::int64_t unread_bytes = 0;
    bool junk_noted = false;

    void note(std::string text) {
        if (counts.notes.size() < kMaxNotes)
            counts.notes.push_back(fmt::format("{}: {}", path, std::move(text)));
    }
    void give_up(std::string why) {
        ++counts.damaged;
        note(fmt::format("near offset {}: {}", bytes.file_offset(), std::move(why)));
    }
    void cross_damage() {
        ++counts.damaged;
        note(bytes.damage());
        bytes.cross_damage();
    }
};

/// Whether "WARC/1.0" or the like stands at `at`.
bool is_version(std::string_view s, std::size_t at) {
    if (at > s.size()) return false;
    s = s.substr(at, 8);
    return s.size() == 8 && s.substr(0, 5) == "WARC/" && is_digit(s[5]) && s[6] == '.' &&
           is_digit(s[7]);
}

/// The first line of `s` at or behind `from` that starts a record; npos for none.
std::size_t find_version(std::string_view s, std::size_t from) {
    for (std::size_t at = s.find("WARC/", from); at != s.npos; at = s.find("WARC/", at + 5))
        if ((at == 0 || s[at - 1] == '\n') && is_version(s, at)) return at;
    return s.npos;
}

/// Moves the window to the next line that starts a record. False at the end of the file.
bool resynchronise(Reader& r) {
    std::size_t from = 0;
    while (true) {
        const std::string_view w = r.bytes.window();
        const std::size_t at = find_version(w, from);
        if (at != w.npos) {
            r.bytes.consume(at);
            return true;
        }
        // Keep a tail that may hold the start of the line, and the byte before it.
        if (w.size() > 8) r.bytes.consume(w.size() - 8);
        from = std::min<std::size_t>(1, w.size());
        const State state = r.bytes.fill();
        if (state == State::end) return false;
        if (state == State::damaged) {
            r.cross_damage();
            from = 0;
        }
    }
}

/// Skips blank bytes between records. more: a record or junk follows.
State skip_blank(Reader& r) {
    while (true) {
        const std::string_view w = r.bytes.window();
        const std::size_t at = w.find_first_not_of("\r\n \t");
        r.bytes.consume(at == w.npos ? w.size() : at);
        // 8 bytes decide whether a record starts here.
        if (at != w.npos && w.size() - at >= 8) return State::more;
        const State state = r.bytes.fill();
        if (state != State::more) return at == w.npos ? state : State::more;
    }
}

/// Size of the header block including its blank line, once it is whole; 0 when not yet; npos when
/// the next record starts before the header has ended.
std::size_t header_size(std::string_view w) {
    for (std::size_t at = w.find('\n'); at != w.npos; at = w.find('\n', at + 1)) {
        if (is_version(w, at + 1)) return w.npos;
        if (at + 1 < w.size() && w[at + 1] == '\n') return at + 2;
        if (at + 2 < w.size() && w[at + 1] == '\r' && w[at + 2] == '\n') return at + 3;
    }
    return 0;
}

void parse_headers(std::string_view block, WarcRecord& record) {
    next_line(block);  // WARC/1.0
    while (!block.empty()) {
        const std::string_view line = next_line(block);
        if (line.empty()) continue;
        if ((line[0] == ' ' || line[0] == '\t') && !record.headers.empty()) {  // folded value
            record.headers.back().second += " " + std::string(trim(line));
            continue;
        }
        const std::size_t colon = line.find(':');
        if (colon == line.npos) continue;
        record.headers.emplace_back(trim(line.substr(0, colon)), trim(line.substr(colon + 1)));
    }
    for (const auto& [name, value] : record.headers) {
        if (iequals(name, "WARC-Type")) record.type = to_lower(value);
        if (iequals(name, "Content-Type")) record.content_type = value;
        if (iequals(name, "WARC-Target-URI")) {
            const bool angled = value.size() >= 2 && value.front() == '<' && value.back() == '>';
            record.uri = angled ? value.substr(1, value.size() - 2) : value;
        }
    }
}

/// Content-Length, or nothing when it is absent, malformed or negative.
std::optional<std::int64_t> content_length(const WarcRecord& record) {
    for (const auto& [name, value] : record.headers) {
        if (!iequals(name, "Content-Length")) continue;
        std::int64_t n = 0;
        const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), n);
        if (error != std::errc{} || end != value.data() + value.size() || n < 0)
            return std::nullopt;
        return n;
    }
    return std::nullopt;
}

/// Takes the headers from the window. False: given up.
bool read_headers(Reader& r, WarcRecord& record) {
    std::size_t size = 0;
    while ((size = header_size(r.bytes.window())) == 0) {
        const bool too_long = r.bytes.window().size() > kMaxHeaderBytes;
        const State state = too_long ? State::end : r.bytes.fill();
        if (state == State::more) continue;
        if (state == State::end)
            r.give_up(too_long ? "a record header without an end"
                               : "the file ends inside a record header");
        r.bytes.consume(r.bytes.window().size());
        return false;
    }
    if (size == std::string_view::npos) {
        r.give_up("a record header that runs into the next record");
        r.bytes.consume(8);
        return false;
    }
    parse_headers(r.bytes.window().substr(0, size), record);
    r.bytes.consume(size);
    return true;
}

/// Takes `count` bytes from the window, into `out` unless it is null. more: all of them.
State take(Reader& r, std::int64_t count, std::string* out) {
    while (true) {
        const std::string_view w =
            r.bytes.window().substr(0, std::size_t(std::min<std::int64_t>(count, kMaxBodyBytes)));
        if (out) out->append(w);
        r.bytes.consume(w.size());
        count -= std::int64_t(w.size());
        if (count == 0) return State::more;
        const State state = r.bytes.fill();
        if (state != State::more) return state;
    }
}

/// A wrong Content-Length swallowed the start of another record: cuts the body there and puts the
/// rest back. The bytes put back are limited per file, so that no input costs more than linear
/// time.
bool cut_at_swallowed_record(Reader& r, WarcRecord& record) {
    const std::size_t at = find_version(record.body, 0);
    if (at == std::string::npos) return false;
    const auto rest = std::string_view(record.body).substr(at);
    r.unread_bytes += std::int64_t(rest.size());
    if (r.unread_bytes > kMaxUnreadBytes) return false;
    r.bytes.unread(rest);
    record.body.resize(at);
    return true;
}

/// Whether what follows the body is a record, a start of one cut by the end of the file, or
/// nothing.
bool well_framed(Reader& r, State after) {
    if (after != State::more) return true;
    const std::string_view w = r.bytes.window();
    if (w.size() >= 8) return is_version(w, 0);
    return w.substr(0, 5) == std::string_view("WARC/").substr(0, w.size());
}

/// One record from "WARC/" to the start of the next. False: given up; the caller resynchronises.
bool read_record(Reader& r, WarcRecord& record) {
    if (!read_headers(r, record)) return false;
    const auto length = content_length(record);
    if (!length) {
        r.give_up("a record without a usable Content-Length");
        return false;
    }
    State state = take(r, std::min(*length, kMaxBodyBytes), &record.body);
    if (state == State::more && *length > kMaxBodyBytes) {
        if (cut_at_swallowed_record(r, record)) {
            r.give_up("a Content-Length that reaches past the next record");
            return true;
        }
        r.note(fmt::format("{}: a record of {} bytes was cut to {}", record.uri, *length,
                           kMaxBodyBytes));
        state = take(r, *length - kMaxBodyBytes, nullptr);
    }
    if (state == State::damaged) return false;  // counted where the damage is crossed
    if (state == State::end) {
        record.truncated = !cut_at_swallowed_record(r, record);
        if (record.truncated)
            r.note(fmt::format("the file ends inside a record: {} of {} bytes", record.body.size(),
                               *length));
        else
            r.give_up("a Content-Length that reaches past the next record");
        return true;
    }
    const State after = skip_blank(r);
    if (after == State::damaged && r.bytes.window_end_suspect()) return false;
    if (!well_framed(r, after)) {
        cut_at_swallowed_record(r, record);
        r.give_up("a Content-Length that does not lead to the next record");
    }
    return true;
}

[[noreturn]] void throw_no_record(const Reader& r, bool arc) {
    if (arc)
        throw DataError(
            {.what = "ARC files (the format before WARC) are not supported",
             .where = r.path,
             .expected = "a WARC or WET file",
             .actual = "an ARC version block (filedesc://)",
             .hint = "convert it first, for example with `warcio recompress` or jwarc"});
    throw DataError({.what = "no WARC record in this file",
                     .where = r.path,
                     .expected = "records that start with WARC/0.18, WARC/1.0 or WARC/1.1",
                     .actual = r.counts.notes.empty() ? "none" : r.counts.notes.front(),
                     .hint = "is this a .warc(.gz) or .wet(.gz) file, completely downloaded?"});
}

}  // namespace

WarcCounts read_warc(const std::string& path,
                     const std::function<void(const WarcRecord&)>& on_record) {
    Reader r{.bytes = WarcBytes(path), .counts = {}, .path = path};
    skip_blank(r);
    const bool arc = r.bytes.window().substr(0, 11) == "filedesc://";
    while (!arc) {
        const State state = skip_blank(r);
        if (state == State::end) break;
        if (state == State::damaged) {
            r.cross_damage();
            continue;
        }
        if (r.bytes.window().size() < 8 || !is_version(r.bytes.window(), 0)) {
            if (!r.junk_noted) r.note("bytes that belong to no record were passed over");
            r.junk_noted = true;
            if (!resynchronise(r)) break;
        }
        WarcRecord record;
        if (!read_record(r, record)) continue;
        ++r.counts.records;
        on_record(record);
    }
    if (r.bytes.truncated()) r.note("the file ends inside a gzip member");
    if (r.counts.records == 0) throw_no_record(r, arc);
    return std::move(r.counts);
}

}  // namespace stoa
