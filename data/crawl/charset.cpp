#include "data/crawl/charset.h"

#include <algorithm>
#include <array>

#include "data/crawl/ascii.h"
#include "data/crawl/text_extract.h"

namespace stoa {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD
constexpr std::int64_t kMaxBadShare = 100;                 // one in a hundred bytes

// windows-1252, 0x80..0x9f; 0 = undefined. [WHATWG Encoding, index windows-1252]
constexpr std::array<std::uint16_t, 32> kWindows1252 = {
    0x20ac, 0,      0x201a, 0x0192, 0x201e, 0x2026, 0x2020, 0x2021, 0x02c6, 0x2030, 0x0160,
    0x2039, 0x0152, 0,      0x017d, 0,      0,      0x2018, 0x2019, 0x201c, 0x201d, 0x2022,
    0x2013, 0x2014, 0x02dc, 0x2122, 0x0161, 0x203a, 0x0153, 0,      0x017e, 0x0178};

std::string from_windows1252(std::string_view bytes, std::int64_t& bad) {
    std::string out;
    out.reserve(bytes.size() + bytes.size() / 8);
    for (const char c : bytes) {
        const std::uint32_t code = c == 0 ? 0xfffd : windows1252(static_cast<unsigned char>(c));
        bad += code == 0xfffd;
        append_utf8(out, code);
    }
    return out;
}

std::string from_utf16(std::string_view bytes, bool big_endian, std::int64_t& bad) {
    const auto unit = [&](std::size_t i) {
        const auto a = static_cast<unsigned char>(bytes[i]);
        const auto b = static_cast<unsigned char>(bytes[i + 1]);
        return static_cast<std::uint32_t>(big_endian ? a << 8 | b : b << 8 | a);
    };
    std::string out;
    std::size_t i = 0;
    for (; i + 2 <= bytes.size(); i += 2) {
        std::uint32_t code = unit(i);
        if (code >= 0xd800 && code < 0xdc00 && i + 4 <= bytes.size()) {
            const std::uint32_t low = unit(i + 2);
            if (low >= 0xdc00 && low < 0xe000) {
                code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                i += 2;
            }
        }
        const bool lone_surrogate = code >= 0xd800 && code < 0xe000;
        bad += lone_surrogate ? 2 : 0;
        append_utf8(out, lone_surrogate ? 0xfffd : code);
    }
    bad += i < bytes.size();
    return out;
}

enum class Charset { utf8, windows1252, unknown };

Charset charset_of(std::string_view label) {
    const std::string name = to_lower(trim(label));
    for (const char* utf8 : {"utf-8", "utf8", "unicode-1-1-utf-8", "x-unicode20utf8"})
        if (name == utf8) return Charset::utf8;
    for (const char* latin :
         {"windows-1252", "cp1252", "x-cp1252", "iso-8859-1", "iso8859-1", "iso_8859-1", "iso88591",
          "latin1", "latin-1", "l1", "ascii", "us-ascii", "ansi_x3.4-1968", "cp819", "ibm819"})
        if (name == latin) return Charset::windows1252;
    return Charset::unknown;
}

}  // namespace

std::uint32_t windows1252(unsigned char byte) {
    if (byte < 0x80 || byte >= 0xa0) return byte;
    const std::uint32_t code = kWindows1252[byte - 0x80];
    return code == 0 ? 0xfffd : code;
}

void append_utf8(std::string& out, std::uint32_t c) {
    const auto put = [&](std::uint32_t byte) { out += static_cast<char>(byte); };
    if (c < 0x80) return put(c);
    if (c < 0x800) {
        put(0xc0 | c >> 6);
    } else {
        if (c < 0x10000) {
            put(0xe0 | c >> 12);
        } else {
            put(0xf0 | c >> 18);
            put(0x80 | (c >> 12 & 0x3f));
        }
        put(0x80 | (c >> 6 & 0x3f));
    }
    put(0x80 | (c & 0x3f));
}

int utf8_sequence(std::string_view s) {
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(s[i]); };
    const unsigned lead = byte(0);
    if (lead < 0x80) return 1;
    int length = 0;
    unsigned low = 0x80, high = 0xbf;  // allowed range of the second byte
    if (lead >= 0xc2 && lead <= 0xdf) length = 2;
    if (lead >= 0xe0 && lead <= 0xef) length = 3;
    if (lead >= 0xf0 && lead <= 0xf4) length = 4;
    if (length == 0) return -1;
    if (lead == 0xe0) low = 0xa0;   // no overlong form
    if (lead == 0xed) high = 0x9f;  // no surrogate
    if (lead == 0xf0) low = 0x90;   // no overlong form
    if (lead == 0xf4) high = 0x8f;  // nothing above U+10FFFF
    for (int i = 1; i < length; ++i) {
        if (std::size_t(i) >= s.size() || byte(std::size_t(i)) < low || byte(std::size_t(i)) > high)
            return -i;
        low = 0x80;
        high = 0xbf;
    }
    return length;
}

bool is_valid_utf8(std::string_view s) {
    while (!s.empty()) {
        const int n = utf8_sequence(s);
        if (n < 0) return false;
        s.remove_prefix(std::size_t(n));
    }
    return true;
}

std::string to_valid_utf8(std::string_view bytes, std::int64_t& bad) {
    bad = 0;
    std::string out;
    out.reserve(bytes.size());
    while (!bytes.empty()) {
        const int n = utf8_sequence(bytes);
        const std::size_t length = std::size_t(n < 0 ? -n : n);
        out += n < 0 ? kReplacement : bytes.substr(0, length);
        bad += n < 0;
        bytes.remove_prefix(length);
    }
    return out;
}

std::string decode_text(std::string_view bytes, std::string_view declared) {
    std::int64_t bad = 0;
    std::string out;
    const std::string_view bom = bytes.substr(0, 2);
    if (bytes.substr(0, 3) == "\xef\xbb\xbf") {
        out = to_valid_utf8(bytes.substr(3), bad);
    } else if (bom == "\xff\xfe" || bom == "\xfe\xff") {
        out = from_utf16(bytes.substr(2), bom == "\xfe\xff", bad);
    } else {
        Charset charset = charset_of(declared);
        if (charset == Charset::unknown && is_valid_utf8(bytes)) charset = Charset::utf8;
        if (charset == Charset::unknown && !trim(declared).empty()) return "";
        out = charset == Charset::utf8 ? to_valid_utf8(bytes, bad) : from_windows1252(bytes, bad);
    }
    return bad * kMaxBadShare > std::int64_t(bytes.size()) ? "" : out;
}

}  // namespace stoa
