#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

#include "data/tokenizer/tokenizer_json.h"
#include "kernels/core/error.h"

namespace stoa {
namespace {

using Json = nlohmann::ordered_json;  // keeps the vocabulary in id order

/// Byte -> code point: printable Latin-1 stands for itself, the other 68 bytes are U+0100, U+0101,
/// ...
const std::array<int, 256>& code_points() {
    static const std::array<int, 256> table = [] {
        std::array<int, 256> t{};
        int next = 256;
        for (int b = 0; b < 256; ++b) {
            const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
            t[static_cast<std::size_t>(b)] = printable ? b : next++;
        }
        return t;
    }();
    return table;
}

const std::array<int, 324>& bytes_of_code_points() {  // the last stand-in is U+0143
    static const std::array<int, 324> table = [] {
        std::array<int, 324> t{};
        t.fill(-1);
        for (int b = 0; b < 256; ++b)
            t[static_cast<std::size_t>(code_points()[static_cast<std::size_t>(b)])] = b;
        return t;
    }();
    return table;
}

Json byte_level(bool use_regex) {
    return {{"type", "ByteLevel"},
            {"add_prefix_space", false},
            {"trim_offsets", false},
            {"use_regex", use_regex}};
}

/// Writes and syncs a temporary neighbour, then renames it: readers see the old file or the new
/// one.
void write_whole(const std::string& path, const std::string& text) {
    const std::string temporary = fmt::format("{}.tmp.{}", path, getpid());
    const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    bool ok = fd >= 0;
    for (std::size_t done = 0; ok && done < text.size();) {
        const ssize_t n = write(fd, text.data() + done, text.size() - done);
        if (n < 0 && errno == EINTR) continue;
        ok = n > 0;
        if (ok) done += static_cast<std::size_t>(n);
    }
    ok = ok && fsync(fd) == 0;
    int why = errno;
    if (fd >= 0) ok = close(fd) == 0 && ok;
    if (ok && std::rename(temporary.c_str(), path.c_str()) != 0) ok = false, why = errno;
    if (ok) return;
    unlink(temporary.c_str());
    throw DataError(
        {.what = "cannot write tokenizer.json", .where = path, .actual = std::strerror(why)});
}

}  // namespace

std::string bytes_to_unicode(std::string_view bytes) {
    std::string out;
    for (const char c : bytes) {
        const int p = code_points()[static_cast<unsigned char>(c)];
        if (p < 0x80) {
            out += static_cast<char>(p);
        } else {
            out += static_cast<char>(0xC0 | (p >> 6));
            out += static_cast<char>(0x80 | (p & 0x3F));
        }
    }
    return out;
}

std::string unicode_to_bytes(std::string_view text, bool& ok) {
    std::string out;
    for (std::size_t i = 0; i < text.size(); ++i) {
        unsigned p = static_cast<unsigned char>(text[i]);
        if (p >= 0xC0 && p < 0xE0 && i + 1 < text.size())
            p = ((p & 0x1F) << 6) | (static_cast<unsigned char>(text[++i]) & 0x3Fu);
        else if (p >= 0x80)
            p = ~0u;
        const int byte = p < bytes_of_code_points().size() ? bytes_of_code_points()[p] : -1;
        if (byte < 0) ok = false;
        out += static_cast<char>(byte);
    }
    return out;
}

void write_tokenizer_json(const BpeModel& model, const std::string& path) {
    Json vocab = Json::object(), merges = Json::array(), added = Json::array();
    auto& entries = vocab.get_ref<Json::object_t&>();
    std::vector<std::string> printable;
    for (const std::string& token : model.vocab) {
        printable.push_back(bytes_to_unicode(token));
        // Appended directly: ordered_json's own insertion walks all earlier keys.
        entries.emplace_back(printable.back(), entries.size());
    }
    for (const auto& [left, right] : model.merges)
        merges.push_back(Json::array({printable[static_cast<std::size_t>(left)],
                                      printable[static_cast<std::size_t>(right)]}));
    for (const std::string& token : model.special_tokens)
        added.push_back({{"id", model.vocab.size() + added.size()},
                         {"content", token},
                         {"single_word", false},
                         {"lstrip", false},
                         {"rstrip", false},
                         {"normalized", false},
                         {"special", true}});
    const Json split = {{"type", "Split"},
                        {"pattern", {{"Regex", model.split_pattern}}},
                        {"behavior", "Isolated"},
                        {"invert", false}};
    Json root;
    root["version"] = "1.0";
    root["truncation"] = nullptr;
    root["padding"] = nullptr;
    root["added_tokens"] = added;
    root["normalizer"] = nullptr;
    root["pre_tokenizer"] = {{"type", "Sequence"},
                             {"pretokenizers", Json::array({split, byte_level(false)})}};
    root["post_processor"] = byte_level(false);
    root["decoder"] = byte_level(false);
    root["model"] = {{"type", "BPE"},
                     {"dropout", nullptr},
                     {"unk_token", nullptr},
                     {"continuing_subword_prefix", nullptr},
                     {"end_of_word_suffix", nullptr},
                     {"fuse_unk", false},
                     {"byte_fallback", false},
                     {"ignore_merges", false},
                     {"vocab", std::move(vocab)},
                     {"merges", std::move(merges)}};
    write_whole(path, root.dump(2) + "\n");
}

}  // namespace stoa
