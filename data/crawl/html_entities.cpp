#include "data/crawl/html_entities.h"

#include <algorithm>
#include <array>

#include "data/crawl/ascii.h"
#include "data/crawl/charset.h"

namespace stoa {
namespace {

struct Entity {
    std::string_view name;
    std::uint32_t code;
};

// The Latin-1 names are those of U+00A0..U+00FF in order.
constexpr std::array<std::string_view, 96> kLatin1 = {
    "nbsp",   "iexcl",  "cent",   "pound",  "curren", "yen",    "brvbar", "sect",   "uml",
    "copy",   "ordf",   "laquo",  "not",    "shy",    "reg",    "macr",   "deg",    "plusmn",
    "sup2",   "sup3",   "acute",  "micro",  "para",   "middot", "cedil",  "sup1",   "ordm",
    "raquo",  "frac14", "frac12", "frac34", "iquest", "Agrave", "Aacute", "Acirc",  "Atilde",
    "Auml",   "Aring",  "AElig",  "Ccedil", "Egrave", "Eacute", "Ecirc",  "Euml",   "Igrave",
    "Iacute", "Icirc",  "Iuml",   "ETH",    "Ntilde", "Ograve", "Oacute", "Ocirc",  "Otilde",
    "Ouml",   "times",  "Oslash", "Ugrave", "Uacute", "Ucirc",  "Uuml",   "Yacute", "THORN",
    "szlig",  "agrave", "aacute", "acirc",  "atilde", "auml",   "aring",  "aelig",  "ccedil",
    "egrave", "eacute", "ecirc",  "euml",   "igrave", "iacute", "icirc",  "iuml",   "eth",
    "ntilde", "ograve", "oacute", "ocirc",  "otilde", "ouml",   "divide", "oslash", "ugrave",
    "uacute", "ucirc",  "uuml",   "yacute", "thorn",  "yuml"};

constexpr Entity kNamed[] = {
    {"amp", '&'},       {"lt", '<'},        {"gt", '>'},        {"quot", '"'},
    {"apos", '\''},     {"AMP", '&'},       {"LT", '<'},        {"GT", '>'},
    {"QUOT", '"'},      {"OElig", 0x152},   {"oelig", 0x153},   {"Scaron", 0x160},
    {"scaron", 0x161},  {"Yuml", 0x178},    {"fnof", 0x192},    {"circ", 0x2c6},
    {"tilde", 0x2dc},   {"Alpha", 0x391},   {"Beta", 0x392},    {"Gamma", 0x393},
    {"Delta", 0x394},   {"Theta", 0x398},   {"Lambda", 0x39b},  {"Pi", 0x3a0},
    {"Sigma", 0x3a3},   {"Phi", 0x3a6},     {"Psi", 0x3a8},     {"Omega", 0x3a9},
    {"alpha", 0x3b1},   {"beta", 0x3b2},    {"gamma", 0x3b3},   {"delta", 0x3b4},
    {"epsilon", 0x3b5}, {"zeta", 0x3b6},    {"eta", 0x3b7},     {"theta", 0x3b8},
    {"kappa", 0x3ba},   {"lambda", 0x3bb},  {"mu", 0x3bc},      {"nu", 0x3bd},
    {"xi", 0x3be},      {"pi", 0x3c0},      {"rho", 0x3c1},     {"sigma", 0x3c3},
    {"tau", 0x3c4},     {"phi", 0x3c6},     {"chi", 0x3c7},     {"psi", 0x3c8},
    {"omega", 0x3c9},   {"ensp", 0x2002},   {"emsp", 0x2003},   {"thinsp", 0x2009},
    {"zwnj", 0x200c},   {"zwj", 0x200d},    {"ndash", 0x2013},  {"mdash", 0x2014},
    {"lsquo", 0x2018},  {"rsquo", 0x2019},  {"sbquo", 0x201a},  {"ldquo", 0x201c},
    {"rdquo", 0x201d},  {"bdquo", 0x201e},  {"dagger", 0x2020}, {"Dagger", 0x2021},
    {"bull", 0x2022},   {"hellip", 0x2026}, {"permil", 0x2030}, {"prime", 0x2032},
    {"Prime", 0x2033},  {"lsaquo", 0x2039}, {"rsaquo", 0x203a}, {"frasl", 0x2044},
    {"euro", 0x20ac},   {"trade", 0x2122},  {"larr", 0x2190},   {"uarr", 0x2191},
    {"rarr", 0x2192},   {"darr", 0x2193},   {"harr", 0x2194},   {"rArr", 0x21d2},
    {"hArr", 0x21d4},   {"forall", 0x2200}, {"part", 0x2202},   {"exist", 0x2203},
    {"empty", 0x2205},  {"nabla", 0x2207},  {"isin", 0x2208},   {"ni", 0x220b},
    {"prod", 0x220f},   {"sum", 0x2211},    {"minus", 0x2212},  {"radic", 0x221a},
    {"prop", 0x221d},   {"infin", 0x221e},  {"ang", 0x2220},    {"and", 0x2227},
    {"or", 0x2228},     {"cap", 0x2229},    {"cup", 0x222a},    {"int", 0x222b},
    {"there4", 0x2234}, {"sim", 0x223c},    {"cong", 0x2245},   {"asymp", 0x2248},
    {"ne", 0x2260},     {"equiv", 0x2261},  {"le", 0x2264},     {"ge", 0x2265},
    {"sub", 0x2282},    {"sup", 0x2283},    {"oplus", 0x2295},  {"otimes", 0x2297},
    {"lang", 0x27e8},   {"rang", 0x27e9},   {"loz", 0x25ca},    {"hearts", 0x2665}};

std::uint32_t named_code(std::string_view name) {
    const auto latin = std::find(kLatin1.begin(), kLatin1.end(), name);
    if (latin != kLatin1.end()) return 0xa0 + std::uint32_t(latin - kLatin1.begin());
    const auto* named = std::find_if(std::begin(kNamed), std::end(kNamed),
                                     [&](const Entity& e) { return e.name == name; });
    return named == std::end(kNamed) ? 0 : named->code;
}

/// Only the oldest names are decoded without their semicolon.
bool may_lack_semicolon(std::uint32_t code) { return code < 0x100; }

int digit_value(char c, int base) {
    const char l = lower(c);
    const int v = is_digit(c) ? c - '0' : l >= 'a' && l <= 'f' ? l - 'a' + 10 : base;
    return v < base ? v : -1;
}

std::size_t decode_number(std::string_view s, std::string& out) {
    const bool hex = s.size() > 2 && lower(s[2]) == 'x';
    const int base = hex ? 16 : 10;
    const std::size_t begin = hex ? 3 : 2;
    std::uint32_t code = 0;
    std::size_t i = begin;
    for (; i < s.size() && digit_value(s[i], base) >= 0; ++i)
        code = std::min<std::uint32_t>(
            0x110000, code * std::uint32_t(base) + std::uint32_t(digit_value(s[i], base)));
    if (i == begin) return 0;
    if (code >= 0x80 && code < 0xa0) code = windows1252(static_cast<unsigned char>(code));
    const bool bad = code == 0 || code > 0x10ffff || (code >= 0xd800 && code < 0xe000);
    append_utf8(out, bad ? 0xfffd : code);
    return i + (i < s.size() && s[i] == ';');
}

}  // namespace

std::size_t decode_entity(std::string_view s, std::string& out) {
    if (s.size() < 3 || s[0] != '&') return 0;
    if (s[1] == '#') return decode_number(s, out);
    std::size_t end = 1;
    while (end < s.size() && end < 12 && is_alnum(s[end]))
        ++end;
    const bool closed = end < s.size() && s[end] == ';';
    const std::uint32_t code = named_code(s.substr(1, end - 1));
    if (code == 0 || (!closed && !may_lack_semicolon(code))) return 0;
    if (!closed && end < s.size() && s[end] == '=') return 0;  // a query string: ?a=1&copy=2
    append_utf8(out, code);
    return end + closed;
}

}  // namespace stoa
