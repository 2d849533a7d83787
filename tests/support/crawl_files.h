#pragma once
// Small crawl files made in memory, and where the real ones are.
#include <zlib.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "tests/support/programs.h"

namespace stoa::test {

/// One gzip member (window_bits 31), or zlib (15) or raw deflate (-15).
inline std::string deflate_bytes(const std::string& bytes, int window_bits = 15 + 16) {
    z_stream stream{};
    deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, window_bits, 8, Z_DEFAULT_STRATEGY);
    std::string out(deflateBound(&stream, static_cast<uLong>(bytes.size())) + 64, '\0');
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
    stream.avail_in = static_cast<uInt>(bytes.size());
    stream.next_out = reinterpret_cast<Bytef*>(out.data());
    stream.avail_out = static_cast<uInt>(out.size());
    deflate(&stream, Z_FINISH);
    out.resize(stream.total_out);
    deflateEnd(&stream);
    return out;
}

inline std::string warc_record(const std::string& type, const std::string& body,
                               const std::string& uri = "http://example.org/",
                               const std::string& version = "1.0") {
    return "WARC/" + version + "\r\nWARC-Type: " + type + "\r\nWARC-Target-URI: " + uri +
           "\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body + "\r\n\r\n";
}

inline std::string http_response(const std::string& headers, const std::string& body,
                                 const std::string& status = "200 OK") {
    return "HTTP/1.1 " + status + "\r\n" + headers + "\r\n" + body;
}

/// A page's worth of English sentences, different for every number.
inline std::string prose(int number, int sentences = 12) {
    std::string text;
    for (int i = 0; i < sentences; ++i)
        text += "In the year " + std::to_string(1500 + number) +
                " the keeper of lighthouse number " + std::to_string(i + number) +
                " wrote that the sea had been calm for " +
                std::to_string(3 + (i * 7 + number) % 90) + " days and that a ship with " +
                std::to_string(2 + i * number % 17) + " masts was seen to the north.\n";
    return text;
}

/// A path in the folder of real data, "" when it is not there.
inline std::string shared_data(const std::string& name) {
    const char* given = std::getenv("STOA_SHARED_DATA");
    const std::filesystem::path root =
        given ? std::filesystem::path(given)
              : std::filesystem::path(source_dir()) / ".." / "shared" / "data";
    const auto path = root / name;
    return std::filesystem::exists(path) ? path.string() : "";
}

}  // namespace stoa::test
