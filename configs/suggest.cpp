#include <algorithm>
#include <cctype>

#include "configs/load_run_config.h"

namespace stoa {
namespace {

std::string normalised(const std::string& word) {
    std::string s;
    for (const char c : word)
        s += c == '-' ? '_' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    return s;
}

/// Insertions, deletions, substitutions and swaps of neighbours that turn a into b (the optimal
/// string alignment form of Damerau-Levenshtein).
std::size_t edit_distance(const std::string& a, const std::string& b) {
    std::vector<std::vector<std::size_t>> d(a.size() + 1, std::vector<std::size_t>(b.size() + 1));
    for (std::size_t i = 0; i <= a.size(); ++i)
        d[i][0] = i;
    for (std::size_t j = 0; j <= b.size(); ++j)
        d[0][j] = j;
    for (std::size_t i = 1; i <= a.size(); ++i)
        for (std::size_t j = 1; j <= b.size(); ++j) {
            const std::size_t change = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, change});
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
        }
    return d[a.size()][b.size()];
}

/// "batch_global" -> "batch global" with the words in order of the alphabet.
std::string sorted_words(const std::string& word) {
    std::vector<std::string> words(1);
    for (const char c : word)
        if (c == '_' || c == '.')
            words.emplace_back();
        else
            words.back() += c;
    std::sort(words.begin(), words.end());
    std::string s;
    for (const std::string& w : words)
        s += w + " ";
    return s;
}

/// `part` begins or ends `whole` at a word boundary ("warmup" in "warmup_tokens"), or is its
/// beginning.
bool is_part(const std::string& part, const std::string& whole) {
    if (part.size() < 3 || part.size() >= whole.size()) return false;
    return whole.starts_with(part) || whole.ends_with("_" + part);
}

}  // namespace

std::vector<std::string> suggest(const std::string& word,
                                 const std::vector<std::string>& candidates) {
    constexpr std::size_t kMaxWord = 128, kMaxShown = 3;
    if (word.empty() || word.size() > kMaxWord) return {};
    const std::string w = normalised(word);
    const std::size_t limit = w.size() <= 3 ? 1 : w.size() <= 6 ? 2 : 3;
    struct Match {
        std::size_t score;
        std::string name;
    };
    std::vector<Match> matches;
    for (const std::string& candidate : candidates) {
        const std::string c = normalised(candidate);
        // Half steps: a swap of whole words ranks behind one wrong letter, a shared beginning
        // behind two.
        std::size_t score = 2 * edit_distance(w, c);
        if (score > 2 * limit || edit_distance(w, c) >= std::max(w.size(), c.size())) score = 99;
        if (sorted_words(w) == sorted_words(c)) score = std::min<std::size_t>(score, 3);
        if (is_part(w, c) || is_part(c, w)) score = std::min<std::size_t>(score, 5);
        if (score < 99) matches.push_back({score, candidate});
    }
    std::stable_sort(matches.begin(), matches.end(),
                     [](const Match& a, const Match& b) { return a.score < b.score; });
    std::vector<std::string> names;
    for (const Match& m : matches)
        if (names.size() < kMaxShown &&
            std::find(names.begin(), names.end(), m.name) == names.end())
            names.push_back(m.name);
    return names;
}

}  // namespace stoa
