#pragma once
// Cutting text into the pieces that BPE never merges across, by a regular expression (PCRE2: UTF,
// UCP, JIT). The expression is the one of tokenizer.json; `\s` means Unicode White_Space there.
#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace stoa {

/// Bytes of the longest well-formed UTF-8 prefix of `text` [Unicode 15, table 3-7]: no overlong
/// forms, no surrogates, nothing above U+10FFFF.
std::size_t valid_utf8_prefix(std::string_view text);

/// A compiled split pattern. Holds scratch memory: use from one thread at a time.
class Splitter {
public:
    /// errors: DataError (the pattern does not compile)
    explicit Splitter(const std::string& pattern);

    /// Calls on_piece(string_view) for each piece, in order; the pieces concatenate to `text`. Text
    /// between matches is a piece; every ill-formed byte is a piece of its own. Linear in
    /// text.size().
    template <class Fn>
    void split(std::string_view text, Fn&& on_piece) const {
        while (!text.empty()) {
            const std::string_view valid = text.substr(0, valid_utf8_prefix(text));
            std::size_t done = 0;
            while (done < valid.size()) {
                const Match m = next_match(valid, done);
                if (m.begin > done) on_piece(valid.substr(done, m.begin - done));
                if (m.end > m.begin) on_piece(valid.substr(m.begin, m.end - m.begin));
                done = m.end;
            }
            if (valid.size() < text.size()) on_piece(text.substr(valid.size(), 1));
            text.remove_prefix(std::min(text.size(), valid.size() + 1));
        }
    }

    Splitter(Splitter&&) noexcept;
    Splitter& operator=(Splitter&&) noexcept;
    ~Splitter();

private:
    struct Match {
        std::size_t begin, end;
    };
    /// The next non-empty match at or after `from`, or {size, size}.
    Match next_match(std::string_view valid, std::size_t from) const;

    struct Compiled;
    std::unique_ptr<Compiled> compiled_;
};

}  // namespace stoa
