#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "data/tokenizer/bpe_train.h"
#include "data/tokenizer/tokenizer_json.h"
#include "kernels/core/error.h"

namespace stoa {
namespace {

using Json = nlohmann::json;

/// Where the reader stands, for messages.
struct Reader {
    const std::string& path;
    [[noreturn]] void refuse(const std::string& field, const std::string& expected,
                             const std::string& actual) const {
        throw DataError({.what = "unsupported tokenizer.json: " + field,
                         .where = path,
                         .expected = expected,
                         .actual = actual,
                         .hint = "use a byte-level BPE tokenizer without normaliser, or train one: "
                                 "stoa tokenizer train"});
    }
    /// A short form of a value: its "type" if it has one.
    static std::string describe(const Json& j) {
        if (j.is_object() && j.contains("type") && j["type"].is_string())
            return j["type"].get<std::string>();
        std::string s = j.dump(-1, ' ', true, Json::error_handler_t::replace);
        return s.size() > 60 ? s.substr(0, 60) + "..." : s;
    }
    const Json& member(const Json& object, const char* key) const {
        static const Json null;
        const auto it = object.find(key);
        return it == object.end() ? null : *it;
    }
    bool flag(const Json& object, const char* key, bool absent) const {
        const Json& j = member(object, key);
        return j.is_boolean() ? j.get<bool>() : absent;
    }
    bool is_type(const Json& j, const char* type) const {
        return j.is_object() && member(j, "type") == type;
    }
    std::string bytes(const Json& j, const char* field) const {
        bool ok = j.is_string();
        std::string out = ok ? unicode_to_bytes(j.get_ref<const std::string&>(), ok) : "";
        if (!ok) refuse(field, "a string of byte-level characters", describe(j));
        return out;
    }
};

std::string read_split(const Reader& in, const Json& pre) {
    const Json* byte_level = &pre;
    std::string pattern = kGpt2Split;
    if (in.is_type(pre, "Sequence")) {
        const Json& list = in.member(pre, "pretokenizers");
        if (!list.is_array() || list.size() != 2 || !in.is_type(list[0], "Split"))
            in.refuse("pre_tokenizer", "Sequence[Split, ByteLevel]", in.describe(list));
        const Json& split = list[0];
        const Json& regex = in.member(in.member(split, "pattern"), "Regex");
        if (!regex.is_string())
            in.refuse("pre_tokenizer Split.pattern", "a Regex", in.describe(split));
        if (in.member(split, "behavior") != "Isolated" || in.flag(split, "invert", false))
            in.refuse("pre_tokenizer Split", "behavior Isolated, invert false",
                      in.describe(in.member(split, "behavior")));
        pattern = regex.get<std::string>();
        byte_level = &list[1];
    }
    if (!in.is_type(*byte_level, "ByteLevel"))
        in.refuse("pre_tokenizer", "ByteLevel", in.describe(*byte_level));
    if (in.flag(*byte_level, "add_prefix_space", true))
        in.refuse("pre_tokenizer ByteLevel.add_prefix_space", "false", "true");
    if (in.flag(*byte_level, "use_regex", true) != (byte_level == &pre))
        in.refuse("pre_tokenizer ByteLevel.use_regex", "false beside a Split, true without one",
                  "the other");
    return pattern;
}

void check_frame(const Reader& in, const Json& root, const Json& model) {
    if (const Json& n = in.member(root, "normalizer"); !n.is_null())
        in.refuse("normalizer", "null", in.describe(n));
    for (const char* key : {"post_processor", "decoder"})
        if (const Json& j = in.member(root, key); !j.is_null() && !in.is_type(j, "ByteLevel"))
            in.refuse(key, "ByteLevel or null", in.describe(j));
    if (!model.is_object() || (model.contains("type") && !in.is_type(model, "BPE")))
        in.refuse("model", "BPE", in.describe(model));
    for (const char* key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"})
        if (const Json& j = in.member(model, key); !j.is_null() && j != "")
            in.refuse(std::string("model.") + key, "null", in.describe(j));
    for (const char* key : {"byte_fallback", "ignore_merges"})
        if (in.flag(model, key, false)) in.refuse(std::string("model.") + key, "false", "true");
}

std::vector<std::string> read_vocab(const Reader& in, const Json& vocab) {
    if (!vocab.is_object() || vocab.empty())
        in.refuse("model.vocab", "token -> id", in.describe(vocab));
    std::vector<std::string> tokens(vocab.size());  // still in the printable form
    std::vector<bool> seen(vocab.size());
    for (const auto& [token, id] : vocab.items()) {
        const std::int64_t i = id.is_number_integer() ? id.get<std::int64_t>() : -1;
        if (i < 0 || i >= static_cast<std::int64_t>(tokens.size()) ||
            seen[static_cast<std::size_t>(i)])
            in.refuse("model.vocab ids", fmt::format("each of 0..{} once", tokens.size() - 1),
                      in.describe(id));
        seen[static_cast<std::size_t>(i)] = true;
        tokens[static_cast<std::size_t>(i)] = token;
    }
    return tokens;
}

/// Special tokens have the ids after the vocabulary, or are its last entries.
std::vector<std::string> read_special(const Reader& in, const Json& added,
                                      std::vector<std::string>& vocab) {
    std::vector<std::pair<std::int64_t, std::string>> found;
    if (!added.is_null() && !added.is_array())
        in.refuse("added_tokens", "a list", in.describe(added));
    for (const Json& token : added) {
        const Json& id = token.is_object() ? in.member(token, "id") : token;
        const Json& content = token.is_object() ? in.member(token, "content") : token;
        if (!id.is_number_integer() || !content.is_string())
            in.refuse("added_tokens", "id and content", in.describe(token));
        if (!in.flag(token, "special", false))
            in.refuse("added_tokens", "special tokens only",
                      "plain token " + content.dump(-1, ' ', true, Json::error_handler_t::replace));
        found.emplace_back(id.get<std::int64_t>(), content.get<std::string>());
    }
    std::sort(found.begin(), found.end());
    const auto old_size = static_cast<std::int64_t>(vocab.size());
    if (!found.empty() && found.front().first >= 0 && found.front().first < old_size)
        vocab.resize(static_cast<std::size_t>(found.front().first));
    std::vector<std::string> special;
    for (const auto& [id, content] : found) {
        const auto expected = static_cast<std::int64_t>(vocab.size() + special.size());
        if (id != expected)
            in.refuse("added_tokens", fmt::format("ids after the vocabulary (next: {})", expected),
                      fmt::format("id {} for \"{}\"", id, content));
        special.push_back(content);
    }
    if (old_size > static_cast<std::int64_t>(vocab.size() + special.size()))
        in.refuse("added_tokens", "ids after the vocabulary",
                  fmt::format("id {} inside it", vocab.size()));
    return special;
}

std::vector<std::pair<TokenId, TokenId>> read_merges(const Reader& in, const Json& merges,
                                                     const std::vector<std::string>& vocab) {
    std::unordered_map<std::string_view, TokenId> id_of;
    for (std::size_t i = 0; i < vocab.size(); ++i)
        id_of[vocab[i]] = static_cast<TokenId>(i);
    if (!merges.is_array()) in.refuse("model.merges", "a list", in.describe(merges));
    std::vector<std::pair<TokenId, TokenId>> out;
    out.reserve(merges.size());
    for (const Json& m : merges) {
        std::string left, right;
        if (m.is_string()) {  // the older form: "left right"
            const auto& s = m.get_ref<const std::string&>();
            const std::size_t space = s.find(' ');
            if (space != std::string::npos) left = s.substr(0, space), right = s.substr(space + 1);
        } else if (m.is_array() && m.size() == 2 && m[0].is_string() && m[1].is_string()) {
            left = m[0].get<std::string>(), right = m[1].get<std::string>();
        }
        const auto l = id_of.find(left), r = id_of.find(right);
        if (l == id_of.end() || r == id_of.end())
            in.refuse(fmt::format("model.merges[{}]", out.size()), "two tokens of the vocabulary",
                      in.describe(m));
        out.emplace_back(l->second, r->second);
    }
    return out;
}

}  // namespace

BpeModel read_tokenizer_json(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file)
        throw DataError({.what = "cannot open the tokenizer",
                         .where = path,
                         .actual = std::strerror(errno),
                         .hint = "train one: stoa tokenizer train INPUT... --out tokenizer.json"});
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    const Json root = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    const Reader in{path};
    if (!root.is_object())
        throw DataError({.what = "not a tokenizer.json",
                         .where = path,
                         .expected = "one JSON object",
                         .actual = root.is_discarded() ? "no valid JSON" : root.type_name()});
    const Json& model = in.member(root, "model");
    check_frame(in, root, model);
    BpeModel out;
    out.split_pattern = read_split(in, in.member(root, "pre_tokenizer"));
    out.vocab = read_vocab(in, in.member(model, "vocab"));
    out.special_tokens = read_special(in, in.member(root, "added_tokens"), out.vocab);
    out.merges = read_merges(in, in.member(model, "merges"), out.vocab);
    for (std::string& token : out.vocab)
        token = in.bytes(token, "model.vocab");
    return out;
}

}  // namespace stoa
