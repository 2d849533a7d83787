#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace stoa {

/// One WARC record (WARC/0.18, 1.0, 1.1), decompressed. Header names as written in the file.
struct WarcRecord {
    std::string type;  // WARC-Type: response, conversion (WET), request, metadata, ...
    std::string uri;   // WARC-Target-URI without <>
    std::string content_type;
    std::vector<std::pair<std::string, std::string>> headers;
    std::string body;  // the block: for a response the HTTP message, for a conversion UTF-8 text
    bool truncated = false;  // the file ended inside this record
};

struct WarcCounts {
    std::int64_t records = 0;
    std::int64_t damaged = 0;        // members or records given up after resynchronising
    std::vector<std::string> notes;  // what and at which offset, one line each (at most 20)
};

/// Calls `on_record` for every record of a .warc, .wet, .warc.gz or .wet.gz file: one gzip member
/// per record, the whole file in one member, or no compression. Damaged parts are counted and
/// skipped by resynchronising at the next record start; a truncated file yields what it holds and a
/// note. errors: DataError when the file cannot be opened or holds no record at all
WarcCounts read_warc(const std::string& path,
                     const std::function<void(const WarcRecord&)>& on_record);

}  // namespace stoa
