#include "data/crawl/text_extract.h"

#include <zlib.h>

#include <algorithm>
#include <optional>

#include "data/crawl/ascii.h"
#include "data/crawl/charset.h"

namespace stoa {
namespace {

constexpr std::size_t kMaxDecodedBytes = std::size_t{64} << 20;

struct HttpResponse {
    int status = 0;
    std::string content_type, content_encoding, transfer_encoding;
    std::string_view body;
};

std::optional<HttpResponse> parse_http(std::string_view message) {
    if (message.substr(0, 5) != "HTTP/") return std::nullopt;
    HttpResponse http;
    const std::string_view status = next_line(message);
    const std::size_t space = status.find(' ');
    for (std::size_t i = space; i < status.size() && i < space + 4; ++i)
        if (is_digit(status[i])) http.status = http.status * 10 + (status[i] - '0');
    while (!message.empty()) {
        const std::string_view line = next_line(message);
        if (line.empty()) break;
        const std::size_t colon = line.find(':');
        if (colon == line.npos) continue;
        const std::string_view name = trim(line.substr(0, colon));
        const std::string value = to_lower(trim(line.substr(colon + 1)));
        if (iequals(name, "Content-Type")) http.content_type = value;
        if (iequals(name, "Content-Encoding")) http.content_encoding = value;
        if (iequals(name, "Transfer-Encoding")) http.transfer_encoding = value;
    }
    http.body = message;
    return http;
}

/// Undoes chunked transfer coding [RFC 9112, 7.1]. A body that does not start with a chunk size is
/// returned as it is: crawlers store decoded bodies under the original header. A cut one gives what
/// it holds.
std::string dechunk(std::string_view body) {
    std::string out;
    const std::string_view original = body;
    while (!body.empty()) {
        std::string_view line = trim(next_line(body));
        line = trim(line.substr(0, line.find(';')));
        std::size_t size = 0;
        const bool hex = !line.empty() && line.size() <= 8 &&
                         line.find_first_not_of("0123456789abcdefABCDEF") == line.npos;
        if (!hex) return out.empty() ? std::string(original) : out;
        for (const char c : line)
            size = size * 16 + std::size_t(is_digit(c) ? c - '0' : lower(c) - 'a' + 10);
        if (size == 0) break;
        out += body.substr(0, size);
        body.remove_prefix(std::min(size, body.size()));
        next_line(body);  // the CRLF behind the chunk
    }
    return out;
}

/// Decompresses as far as the bytes go; window_bits as for inflateInit2.
std::string inflate_all(std::string_view bytes, int window_bits) {
    z_stream stream{};
    if (inflateInit2(&stream, window_bits) != Z_OK) return "";
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
    stream.avail_in = static_cast<uInt>(std::min<std::size_t>(bytes.size(), kMaxDecodedBytes));
    std::string out;
    int rc = Z_OK;
    while (rc == Z_OK && out.size() < kMaxDecodedBytes) {
        char block[32 << 10];
        stream.next_out = reinterpret_cast<Bytef*>(block);
        stream.avail_out = sizeof block;
        rc = inflate(&stream, Z_NO_FLUSH);
        out.append(block, sizeof block - stream.avail_out);
    }
    inflateEnd(&stream);
    return out;
}

/// Undoes Content-Encoding; nothing for one that is not supported (br, zstd).
std::optional<std::string> decode_content(std::string body, std::string_view encoding) {
    if (encoding.find("gzip") != encoding.npos) {
        const bool still_gzip = std::string_view(body).substr(0, 2) == "\x1f\x8b";
        return still_gzip ? inflate_all(body, 15 + 16) : std::move(body);
    }
    if (encoding == "deflate") {  // zlib by the standard, raw deflate in practice
        if (body.size() >= 2 && (body[0] & 0x0f) == 8 &&
            (static_cast<unsigned char>(body[0]) * 256 + static_cast<unsigned char>(body[1])) %
                    31 ==
                0)
            return inflate_all(body, 15);
        std::string raw = inflate_all(body, -15);
        return raw.empty() ? std::move(body) : std::move(raw);
    }
    if (encoding.empty() || encoding == "identity" || encoding == "none") return body;
    // Crawls keep the header of a body they have decoded: text that is plainly text is taken as it
    // is.
    if (is_valid_utf8(body) && body.find('\0') == body.npos) return body;
    return std::nullopt;
}

/// The value of charset= in a Content-Type or a <meta> tag.
std::string charset_label(std::string_view s) {
    std::size_t at = ifind(s, "charset");
    while (at != s.npos) {
        std::size_t i = at + 7;
        while (i < s.size() && is_space(s[i]))
            ++i;
        if (i < s.size() && s[i] == '=') {
            ++i;
            while (i < s.size() && (is_space(s[i]) || s[i] == '"' || s[i] == '\''))
                ++i;
            const std::size_t begin = i;
            while (i < s.size() && (is_alnum(s[i]) || s[i] == '-' || s[i] == '_' || s[i] == '.'))
                ++i;
            return std::string(s.substr(begin, i - begin));
        }
        at = ifind(s, "charset", at + 7);
    }
    return "";
}

std::string meta_charset(std::string_view html) {
    const std::string_view head = html.substr(0, 1024);
    for (std::size_t at = ifind(head, "<meta"); at != head.npos;
         at = ifind(head, "<meta", at + 5)) {
        const std::string label = charset_label(head.substr(at, head.find('>', at) - at));
        if (!label.empty()) return label;
    }
    return "";
}

bool looks_like_html(std::string_view body) {
    const std::string_view head = trim(body.substr(0, 512));
    return ifind(head, "<html") != head.npos || ifind(head, "<!doctype html") == 0;
}

/// One kind of line end, no control characters, no byte order mark, no blanks at line ends, one
/// blank line at most.
std::string tidy_plain(std::string_view text) {
    std::string out;
    int blank = 1;
    while (!text.empty()) {
        std::string line(next_line(text));
        std::erase_if(line, [](char c) {
            return (static_cast<unsigned char>(c) < 0x20 && c != '\t') || c == 0x7f;
        });
        while (!line.empty() && is_space(line.back()))
            line.pop_back();
        blank = line.empty() ? blank + 1 : 0;
        if (blank <= 1) out += line + '\n';
    }
    while (!out.empty() && out.back() == '\n')
        out.pop_back();
    return out;
}

}  // namespace

std::string page_text(std::string_view bytes, std::string_view content_type) {
    const std::string_view type = trim(content_type.substr(0, content_type.find(';')));
    const bool html = type == "text/html" || type == "application/xhtml+xml" ||
                      (type.empty() && looks_like_html(bytes));
    if (!html && type != "text/plain") return "";
    std::string charset = charset_label(content_type);
    if (charset.empty() && html) charset = meta_charset(bytes);
    const std::string text = decode_text(bytes, charset);
    return html ? html_to_text(text) : tidy_plain(text);
}

std::string record_text(const WarcRecord& record) {
    if (record.type == "conversion") return tidy_plain(decode_text(record.body, "utf-8"));
    if (record.type != "response") return "";
    const auto http = parse_http(record.body);
    if (!http || http->status < 200 || http->status > 299) return "";
    std::string body = http->transfer_encoding.find("chunked") != std::string::npos
                           ? dechunk(http->body)
                           : std::string(http->body);
    const auto decoded = decode_content(std::move(body), http->content_encoding);
    return decoded ? page_text(*decoded, http->content_type) : "";
}

}  // namespace stoa
