#include "data/tokenizer/bpe_train.h"

#include <fmt/format.h>

#include <algorithm>
#include <queue>
#include <unordered_map>
#include <unordered_set>

#include "data/tokenizer/split.h"
#include "kernels/core/error.h"

namespace stoa {
namespace {

// A piece longer than this (a megabyte of base64, say) is counted in parts, so that no merge walks
// it whole. No word of a language is that long.
constexpr std::size_t kLongestWord = 256;

using Pair = std::uint64_t;  // (left id, right id)
Pair pack(TokenId left, TokenId right) {
    return (Pair{static_cast<std::uint32_t>(left)} << 32) | static_cast<std::uint32_t>(right);
}
TokenId left_of(Pair p) { return static_cast<TokenId>(p >> 32); }
TokenId right_of(Pair p) { return static_cast<TokenId>(p & 0xffffffffu); }

/// A distinct piece of the corpus: how often it stands there and its tokens so far.
struct Word {
    std::int64_t count = 0;
    std::vector<TokenId> ids;
};

std::vector<Word> count_words(const std::vector<std::string>& documents,
                              const std::string& pattern) {
    const Splitter splitter(pattern);
    std::unordered_map<std::string, std::size_t> index_of;
    std::vector<Word> words;
    std::string key;
    const auto count = [&](std::string_view piece) {
        key.assign(piece);
        const auto [it, is_new] = index_of.try_emplace(key, words.size());
        if (is_new) {
            words.emplace_back();
            for (const char c : piece)
                words.back().ids.push_back(static_cast<unsigned char>(c));
        }
        ++words[it->second].count;
    };
    for (const std::string& text : documents)
        splitter.split(text, [&](std::string_view piece) {
            for (; piece.size() > kLongestWord; piece.remove_prefix(kLongestWord))
                count(piece.substr(0, kLongestWord));
            count(piece);
        });
    return words;
}

/// Pair counts kept up to date merge by merge, and a heap of them with outdated entries.
class PairCounts {
public:
    PairCounts(std::vector<Word> words, const std::vector<std::string>& vocab)
        : words_(std::move(words)), heap_(Less{&vocab}) {
        for (std::uint32_t w = 0; w < words_.size(); ++w)
            for (std::size_t i = 0; i + 1 < words_[w].ids.size(); ++i)
                change(pack(words_[w].ids[i], words_[w].ids[i + 1]), w, +1);
        push_changed();
    }

    /// The pair to merge next, or false when no pair is left. The pair stays counted until merge().
    bool most_frequent(Pair& best) {
        while (!heap_.empty()) {
            const Candidate top = heap_.top();
            const std::int64_t now = stats_.at(top.pair).count;
            if (now == top.count && now > 0) {
                best = top.pair;
                return true;
            }
            heap_.pop();
            // Counts that rose were pushed when they did; one that fell is pushed when it comes up.
            if (now > 0 && now < top.count) heap_.push({now, top.pair});
        }
        return false;
    }

    void merge(Pair pair, TokenId merged) {
        const std::vector<std::uint32_t> where = std::move(stats_.at(pair).words);
        stats_.at(pair).words.clear();
        for (const std::uint32_t w : where) {
            std::vector<TokenId>& ids = words_[w].ids;
            if (!contains(ids, pair)) continue;  // merged away meanwhile, or listed twice
            // Before and after each hit, words_[w] is ids[0, out) followed by ids[i, end): only the
            // pairs around the hit change.
            std::size_t out = 0;
            for (std::size_t i = 0; i < ids.size(); ++i) {
                const bool hit = i + 1 < ids.size() && pack(ids[i], ids[i + 1]) == pair;
                if (!hit) {
                    ids[out++] = ids[i];
                    continue;
                }
                change(pair, w, -1);
                if (out > 0) {
                    change(pack(ids[out - 1], ids[i]), w, -1);
                    change(pack(ids[out - 1], merged), w, +1);
                }
                if (i + 2 < ids.size()) {
                    change(pack(ids[i + 1], ids[i + 2]), w, -1);
                    change(pack(merged, ids[i + 2]), w, +1);
                }
                ids[out++] = merged;
                ++i;
            }
            ids.resize(out);
        }
        push_changed();
    }

private:
    struct Stats {
        std::int64_t count = 0;
        std::vector<std::uint32_t> words;  // where it stood; never shrinks
    };
    struct Candidate {
        std::int64_t count;
        Pair pair;
    };
    struct Less {
        const std::vector<std::string>* vocab;
        const std::string& bytes(TokenId id) const {
            return (*vocab)[static_cast<std::size_t>(id)];
        }
        bool operator()(const Candidate& a, const Candidate& b) const {
            if (a.count != b.count) return a.count < b.count;
            if (a.pair == b.pair) return false;
            if (const int c = bytes(left_of(a.pair)).compare(bytes(left_of(b.pair))); c != 0)
                return c < 0;
            return bytes(right_of(a.pair)) < bytes(right_of(b.pair));
        }
    };

    static bool contains(const std::vector<TokenId>& ids, Pair pair) {
        for (std::size_t i = 0; i + 1 < ids.size(); ++i)
            if (pack(ids[i], ids[i + 1]) == pair) return true;
        return false;
    }
    void change(Pair pair, std::uint32_t w, std::int64_t sign) {
        Stats& s = stats_[pair];
        s.count += sign * words_[w].count;
        if (sign < 0) return;
        if (s.words.empty() || s.words.back() != w) s.words.push_back(w);
        changed_.push_back(pair);
    }
    /// Offers each pair whose count is not in the heap yet.
    void push_changed() {
        std::sort(changed_.begin(), changed_.end());
        changed_.erase(std::unique(changed_.begin(), changed_.end()), changed_.end());
        for (const Pair pair : changed_) {
            const std::int64_t count = stats_.at(pair).count;
            if (count > 0) heap_.push({count, pair});
        }
        changed_.clear();
    }

    std::vector<Word> words_;
    std::unordered_map<Pair, Stats> stats_;
    std::priority_queue<Candidate, std::vector<Candidate>, Less> heap_;
    std::vector<Pair> changed_;
};

}  // namespace

BpeModel train_bpe(const std::vector<std::string>& documents, std::int64_t vocab_size,
                   const std::vector<std::string>& special_tokens,
                   const std::string& split_pattern) {
    const auto least = 256 + static_cast<std::int64_t>(special_tokens.size());
    if (vocab_size < least)
        throw DataError({.what = "vocabulary too small to train",
                         .where = "vocab_size",
                         .expected = fmt::format(">= {} (256 bytes + {} special tokens)", least,
                                                 special_tokens.size()),
                         .actual = std::to_string(vocab_size)});
    BpeModel model{.vocab = {},
                   .merges = {},
                   .special_tokens = special_tokens,
                   .split_pattern = split_pattern};
    std::unordered_map<std::string, TokenId> id_of;
    for (int b = 0; b < 256; ++b) {
        model.vocab.emplace_back(1, static_cast<char>(b));
        id_of[model.vocab.back()] = b;
    }
    std::vector<Word> words = count_words(documents, split_pattern);
    if (words.empty())
        throw DataError({.what = "no text to train a tokenizer on",
                         .expected = "at least one non-empty document"});
    PairCounts counts(std::move(words), model.vocab);
    std::unordered_set<Pair> done;
    const auto wanted = static_cast<std::size_t>(vocab_size) - special_tokens.size();
    for (Pair pair = 0; model.vocab.size() < wanted && counts.most_frequent(pair);) {
        const TokenId left = left_of(pair), right = right_of(pair);
        // Two ways to the same bytes (ab+c, a+bc) share one token, as tokenizer.json needs; a pair
        // that came back through the second way is merged again, not listed again.
        const std::string bytes = model.vocab[static_cast<std::size_t>(left)] +
                                  model.vocab[static_cast<std::size_t>(right)];
        const auto [it, is_new] =
            id_of.try_emplace(bytes, static_cast<TokenId>(model.vocab.size()));
        if (is_new) model.vocab.push_back(bytes);
        if (done.insert(pair).second) model.merges.emplace_back(left, right);
        counts.merge(pair, it->second);
    }
    return model;
}

}  // namespace stoa
