#include "data/tokenizer/split.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <cstdint>
#include <cstring>

#include "data/tokenizer/bpe_train.h"
#include "kernels/core/error.h"

namespace stoa {

const char* const kQwen2Split =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const char* const kGpt2Split =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

namespace {

/// Length of the well-formed sequence at p (1..4), or 0.
std::size_t sequence_length(const unsigned char* p, std::size_t left) {
    const auto tail = [&](std::size_t i, unsigned lo = 0x80, unsigned hi = 0xBF) {
        return i < left && p[i] >= lo && p[i] <= hi;
    };
    const unsigned c = p[0];
    if (c < 0x80) return 1;
    if (c < 0xC2) return 0;
    if (c < 0xE0) return tail(1) ? 2 : 0;
    if (c < 0xF0) {
        const bool second = tail(1, c == 0xE0 ? 0xA0 : 0x80, c == 0xED ? 0x9F : 0xBF);
        return second && tail(2) ? 3 : 0;
    }
    if (c > 0xF4) return 0;
    const bool second = tail(1, c == 0xF0 ? 0x90 : 0x80, c == 0xF4 ? 0x8F : 0xBF);
    return second && tail(2) && tail(3) ? 4 : 0;
}

/// PCRE2's \s also takes U+180E; tokenizer.json's (Oniguruma) is Unicode White_Space.
std::string with_unicode_white_space(const std::string& pattern) {
    std::string out;
    for (std::size_t i = 0; i < pattern.size(); ++i) {
        const char next = pattern[i] == '\\' && i + 1 < pattern.size() ? pattern[i + 1] : '\0';
        if (next == 's' || next == 'S') {
            out += next == 's' ? "\\p{White_Space}" : "\\P{White_Space}";
            ++i;
        } else if (next != '\0') {
            out += {pattern[i++], next};
        } else {
            out += pattern[i];
        }
    }
    return out;
}

}  // namespace

std::size_t valid_utf8_prefix(std::string_view text) {
    const auto* p = reinterpret_cast<const unsigned char*>(text.data());
    std::size_t i = 0;
    while (i < text.size()) {
        std::uint64_t word = 0;
        if (i + 8 <= text.size() &&
            (std::memcpy(&word, p + i, 8), (word & 0x8080808080808080u) == 0)) {
            i += 8;  // eight ASCII bytes
            continue;
        }
        const std::size_t n = sequence_length(p + i, text.size() - i);
        if (n == 0) break;
        i += n;
    }
    return i;
}

struct Splitter::Compiled {
    pcre2_code* code = nullptr;
    pcre2_match_data* data = nullptr;
    pcre2_match_context* context = nullptr;
    pcre2_jit_stack* stack = nullptr;
    std::string pattern;
    ~Compiled() {
        pcre2_match_data_free(data);
        pcre2_match_context_free(context);
        pcre2_jit_stack_free(stack);
        pcre2_code_free(code);
    }
};

Splitter::Splitter(const std::string& pattern) : compiled_(std::make_unique<Compiled>()) {
    const std::string source = with_unicode_white_space(pattern);
    int error = 0;
    PCRE2_SIZE offset = 0;
    Compiled& c = *compiled_;
    c.pattern = pattern;
    c.code =
        pcre2_compile(reinterpret_cast<PCRE2_SPTR>(source.data()), source.size(),
                      PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
    if (c.code == nullptr) {
        PCRE2_UCHAR why[256] = {};
        pcre2_get_error_message(error, why, sizeof why);
        throw DataError({.what = "the split pattern does not compile",
                         .where = pattern,
                         .expected = "a regular expression",
                         .actual = reinterpret_cast<const char*>(why)});
    }
    c.data = pcre2_match_data_create(1, nullptr);
    c.context = pcre2_match_context_create(nullptr);
    pcre2_set_match_limit(c.context,
                          UINT32_MAX);  // a megabyte of blanks backtracks a million times
    pcre2_set_depth_limit(c.context, UINT32_MAX);
    pcre2_set_heap_limit(c.context, UINT32_MAX);
    if (pcre2_jit_compile(c.code, PCRE2_JIT_COMPLETE) == 0) {  // without JIT: slower, same pieces
        c.stack = pcre2_jit_stack_create(32 << 10, 16 << 20, nullptr);
        pcre2_jit_stack_assign(c.context, nullptr, c.stack);
    }
}

Splitter::Match Splitter::next_match(std::string_view valid, std::size_t from) const {
    const Compiled& c = *compiled_;
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(valid.data());
    const std::uint32_t options = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
    int rc = pcre2_match(c.code, subject, valid.size(), from, options, c.data, c.context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(c.code, subject, valid.size(), from, options | PCRE2_NO_JIT, c.data,
                         c.context);
    if (rc == PCRE2_ERROR_NOMATCH) return {valid.size(), valid.size()};
    if (rc < 0)
        throw DataError({.what = "the split pattern gave up on a text",
                         .where = c.pattern,
                         .actual = fmt::format("PCRE2 error {} at byte {}", rc, from)});
    const PCRE2_SIZE* span = pcre2_get_ovector_pointer(c.data);
    // \K in a foreign pattern could move the start before `from`.
    return {std::max<std::size_t>(span[0], from), std::max<std::size_t>(span[1], from + 1)};
}

Splitter::Splitter(Splitter&&) noexcept = default;
Splitter& Splitter::operator=(Splitter&&) noexcept = default;
Splitter::~Splitter() = default;

}  // namespace stoa
