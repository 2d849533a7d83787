#include "data/tokenizer/tokenizer.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <unordered_map>
#include <unordered_set>

#include "data/tokenizer/bpe_merge.h"
#include "data/tokenizer/split.h"
#include "data/tokenizer/tokenizer_json.h"
#include "kernels/core/error.h"

namespace stoa {
namespace {

constexpr std::size_t kCacheSlots = 1 << 16;
constexpr std::size_t kCachedPieceBytes = 64;

/// The merges of recent pieces: one slot per hash value, the newest piece stays.
struct PieceCache {
    struct Slot {
        std::string piece;
        std::vector<TokenId> ids;
    };
    std::vector<Slot> slots = std::vector<Slot>(kCacheSlots);
    Slot& slot_of(std::string_view piece) {
        return slots[XXH3_64bits(piece.data(), piece.size()) % kCacheSlots];
    }
};

[[noreturn]] void malformed(std::string what, std::string expected, std::string actual) {
    throw DataError({.what = "malformed BPE model: " + std::move(what),
                     .expected = std::move(expected),
                     .actual = std::move(actual)});
}

/// Ids of the 256 single-byte tokens, and a check that no two tokens are alike.
std::array<TokenId, 256> check_vocabulary(const BpeModel& m) {
    std::array<TokenId, 256> byte_ids;
    byte_ids.fill(-1);
    std::unordered_set<std::string_view> seen;
    for (std::size_t id = 0; id < m.vocab.size(); ++id) {
        const std::string& token = m.vocab[id];
        if (token.empty()) malformed("empty token", "bytes", fmt::format("nothing at id {}", id));
        if (!seen.insert(token).second)
            malformed("a token stands twice", "distinct tokens",
                      fmt::format("a repeat at id {}", id));
        if (token.size() == 1)
            byte_ids[static_cast<unsigned char>(token[0])] = static_cast<TokenId>(id);
    }
    for (std::size_t b = 0; b < 256; ++b)
        if (byte_ids[b] < 0)
            malformed("a byte has no token", "all 256 bytes",
                      fmt::format("no token for byte {:#04x}", b));
    return byte_ids;
}

MergeTable make_merge_table(const BpeModel& m) {
    std::unordered_map<std::string_view, TokenId> id_of;
    for (std::size_t id = 0; id < m.vocab.size(); ++id)
        id_of[m.vocab[id]] = static_cast<TokenId>(id);
    MergeTable table(m.merges.size());
    const auto known = [&](TokenId id) {
        return id >= 0 && static_cast<std::size_t>(id) < m.vocab.size();
    };
    for (std::size_t rank = 0; rank < m.merges.size(); ++rank) {
        const auto [left, right] = m.merges[rank];
        if (!known(left) || !known(right))
            malformed("a merge names an unknown token", fmt::format("ids below {}", m.vocab.size()),
                      fmt::format("({}, {}) at rank {}", left, right, rank));
        const auto merged = id_of.find(m.vocab[static_cast<std::size_t>(left)] +
                                       m.vocab[static_cast<std::size_t>(right)]);
        if (merged == id_of.end())
            malformed("the result of a merge is not in the vocabulary", "left + right",
                      fmt::format("neither for ({}, {}) at rank {}", left, right, rank));
        if (table.find(left, right) != nullptr)
            malformed("a merge stands twice", "distinct pairs",
                      fmt::format("a repeat at rank {}", rank));
        table.insert(left, right, static_cast<std::int32_t>(rank), merged->second);
    }
    return table;
}

}  // namespace

struct Tokenizer::State {
    BpeModel model;
    std::array<TokenId, 256> byte_ids;
    MergeTable merges;
    Splitter splitter;
    TokenId end_of_text = 0;
    PieceCache cache;
    std::mutex encoding;  // the splitter and the cache are scratch of one encode at a time

    explicit State(BpeModel m)
        : model(std::move(m)),
          byte_ids(check_vocabulary(model)),
          merges(make_merge_table(model)),
          splitter(model.split_pattern) {
        const auto& special = model.special_tokens;
        const auto eot = std::find(special.begin(), special.end(), kEndOfText);
        if (eot == special.end())
            malformed("no end-of-text token",
                      fmt::format("{} among the special tokens", kEndOfText),
                      special.empty() ? "none" : special.front());
        end_of_text =
            static_cast<TokenId>(model.vocab.size()) + static_cast<TokenId>(eot - special.begin());
    }

    void append_piece(std::string_view piece, std::vector<TokenId>& out) {
        if (piece.size() == 1) {
            out.push_back(byte_ids[static_cast<unsigned char>(piece[0])]);
            return;
        }
        PieceCache::Slot* slot = nullptr;
        if (piece.size() <= kCachedPieceBytes) {
            slot = &cache.slot_of(piece);
            if (slot->piece == piece) {
                out.insert(out.end(), slot->ids.begin(), slot->ids.end());
                return;
            }
        }
        std::vector<TokenId> ids;
        ids.reserve(piece.size());
        for (const char c : piece)
            ids.push_back(byte_ids[static_cast<unsigned char>(c)]);
        apply_merges(merges, ids);
        out.insert(out.end(), ids.begin(), ids.end());
        if (slot != nullptr) {
            slot->piece.assign(piece);
            slot->ids = std::move(ids);
        }
    }
};

Tokenizer::Tokenizer(BpeModel model) : state_(std::make_unique<State>(std::move(model))) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

std::vector<TokenId> Tokenizer::encode(std::string_view text) const {
    const std::lock_guard lock(state_->encoding);
    std::vector<TokenId> out;
    out.reserve(text.size() / 3);
    state_->splitter.split(text, [&](std::string_view piece) { state_->append_piece(piece, out); });
    return out;
}

std::string Tokenizer::decode(const std::vector<TokenId>& ids) const {
    const BpeModel& m = state_->model;
    std::string text;
    for (const TokenId id : ids) {
        if (id < 0 || id >= vocab_size())
            throw DataError({.what = "token id outside the vocabulary",
                             .expected = fmt::format("0 <= id < {}", vocab_size()),
                             .actual = std::to_string(id)});
        const auto i = static_cast<std::size_t>(id);
        text += i < m.vocab.size() ? m.vocab[i] : m.special_tokens[i - m.vocab.size()];
    }
    return text;
}

std::int64_t Tokenizer::vocab_size() const {
    return static_cast<std::int64_t>(state_->model.vocab.size() +
                                     state_->model.special_tokens.size());
}

TokenId Tokenizer::end_of_text() const { return state_->end_of_text; }

std::string Tokenizer::hash() const {
    std::string all;
    const auto add = [&](std::string_view s) {
        all += std::to_string(s.size()) + ":";
        all += s;
    };
    const BpeModel& m = state_->model;
    add(m.split_pattern);
    for (const auto* list : {&m.vocab, &m.special_tokens}) {
        add(std::to_string(list->size()));
        for (const std::string& token : *list)
            add(token);
    }
    for (const auto& [left, right] : m.merges)
        all += fmt::format("{},{};", left, right);
    const XXH128_hash_t h = XXH3_128bits(all.data(), all.size());
    return fmt::format("{:016x}{:016x}", h.high64, h.low64);
}

Tokenizer Tokenizer::load(const std::string& path) {
    BpeModel model = read_tokenizer_json(path);
    try {
        return Tokenizer(std::move(model));
    } catch (const DataError& e) {  // the same, with the file named
        ErrorFields fields = e.fields();
        fields.where = path;
        throw DataError(std::move(fields));
    }
}

void Tokenizer::save(const std::string& path) const { write_tokenizer_json(state_->model, path); }

}  // namespace stoa
