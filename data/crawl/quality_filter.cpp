#include "data/crawl/quality_filter.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "data/crawl/ascii.h"
#include "data/crawl/charset.h"

namespace stoa {
namespace {

// Thresholds of Gopher [Rae et al. 2021, tables A1 and the section before] unless said.
constexpr std::int64_t kMinWords = 50;
constexpr double kMinMeanWord = 3.0, kMaxMeanWord = 10.0;
constexpr double kMaxSymbols = 0.1;         // '#' or ellipses per word
constexpr double kMaxMarkup = 0.05;         // < > { } \ | per byte: code, XML, tables (ours)
constexpr double kMinAlphabetic = 0.8;      // words with a letter
constexpr double kMaxDuplicateLines = 0.3;  // by count
constexpr double kMaxDuplicateBytes = 0.2;
constexpr double kMaxTopTrigram = 0.18;        // share of bytes in the most frequent three words
constexpr std::int64_t kMinPhraseWords = 100;  // shorter texts repeat themselves by right (ours)
constexpr double kMaxBullets = 0.9, kMaxEllipsisLines = 0.3;
constexpr double kMinProse = 0.12;  // lines that end a sentence [FineWeb]
constexpr std::size_t kMinStopWords = 2;
// Documents with less stay whole: there is too little to tell a menu from a poem (ours).
constexpr std::size_t kMinLinesToClean = 4;
// A run of so many short lines that end no sentence is a menu or a list of links (ours).
constexpr std::size_t kMenuRun = 4;
constexpr std::int64_t kShortLineWords = 6;

// The most frequent words of languages written mostly in ASCII letters.
constexpr std::array<std::string_view, 51> kStopWords = {
    "the", "be",  "to",  "of",  "and", "that", "have", "with", "is",  "in",    "de",  "la", "le",
    "les", "et",  "el",  "que", "en",  "los",  "der",  "die",  "und", "das",   "ist", "il", "di",
    "che", "per", "non", "het", "een", "van",  "dat",  "yang", "dan", "untuk", "ang", "ng", "sa",
    "na",  "ya",  "wa",  "kwa", "ja",  "on",   "og",   "det",  "av",  "och",   "att", "som"};

// Lines that speak of the page, not of its subject. [C4, Raffel et al. 2020]
constexpr std::array<std::string_view, 12> kBoilerplate = {
    "javascript",       "terms of use",    "privacy policy",   "cookie policy",
    "uses cookies",     "use of cookies",  "use cookies",      "all rights reserved",
    "terms of service", "skip to content", "search: advanced", "(login or join us)"};

struct Line {
    std::string_view text;
    std::int64_t words = 0;
    bool ends_sentence = false;  // or at least pauses: prose that is wrapped, verse, dialogue
    bool keep = true;
};

bool is_lead_byte(char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }
bool is_ascii(char c) { return static_cast<unsigned char>(c) < 0x80; }

/// Words by white space. A script without spaces counts one word for two of its characters.
std::int64_t count_words(std::string_view s) {
    std::int64_t words = 0, wide = 0;
    bool inside = false;
    for (const char c : s) {
        words += !inside && !is_space(c);
        inside = !is_space(c);
        wide += static_cast<unsigned char>(c) >= 0xe3 && static_cast<unsigned char>(c) < 0xf0;
    }
    return std::max(words, wide / 2);
}

bool ends_sentence(std::string_view s) {
    while (!s.empty() && (s.back() == '"' || s.back() == '\'' || s.back() == ')'))
        s.remove_suffix(1);
    if (s.empty()) return false;
    if (std::string_view(".!?,;:-").find(s.back()) != s.npos) return true;
    for (const std::string_view end : {"\u2026", "\u201d", "\u2019", "\u2014", "\u00bb", "\u3002",
                                       "\uff01", "\uff1f", "\u300d", "\u0964", "\u061f", "\u06d4"})
        if (s.ends_with(end)) return true;
    return false;
}

bool is_boilerplate(std::string_view line) {
    if (line.size() > 400) return false;  // a paragraph may mention a cookie
    return std::any_of(kBoilerplate.begin(), kBoilerplate.end(),
                       [&](std::string_view phrase) { return ifind(line, phrase) != line.npos; });
}

std::vector<Line> split_lines(std::string_view text) {
    std::vector<Line> lines;
    while (!text.empty()) {
        const std::string_view line = next_line(text);
        const std::string_view bare = trim(line);
        lines.push_back({line, count_words(bare), ends_sentence(bare)});
    }
    return lines;
}

/// Marks menus, crumbs and notices of the page itself.
void clean_lines(std::vector<Line>& lines) {
    const auto is_short = [](const Line& l) {
        return l.words <= kShortLineWords && !l.ends_sentence;
    };
    for (std::size_t begin = 0; begin < lines.size();) {
        std::size_t end = begin, filled = 0;
        while (end < lines.size() && is_short(lines[end]))
            filled += lines[end++].words > 0;
        for (std::size_t i = begin; i < end && filled >= kMenuRun; ++i)
            lines[i].keep = false;
        begin = end + 1;
    }
    for (Line& l : lines) {
        if (l.words > 0 && l.words < 3 && !l.ends_sentence) l.keep = false;
        if (is_boilerplate(l.text)) l.keep = false;
        // "Home | News | Contact": separators between almost all words.
        const auto bars = std::count(l.text.begin(), l.text.end(), '|');
        if (bars >= 2 && bars * 4 > l.words) l.keep = false;
    }
}

std::string join_kept(const std::vector<Line>& lines) {
    std::string out;
    bool blank = true;
    for (const Line& l : lines) {
        if (!l.keep || (l.words == 0 && blank)) continue;
        blank = l.words == 0;
        out += l.text;
        out += '\n';
    }
    while (!out.empty() && out.back() == '\n')
        out.pop_back();
    return out;
}

struct WordStats {
    std::int64_t words = 0, alphabetic = 0, ascii_letters = 0, other_letters = 0, bytes = 0;
    std::size_t stop_words = 0;    // distinct
    std::int64_t top_trigram = 0;  // bytes covered by the most frequent three words
};

WordStats word_stats(std::string_view text) {
    WordStats s;
    std::vector<std::uint64_t> hashes;
    std::vector<std::int64_t> sizes;
    std::array<bool, kStopWords.size()> seen{};
    for (std::size_t i = 0; i < text.size();) {
        while (i < text.size() && is_space(text[i]))
            ++i;
        const std::size_t begin = i;
        bool letter = false;
        for (; i < text.size() && !is_space(text[i]); ++i) {
            letter |= is_alpha(text[i]) || !is_ascii(text[i]);
            s.ascii_letters += is_alpha(text[i]);
            s.other_letters += !is_ascii(text[i]) && is_lead_byte(text[i]);
        }
        if (i == begin) break;
        const std::string_view word = text.substr(begin, i - begin);
        ++s.words;
        s.alphabetic += letter;
        s.bytes += std::int64_t(word.size());
        hashes.push_back(XXH3_64bits(word.data(), word.size()));
        sizes.push_back(std::int64_t(word.size()));
        if (word.size() > 6) continue;
        const auto* stop = std::find_if(kStopWords.begin(), kStopWords.end(),
                                        [&](std::string_view w) { return iequals(w, word); });
        if (stop != kStopWords.end()) seen[std::size_t(stop - kStopWords.begin())] = true;
    }
    s.stop_words = std::size_t(std::count(seen.begin(), seen.end(), true));
    std::unordered_map<std::uint64_t, std::int64_t> counts;
    counts.reserve(hashes.size());
    for (std::size_t i = 0; i + 3 <= hashes.size(); ++i) {
        const std::uint64_t key = XXH3_64bits(&hashes[i], 3 * sizeof hashes[i]);
        const std::int64_t n = ++counts[key];
        if (n > 1)
            s.top_trigram = std::max(s.top_trigram, n * (sizes[i] + sizes[i + 1] + sizes[i + 2]));
    }
    return s;
}

std::string refuse_by_words(std::string_view text) {
    const WordStats s = word_stats(text);
    const double words = double(std::max<std::int64_t>(1, s.words));
    const double spoken = double(std::max<std::int64_t>(1, count_words(text)));
    // Words are told apart by spaces in the languages of ASCII letters; of others less is asked.
    const std::int64_t letters = s.ascii_letters + s.other_letters;
    const bool latin = s.other_letters * 2 < letters;
    if (spoken < double(kMinWords)) return "too_short";
    const double mean = double(letters) / words;
    if (latin && (mean < kMinMeanWord || mean > kMaxMeanWord)) return "mean_word_length";
    if (double(s.alphabetic) / words < kMinAlphabetic) return "alphabetic_words";
    if (s.other_letters * 50 <= letters && s.stop_words < kMinStopWords) return "stop_words";
    if (s.words >= kMinPhraseWords && double(s.top_trigram) > kMaxTopTrigram * double(s.bytes))
        return "repeated_phrases";

    const auto count = [&](char c) { return double(std::count(text.begin(), text.end(), c)); };
    double ellipses = 0;
    for (const std::string_view e : {"...", "\u2026"})
        for (std::size_t at = text.find(e); at != text.npos; at = text.find(e, at + e.size()))
            ++ellipses;
    if (count('#') / spoken > kMaxSymbols || ellipses / spoken > kMaxSymbols) return "symbols";
    const double markup =
        count('<') + count('>') + count('{') + count('}') + count('\\') + count('|');
    if (markup > kMaxMarkup * double(text.size())) return "markup";
    return "";
}

std::string refuse_by_lines(const std::vector<Line>& lines) {
    std::unordered_set<std::string_view> seen;
    double filled = 0, duplicates = 0, duplicate_bytes = 0, bytes = 0, bullets = 0, ellipses = 0;
    double prose = 0;
    for (const Line& l : lines) {
        const std::string_view bare = trim(l.text);
        if (bare.empty()) continue;
        ++filled;
        bytes += double(bare.size());
        if (!seen.insert(bare).second) {
            ++duplicates;
            duplicate_bytes += double(bare.size());
        }
        bullets += bare.starts_with("\u2022") || bare.starts_with("- ") || bare.starts_with("* ");
        ellipses += bare.ends_with("...") || bare.ends_with("\u2026");
        prose += l.ends_sentence;
    }
    if (duplicates > kMaxDuplicateLines * filled || duplicate_bytes > kMaxDuplicateBytes * bytes)
        return "duplicate_lines";
    if (bullets > kMaxBullets * filled) return "bullets";
    if (ellipses > kMaxEllipsisLines * filled) return "ellipsis_lines";
    // Wrapped prose ends few lines with a sentence; its lines are long and alike, menus are short.
    if (prose < kMinProse * filled && bytes / std::max(1.0, filled) < 50) return "no_sentences";
    return "";
}

}  // namespace

std::string filter_document(std::string& text) {
    std::vector<Line> lines = split_lines(text);
    if (lines.size() >= kMinLinesToClean) {
        clean_lines(lines);
        text = join_kept(lines);
        lines = split_lines(text);
    }
    const std::string reason = refuse_by_words(text);
    return reason.empty() ? refuse_by_lines(lines) : reason;
}

}  // namespace stoa
