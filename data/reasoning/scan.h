#pragma once
// A cursor over text of unknown origin. Nothing here allocates, throws or reads past the end.
#include <cstdint>
#include <string_view>
#include <vector>

namespace stoa {

class Scanner {
public:
    /// `lenient`: spaces before each element are skipped (answers); otherwise every byte counts.
    explicit Scanner(std::string_view text, bool lenient = false)
        : rest_(text), lenient_(lenient) {}

    /// Consumes `word` when it is next.
    bool literal(std::string_view word) {
        skip_spaces();
        if (rest_.substr(0, word.size()) != word) return false;
        rest_.remove_prefix(word.size());
        return true;
    }
    char peek() {
        skip_spaces();
        return rest_.empty() ? '\0' : rest_.front();
    }
    bool at_end() {
        skip_spaces();
        return rest_.empty();
    }
    /// An integer >= 0 of at most 18 digits, without leading zeros.
    bool natural(std::int64_t& value) {
        skip_spaces();
        std::size_t n = 0;
        std::int64_t v = 0;
        while (n < rest_.size() && rest_[n] >= '0' && rest_[n] <= '9') {
            if (n == 18) return false;
            v = v * 10 + (rest_[n++] - '0');
        }
        if (n == 0 || (n > 1 && rest_[0] == '0')) return false;
        rest_.remove_prefix(n);
        value = v;
        return true;
    }
    /// As natural, with an optional '-' directly before it; "-0" is refused.
    bool integer(std::int64_t& value) {
        skip_spaces();
        const Scanner before = *this;
        const bool minus = literal("-");
        const bool digit = !rest_.empty() && rest_[0] >= '0' && rest_[0] <= '9';
        if (!digit || !natural(value) || (minus && value == 0)) {
            *this = before;
            return false;
        }
        if (minus) value = -value;
        return true;
    }
    /// The longest run of ASCII letters, possibly empty.
    std::string_view word() {
        skip_spaces();
        std::size_t n = 0;
        while (n < rest_.size() && ((rest_[n] | 0x20) >= 'a' && (rest_[n] | 0x20) <= 'z'))
            ++n;
        const std::string_view w = rest_.substr(0, n);
        rest_.remove_prefix(n);
        return w;
    }
    /// Integers with `separator` between them, at least one and at most `most`; stops before a
    /// separator that no integer follows.
    bool integers(std::string_view separator, std::size_t most, std::vector<std::int64_t>& values) {
        values.clear();
        std::int64_t v = 0;
        if (!integer(v)) return false;
        values.push_back(v);
        while (true) {
            const Scanner before = *this;
            if (!literal(separator) || !integer(v)) {
                *this = before;
                return true;
            }
            if (values.size() == most) return false;
            values.push_back(v);
        }
    }
    std::string_view rest() const { return rest_; }

private:
    void skip_spaces() {
        while (lenient_ && !rest_.empty() && rest_.front() == ' ')
            rest_.remove_prefix(1);
    }
    std::string_view rest_;
    bool lenient_;
};

/// The whole of `text` is one integer in canonical form; spaces around it are allowed.
inline bool parse_integer_answer(std::string_view text, std::int64_t& value) {
    Scanner s(text, true);
    return s.integer(value) && s.at_end();
}

}  // namespace stoa
